"""Reading of the documents of a corpus: records, texts between blank lines, or files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, cast

from tfllm.data.corpora.read_stats import ReadStats
from tfllm.data.corpora.settings import PrepareSettings
from tfllm.data.lines import ReadErrorPolicy, open_file, read_lines, resolve
from tfllm.data.read_settings import Format
from tfllm.data.sources import ENDINGS, ReadSettings, format_of, read
from tfllm.errors import DataError, SettingError

REPORT_EVERY = 1000  # lines or records
GROUPED = ("text", "paragraphs", "document")  # formats of plain text in lines


class Document(NamedTuple):
    """One text of a corpus."""

    where: str
    """"file:line" of its beginning."""
    text: str


def documents(
    paths: Sequence[str], reading: ReadSettings, settings: PrepareSettings, errors: ReadErrorPolicy
) -> Iterator[Document]:
    """Yield the documents of all files in order.

    A document of more than `longest_characters` is split at a line end, or else at a space.

    Args:
        paths: The files.
        reading: How they are read.
        settings: What a document is.
        errors: What happens to unusable lines and records.

    Raises:
        DataError: A file is missing or damaged.
        SettingError: The settings do not go with the format of a file.
    """
    for path in paths:
        format = reading.format or format_of(path)
        if settings.document_start is not None and format not in GROUPED:
            raise SettingError(
                f"data.prepare.document_start is for plain text, and '{path}' is {format}: each "
                "record is a document. Remove the key."
            )
        if resolve(path).is_file() and resolve(path).stat().st_size == 0:
            errors.report(DataError(f"{path}: the file is empty."))
            continue
        if format in GROUPED and (settings.document_start or format != "text"):
            texts = _grouped(path, format, settings, errors)
        else:
            texts = _records(path, reading, errors)
        for where, text in texts:
            if len(text) <= settings.longest_characters:
                yield Document(where, text)
            else:
                for part in _split(text, settings.longest_characters):
                    yield Document(where, part)


def _records(
    path: str, reading: ReadSettings, errors: ReadErrorPolicy
) -> Iterator[tuple[str, str]]:
    for example in read(path, reading, errors):
        text = example.get("text")
        if isinstance(text, list) and all(isinstance(part, str) for part in text):
            text = "\n".join(text)
        if isinstance(text, str):
            yield example["_where"], text
            continue
        errors.report(
            DataError(
                f"{example['_where']}: there is no text: 'text' is {type(text).__name__}. Name the "
                "column that holds it: data.columns: {text: COLUMN}"
            )
        )


def _grouped(
    path: str, format: str, settings: PrepareSettings, errors: ReadErrorPolicy
) -> Iterator[tuple[str, str]]:
    """Lines up to a blank one, to one that begins a document, or to the end of the file.

    A document of more than `longest_characters` is yielded in parts, in constant memory.
    """
    begins = re.compile(settings.document_start) if settings.document_start else None
    start, size = 0, 0
    lines: list[str] = []
    for number, line in read_lines(path, errors):
        ends = begins.search(line) if begins else format == "paragraphs" and not line.strip()
        if (ends or size > settings.longest_characters) and any(map(str.strip, lines)):
            yield f"{path}:{start}", "\n".join(lines)
            lines, size = [], 0
        if not lines:
            start = number
            if not line.strip():
                continue
        lines.append(line)
        size += len(line) + 1
    if any(map(str.strip, lines)):
        yield f"{path}:{start}", "\n".join(lines)


def _split(text: str, longest: int) -> Iterator[str]:
    start = 0
    while len(text) - start > longest:
        half = start + longest // 2
        end = max(text.rfind("\n", half, start + longest), -1)
        end = end if end > 0 else text.rfind(" ", half, start + longest)
        end = end if end > 0 else start + longest
        yield text[start:end]
        start = end
    yield text[start:]


class TextLines:
    """The lines of several files; may be iterated several times, and raises the first error.

    Args:
        paths: The files.
        column: The column of JSON lines and tables; None: every line is text.
        progress: Called with the bytes read and the total bytes.

    Raises:
        DataError: A file is missing.
    """

    def __init__(
        self, paths: Sequence[str], column: str | None, progress: Callable[[int, int], None]
    ):
        check_files(paths)
        self.paths, self.column, self.progress = paths, column, progress

    def __iter__(self) -> Iterator[str]:
        stats = ReadStats(self.paths, max_errors=0)
        for path in self.paths:
            for number, lines in enumerate(self._read(path, stats)):
                yield from lines
                if number % REPORT_EVERY == 0:
                    self.progress(min(stats.bytes_read, stats.total_bytes - 1), stats.total_bytes)
        self.progress(stats.total_bytes, stats.total_bytes)

    def _read(self, path: str, stats: ReadStats) -> Iterator[list[str]]:
        if self.column is None:
            yield from ([line] for _, line in read_lines(path, stats))
            return
        reading = ReadSettings(columns={"text": self.column}, format=_record_format(path))
        yield from (text.split("\n") for _, text in _records(path, reading, stats))


def _record_format(path: str) -> Format:
    """The format of a file of records by its name; JSON lines where the suffix is unknown."""
    ending = Path(path.removesuffix(".gz")).suffix.lower()
    format = ENDINGS.get(ending)
    return cast(Format, format if format in ("tsv", "csv", "parquet") else "jsonl")


def check_files(paths: Sequence[str]) -> list[Path]:
    """Return the resolved paths of files, after checking that each can be opened.

    Raises:
        DataError: One cannot be opened.
    """
    resolved = []
    for path in paths:
        file = resolve(path)
        if not file.is_file() or file.stat().st_size:
            open_file(path).close()  # its errors name what is wrong
        resolved.append(file)
    return resolved
