"""Lines of files: paths, compression, encodings and their errors. Everything streams.

Every error is a DataError that names the file, the line where there is one, and the next step.
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

UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
GUESSED_BYTES = 2**16  # of a file's beginning, from which its encoding is guessed

# Common encodings of data files that are not UTF-8: Python's name -> iconv's name. Others are never
# guessed: for short texts the guesses would be wrong.
ENCODINGS = {
    "gb18030": "GB18030", "big5": "BIG5", "cp1252": "WINDOWS-1252", "cp932": "CP932",
    "euc_jp": "EUC-JP", "cp949": "CP949", "cp1251": "WINDOWS-1251", "koi8_r": "KOI8-R",
}  # fmt: skip

_VARIABLE = re.compile(r"\$\{(\w+)\}")


class ReadErrorPolicy:
    """What happens to unusable lines. This one raises the first error.

    Where `report` returns, the reader skips the line.
    """

    error_count = 0
    """Errors reported so far."""

    def on_open(self, path: str | Path, file: BinaryIO) -> None:
        """Note that a file is opened.

        Args:
            path: The file.
            file: Its `tell()` is the progress, in stored bytes.
        """

    def report(self, error: DataError) -> None:
        """Handle an error.

        Args:
            error: Its message begins with the file and the line.

        Raises:
            DataError: The policy is to raise errors.
        """
        raise error


RAISE_ERRORS = ReadErrorPolicy()


def resolve(path: str | Path) -> Path:
    """Replace `${NAME}` by the environment variable, and `~` by the home directory.

    Raises:
        DataError: A variable is not set.
    """

    def value(match: re.Match[str]) -> str:
        text = os.environ.get(match[1])
        if not text:
            raise DataError(
                f"'{path}' needs the environment variable {match[1]}, which is not set. "
                f"Set it to the folder of data sets: export {match[1]}=/path/to/data"
            )
        return text

    return Path(_VARIABLE.sub(value, str(path))).expanduser()


def open_file(path: str | Path, errors: ReadErrorPolicy = RAISE_ERRORS) -> BinaryIO:
    """Open a file for reading bytes.

    Args:
        path: The file; `.gz` is decompressed, "-" is standard input.
        errors: Its `on_open` is called with the file.

    Raises:
        DataError: The file is missing, empty or not readable.
    """
    if str(path) == STANDARD_INPUT:
        return sys.stdin.buffer
    file_path = resolve(path)
    if file_path.is_dir():
        raise DataError(f"'{file_path}' is a directory. Name a file in it.")
    if not file_path.exists():
        raise DataError(f"There is no data file '{file_path}'. {_near_names(file_path)}")
    try:
        if file_path.stat().st_size == 0:
            raise DataError(
                f"{file_path}: the file is empty. Give a file with at least one example."
            )
        if file_path.suffix == ".gz":
            archive = gzip.open(file_path, "rb")
            errors.on_open(path, cast(BinaryIO, archive.fileobj))
            return archive  # type: ignore[return-value]
        file = file_path.open("rb")
        errors.on_open(path, file)
        return file
    except PermissionError:
        raise DataError(f"'{file_path}' cannot be read. Check its permissions.") from None


def read_lines(
    path: str | Path, errors: ReadErrorPolicy = RAISE_ERRORS
) -> Iterator[tuple[int, str]]:
    r"""Yield the number, from 1, and the text of every line, blank ones included.

    Lines end at \n, \r\n or the end of the file, which are left out; a leading byte order mark
    is dropped.

    Args:
        path: The file; `.gz` is decompressed, "-" is standard input.
        errors: What happens to a line that is too long or not UTF-8.

    Raises:
        DataError: The file is missing, empty or not readable.
    """
    number = 0
    with open_file(path, errors) as file:
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
            errors.report(fault)
            while len(raw) > LONGEST_LINE_BYTES and not raw.endswith(b"\n"):
                raw = _next_line(file, path)  # the remaining part of the line
    if number == 0:
        errors.report(
            DataError(f"{path}: the file is empty. Give a file with at least one example.")
        )


def read_all(path: str | Path) -> str:
    """Read the complete text of a file, for formats that are one document.

    Raises:
        DataError: The file is missing, not readable, or not UTF-8.
    """
    with open_file(path) as file:
        try:
            raw = file.read()
        except (OSError, EOFError, zlib.error) as error:
            raise _broken_archive(path, error) from None
    return decode(raw.removeprefix(b"\xef\xbb\xbf"), path, 1)


def decode(raw: bytes, path: str | Path, number: int) -> str:
    """Decode UTF-8 bytes.

    Args:
        raw: A line, or a complete file.
        path: The file, for messages.
        number: The number of the line, from 1.

    Raises:
        DataError: They are not UTF-8; names the likely encoding.
    """
    if number == 1 and raw.startswith(UTF16_MARKS):
        raise DataError(
            f"{path}: the file is UTF-16. {_convert('UTF-16')} Spreadsheets write UTF-8 as "
            "'CSV UTF-8'."
        )
    if b"\x00" in raw:
        guess = f" {_convert(wide)}" if (wide := _wide_encoding(raw)) else ""
        raise DataError(
            f"{path}:{number}: this is {'UTF-16' if guess else 'binary data'}, not UTF-8 text."
            + (guess or " Give a text file, or set data.format if it is a Parquet file.")
        )
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        fault = f"{path}:{number}: byte {error.start + 1} of the line is not UTF-8."
    likely = likely_encodings(_beginning(path, raw))
    if not likely:
        raise DataError(f"{fault} It is no text in a known encoding. Give a text file.")
    raise DataError(f"{fault} The file looks like {' or '.join(likely)}. {_convert(likely[0])}")


def likely_encodings(raw: bytes) -> list[str]:
    """Return the likely encodings of text that is not UTF-8, by iconv's names.

    Returns:
        Several, the more common ones first, where the bytes are equally plausible text in them;
        none where they are no text in any encoding.
    """
    import charset_normalizer

    matches = list(charset_normalizer.from_bytes(raw, cp_isolation=list(ENCODINGS)))
    best = [
        match.encoding
        for match in matches
        if (match.chaos, match.coherence) == (matches[0].chaos, matches[0].coherence)
    ]
    return [name for encoding, name in ENCODINGS.items() if encoding in best]


def _wide_encoding(raw: bytes) -> str | None:
    """UTF-16LE or UTF-16BE where every second byte is zero, as in Latin text without a mark."""
    for name, start in (("UTF-16LE", 1), ("UTF-16BE", 0)):
        zeros = raw[start::2].count(0)
        if (
            len(raw) >= 8
            and zeros > 0.4 * len(raw) / 2
            and zeros > 4 * raw[1 - start :: 2].count(0)
        ):
            return name
    return None


def _beginning(path: str | Path, line: bytes) -> bytes:
    """The first bytes of a file from which its encoding shows, with the line itself."""
    if str(path) == STANDARD_INPUT:
        return line
    try:
        with open_file(path) as file:
            return file.read(GUESSED_BYTES) + b"\n" + line[:GUESSED_BYTES]
    except (OSError, EOFError, zlib.error, DataError):
        return line


def _convert(encoding: str) -> str:
    return f"Convert it first: iconv -f {encoding} -t UTF-8 FILE > NEW"


def _line(raw: bytes, path: str | Path, number: int) -> str:
    """The text of a line, without its end."""
    if number == 1 and b"\r" in raw.rstrip(b"\r\n") and not raw.endswith(b"\n"):
        raise DataError(
            f"{path}: the lines end in a carriage return alone, as on an old Macintosh. Convert "
            "the file first: tr '\\r' '\\n' < FILE > NEW"
        )
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
        return DataError(f"{path}: not a complete gzip file ({error}). Fetch or compress it again.")
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
