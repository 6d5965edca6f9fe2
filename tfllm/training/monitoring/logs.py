"""What a run writes down while it trains: metrics.jsonl and TensorBoard's files."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Log:
    """Appends to `metrics.jsonl` and `logs/` of a run directory."""

    def __init__(self, directory: Path, from_step: int = 0):
        import tensorflow as tf

        self.path = directory / "metrics.jsonl"
        _cut(self.path, from_step)
        self._writer = tf.summary.create_file_writer(str(directory / "logs"))

    def write(self, step: int, epoch: float, values: Mapping[str, float | None]) -> None:
        """One line: step, epoch, then the values; each value also to TensorBoard.

        A value that is None or not finite is null, and no point of TensorBoard's curve.
        """
        import tensorflow as tf

        values = {
            name: None if value is None or not math.isfinite(value) else value
            for name, value in values.items()
        }
        line = {"step": step, "epoch": round(epoch, 4), **values}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        with self._writer.as_default():
            for name, value in values.items():
                if value is None:
                    continue
                tf.summary.scalar(name.replace("validation_", "validation/"), value, step=step)

    def text(self, step: int, name: str, markdown: str) -> None:
        """A text for TensorBoard alone."""
        import tensorflow as tf

        with self._writer.as_default():
            tf.summary.text(name, markdown, step=step)

    def close(self) -> None:
        self._writer.close()


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a half-written last one is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def _cut(path: Path, step: int) -> None:
    """Drops the lines after `step`: a resumed run writes them again."""
    if not path.exists():
        return
    kept = [line for line in read(path) if line["step"] <= step]
    path.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
