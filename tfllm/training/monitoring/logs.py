"""The log of a run: metrics.jsonl and TensorBoard's files."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf


class RunLog:
    """Appends to `metrics.jsonl` and `logs/` of a run directory."""

    def __init__(self, directory: Path, from_step: int = 0):
        """Open the log; lines of steps after `from_step` are removed, as they will come again."""
        self.path = directory / "metrics.jsonl"
        _remove_lines_after(self.path, from_step)
        self._writer = tf.summary.create_file_writer(str(directory / "logs"))

    def write(self, step: int, epoch: float, values: Mapping[str, float | None]) -> None:
        """Write one line, and each value to TensorBoard.

        A value that is None or not finite is null, and no point of TensorBoard's curve.

        Args:
            step: The step of the run, from 1.
            epoch: The epochs trained so far.
            values: By name.
        """
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

    def write_text(self, step: int, name: str, markdown: str) -> None:
        """Write a text to TensorBoard alone.

        Args:
            step: The step of the run, from 1.
            name: What TensorBoard calls it.
            markdown: The text.
        """
        with self._writer.as_default():
            tf.summary.text(name, markdown, step=step)

    def close(self) -> None:
        """Flush and close TensorBoard's file."""
        self._writer.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a metrics.jsonl; an incomplete last one is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def _remove_lines_after(path: Path, step: int) -> None:
    if not path.exists():
        return
    lines = [line for line in read_log(path) if line["step"] <= step]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
