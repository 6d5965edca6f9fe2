"""Files to the documents of a corpus, streaming: one a record, between blank lines, or a file."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tfllm.data.corpora.read_stats import ReadStats
from tfllm.data.corpora.settings import PrepareSettings
from tfllm.data.lines import ReadErrorPolicy, open_file, read_lines, resolve
from tfllm.data.sources import ENDINGS, ReadSettings, format_of, read
from tfllm.errors import DataError, SettingError

TOLD_EVERY = 1000  # lines or records
GROUPED = ("text", "paragraphs", "document")  # formats that are lines of plain text


class Document(NamedTuple):
    where: str
    """"file:line" of its beginning."""
    text: str


def documents(
    paths: Sequence[str], reading: ReadSettings, settings: PrepareSettings, errors: ReadErrorPolicy
) -> Iterator[Document]:
    """The documents of all files in order; the same every time.

    One of more than `longest_characters` is divided at a line end, or else at a space. What cannot
    be used goes to `errors`. Raises DataError for a file that is missing or a broken archive.
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
            found = _grouped(path, format, settings, errors)
        else:
            found = _records(path, reading, errors)
        for where, text in found:
            if len(text) <= settings.longest_characters:
                yield Document(where, text)
            else:
                for part in _divided(text, settings.longest_characters):
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

    A document that grows over `longest_characters` is given out in parts, so memory stays flat.
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


def _divided(text: str, longest: int) -> Iterator[str]:
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
    """The lines of text of several files, from the beginning each time; the first fault raises.

    `column`: of JSON lines and tables, whose format the file's name says; None: every line is text.
    `told` is given the bytes read and the bytes in all.
    """

    def __init__(self, paths: Sequence[str], column: str | None, told: Callable[[int, int], None]):
        check_files(paths)
        self.paths, self.column, self.told = paths, column, told

    def __iter__(self) -> Iterator[str]:
        stats = ReadStats(self.paths, most=0)
        for path in self.paths:
            for number, lines in enumerate(self._of(path, stats)):
                yield from lines
                if number % TOLD_EVERY == 0:
                    self.told(min(stats.bytes_read, stats.total_bytes - 1), stats.total_bytes)
        self.told(stats.total_bytes, stats.total_bytes)

    def _of(self, path: str, stats: ReadStats) -> Iterator[list[str]]:
        if self.column is None:
            yield from ([line] for _, line in read_lines(path, stats))
            return
        reading = ReadSettings(columns={"text": self.column}, format=_record_format(path))
        yield from (text.split("\n") for _, text in _records(path, reading, stats))


def _record_format(path: str) -> Any:
    """The format of a file of records by its name; JSON lines where that says nothing."""
    ending = Path(path.removesuffix(".gz")).suffix.lower()
    return format if (format := ENDINGS.get(ending)) in ("tsv", "csv", "parquet") else "jsonl"


def check_files(paths: Sequence[str]) -> list[Path]:
    """The files of a recipe, each looked for now, before hours of work. Raises DataError."""
    found = []
    for path in paths:
        place = resolve(path)
        if not place.is_file() or place.stat().st_size:
            open_file(path).close()  # its errors name what is wrong
        found.append(place)
    return found
