"""Progress and unusable lines while a corpus is read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, BinaryIO

from tfllm.data.lines import ReadErrorPolicy, resolve
from tfllm.errors import DataError


class ReadStats(ReadErrorPolicy):
    """Skip and count unusable lines, and count the bytes read.

    Args:
        paths: The files, in order.
        most: How many errors are allowed; None: any number.
        file: A JSON line per error is written to it: file, line, why.
    """

    def __init__(self, paths: Sequence[str], most: int | None = None, file: IO[str] | None = None):
        self.most = most
        self.file = file
        self.error_count = 0
        self.first_error: str | None = None
        self.total_bytes = 0
        self._before: dict[str, int] = {}
        for path in paths:
            self._before.setdefault(path, self.total_bytes)
            self.total_bytes += resolve(path).stat().st_size
        self._path = paths[0] if paths else ""
        self._open: BinaryIO | None = None

    def on_open(self, path: str | Path, file: BinaryIO) -> None:
        self._path, self._open = str(path), file

    @property
    def bytes_read(self) -> int:
        """Stored bytes (before decompression) read so far."""
        try:
            inside = self._open.tell() if self._open else 0
        except ValueError:  # closed: all of it
            inside = resolve(self._path).stat().st_size
        return self._before.get(self._path, 0) + inside

    def report(self, error: DataError) -> None:
        """Count an error. Raises DataError when there are more than are allowed."""
        message = str(error)
        self.error_count += 1
        self.first_error = self.first_error or message
        if self.most is not None and self.error_count > self.most:
            if self.most == 0:
                raise error
            raise DataError(
                f"{message} That is bad line {self.error_count}, and data.prepare.max_bad_lines is "
                f"{self.most}."
            )
        if self.file is not None:
            self.file.write(json.dumps(self._described(message), ensure_ascii=False) + "\n")

    def _described(self, message: str) -> dict[str, Any]:
        """{"file", "line", "why"}: of a message that begins with "file:line: "."""
        path = max((path for path in self._before if message.startswith(path)), key=len, default="")
        return _parts(message, path)


def _parts(message: str, path: str) -> dict[str, Any]:
    place, _, why = message.removeprefix(path).partition(": ")
    line = place.removeprefix(":")
    return {"file": path, "line": int(line) if line.isdigit() else line or None, "why": why}
