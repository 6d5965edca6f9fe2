"""Files to lines: paths, compression, encodings and their faults. Everything streams.

Every fault is a DataError that names the file, the line where there is one, and the next step.
"""

from __future__ import annotations

import difflib
import gzip
import os
import re
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from tfllm.errors import DataError

# No real example is this long; a binary file or a file without line ends is.
LONGEST_LINE_BYTES = 8 * 2**20

STANDARD_INPUT = "-"

_VARIABLE = re.compile(r"\$\{(\w+)\}")


class Watch:
    """What readers tell while they read. This one raises the first fault of a file's content.

    A reader whose watch returns from `fault` goes on after the line that cannot be used.
    """

    faults = 0
    """How many there were."""

    def opened(self, path: str | Path, file: BinaryIO) -> None:
        """A file as it lies on the disk: its `tell()` says how far the reading is."""

    def fault(self, error: DataError) -> None:
        """Something in a file cannot be used; the message begins with the file and the line."""
        raise error


RAISING = Watch()


def resolve(path: str | Path) -> Path:
    """The path with `${NAME}` replaced from the environment and `~` from the home directory."""

    def value(match: re.Match[str]) -> str:
        found = os.environ.get(match[1])
        if not found:
            raise DataError(
                f"'{path}' needs the environment variable {match[1]}, which is not set. "
                f"Set it to the folder of data sets: export {match[1]}=/path/to/data"
            )
        return found

    return Path(_VARIABLE.sub(value, str(path))).expanduser()


def open_file(path: str | Path, watch: Watch = RAISING) -> BinaryIO:
    """The bytes of a file; a name ending in `.gz` is decompressed on the way, "-" is stdin."""
    if str(path) == STANDARD_INPUT:
        return sys.stdin.buffer
    found = resolve(path)
    if found.is_dir():
        raise DataError(f"'{found}' is a directory. Name a file in it.")
    if not found.exists():
        raise DataError(f"There is no data file '{found}'. {_near_names(found)}")
    try:
        if found.stat().st_size == 0:
            raise DataError(f"{found}: the file is empty. Give a file with at least one example.")
        if found.suffix == ".gz":
            archive = gzip.open(found, "rb")
            watch.opened(path, cast(BinaryIO, archive.fileobj))
            return archive  # type: ignore[return-value]
        file = found.open("rb")
        watch.opened(path, file)
        return file
    except PermissionError:
        raise DataError(f"'{found}' cannot be read. Check its permissions.") from None


def read_lines(path: str | Path, watch: Watch = RAISING) -> Iterator[tuple[int, str]]:
    """(number from 1, text without its line end) of every line, blank ones included.

    Lines end at \\n, \\r\\n or the end of the file; a leading byte order mark is dropped. A line
    that is too long or no UTF-8 is a fault.
    """
    number = 0
    with open_file(path, watch) as file:
        while raw := _next_line(file, path):
            number += 1
            if number == 1 and raw.startswith(b"\xef\xbb\xbf"):
                raw = raw[3:]
            try:
                line = _line(raw, path, number)
            except DataError as error:
                fault = error
            else:
                yield number, line
                continue
            watch.fault(fault)
            while len(raw) > LONGEST_LINE_BYTES and not raw.endswith(b"\n"):
                raw = _next_line(file, path)  # what is left of the line
    if number == 0:
        watch.fault(DataError(f"{path}: the file is empty. Give a file with at least one example."))


def read_all(path: str | Path) -> str:
    """The whole text of a file, for formats that are one document."""
    with open_file(path) as file:
        try:
            raw = file.read()
        except (OSError, EOFError, zlib.error) as error:
            raise _broken_archive(path, error) from None
    return decode(raw.removeprefix(b"\xef\xbb\xbf"), path, 1)


def decode(raw: bytes, path: str | Path, number: int) -> str:
    """UTF-8 bytes to text; a DataError where they are something else."""
    if b"\x00" in raw:
        raise DataError(
            f"{path}:{number}: this is binary data, not text. "
            "Give a text file, or set data.format if it is a Parquet file."
        )
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}:{number}: byte {error.start + 1} of the line is not UTF-8. Convert the file "
            "first, for example: iconv -f LATIN1 -t UTF-8 FILE > NEW"
        ) from None


def _line(raw: bytes, path: str | Path, number: int) -> str:
    """The text of a line, without its end."""
    if len(raw) > LONGEST_LINE_BYTES:
        raise DataError(
            f"{path}:{number}: the line is longer than {LONGEST_LINE_BYTES // 2**20} MiB. "
            "Put one example on each line; split long texts."
        )
    return decode(raw, path, number).removesuffix("\n").removesuffix("\r")


def _next_line(file: BinaryIO, path: str | Path) -> bytes:
    """One line with its end, or the first part of one too long; nothing at the end of the file."""
    try:
        return file.readline(LONGEST_LINE_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise _broken_archive(path, error) from None


def _broken_archive(path: str | Path, error: Exception) -> DataError:
    if Path(str(path)).suffix == ".gz":
        return DataError(f"{path}: not a whole gzip file ({error}). Fetch or compress it again.")
    return DataError(f"{path}: cannot be read ({error}).")


def _near_names(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"The folder '{folder}' does not exist either. Check the path."
    names = sorted(entry.name for entry in folder.iterdir())
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.4)
    if near:
        return f"Did you mean {' or '.join(repr(str(folder / name)) for name in near)}?"
    shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
    return f"The folder '{folder}' holds: {shown or 'nothing'}."
