"""Progress and unusable lines while the files of a corpus are read."""

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
        paths: The files, in the order in which they are read.
        max_errors: How many errors are allowed; None: any number.
        file: A JSON line per error is written to it: file, line, why.
    """

    def __init__(
        self, paths: Sequence[str], max_errors: int | None = None, file: IO[str] | None = None
    ):
        self.max_errors = max_errors
        self.file = file
        self.error_count = 0
        self.first_error: str | None = None
        self.total_bytes = 0
        self._bytes_before: dict[str, int] = {}  # sizes of all files before a file
        for path in paths:
            self._bytes_before.setdefault(path, self.total_bytes)
            self.total_bytes += resolve(path).stat().st_size
        self._path = paths[0] if paths else ""
        self._file: BinaryIO | None = None

    def on_open(self, path: str | Path, file: BinaryIO) -> None:
        """Measure the progress in this file from now on."""
        self._path, self._file = str(path), file

    @property
    def bytes_read(self) -> int:
        """Stored bytes (before decompression) read so far."""
        try:
            read = self._file.tell() if self._file else 0
        except ValueError:  # the file is closed: it was read to its end
            read = resolve(self._path).stat().st_size
        return self._bytes_before.get(self._path, 0) + read

    def report(self, error: DataError) -> None:
        """Count an error, and write it to the file of errors.

        Args:
            error: Its message begins with the file and the line.

        Raises:
            DataError: There are more errors than are allowed.
        """
        message = error.cli_message
        self.error_count += 1
        self.first_error = self.first_error or message
        if self.max_errors is not None and self.error_count > self.max_errors:
            if self.max_errors == 0:
                raise error
            raise DataError(
                f"{message} That is bad line {self.error_count}, and data.prepare.max_bad_lines is "
                f"{self.max_errors}."
            )
        if self.file is not None:
            self.file.write(json.dumps(self._as_json(message), ensure_ascii=False) + "\n")

    def _as_json(self, message: str) -> dict[str, Any]:
        """Divide a message "file:line: why" into its parts."""
        known = (path for path in self._bytes_before if message.startswith(path))
        path = max(known, key=len, default="")
        location, _, why = message.removeprefix(path).partition(": ")
        line = location.removeprefix(":")
        return {"file": path, "line": int(line) if line.isdigit() else line or None, "why": why}
