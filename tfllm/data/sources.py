"""Data files to examples, streaming: one dict of canonical fields per example.

The canonical fields are those of FIELDS; `_where` ("file:line") is added, so that later errors can
name the line. One reader per format yields raw columns, which `read` renames.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from tfllm.data import parallel_text, table_formats, text_formats
from tfllm.data.label_numbers import as_number
from tfllm.data.lines import RAISE_ERRORS, ReadErrorPolicy
from tfllm.data.read_settings import Format, ReadSettings
from tfllm.errors import DataError, SettingError, did_you_mean

FIELDS = (
    "text", "text_pair", "label", "words", "tags", "question", "context", "answers", "id",
    "messages", "prompt", "source", "target", "prefix",
)  # fmt: skip

MISSING = object()  # a column that a row does not have; None is a value

# Each reader yields (line number, raw columns), by column name or, without a header, by index.
FORMATS = {
    "text": text_formats.read_text,
    "paragraphs": text_formats.read_paragraphs,
    "document": text_formats.read_document,
    "dialogues": text_formats.read_dialogues,
    "tsv": table_formats.read_tsv,
    "csv": table_formats.read_csv,
    "jsonl": text_formats.read_jsonl,
    "parquet": table_formats.read_parquet,
    "squad": text_formats.read_squad,
    "conll": text_formats.read_conll,
    "parallel": parallel_text.read_parallel,
}

# The format of a file where the recipe names none, by the suffix before `.gz`.
ENDINGS = {
    ".txt": "text", ".tsv": "tsv", ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl",
    ".parquet": "parquet", ".json": "squad", ".conll": "conll", ".bio": "conll",
}  # fmt: skip


def read(
    path: str | Path,
    settings: ReadSettings | None = None,
    errors: ReadErrorPolicy = RAISE_ERRORS,
    **options: Any,
) -> Iterator[dict]:
    """Yield the examples of a file, as dicts of canonical fields plus `_where`.

    Args:
        path: May contain `${NAME}`, replaced from the environment.
        settings: How the file is read.
        errors: With a policy that does not raise, unusable lines are skipped.
        options: Fields of ReadSettings, instead of `settings`.

    Raises:
        DataError: Names file, line and next step.
        SettingError: The settings are impossible.
    """
    settings = settings or ReadSettings(**options)
    for field in settings.columns:
        if field not in FIELDS:
            raise SettingError(f"data.columns: no field '{field}'. {did_you_mean(field, FIELDS)}")
    if not isinstance(settings.header, bool):
        raise SettingError("data.header is true or false.")
    format = settings.format or format_of(path)
    count, faults = 0, errors.error_count
    for location, row in FORMATS[format](path, settings, errors):
        count += 1
        where = f"{path}:{location}"
        try:
            example = _rename_columns(row, settings.columns, where)
            _name_labels(example, settings, where)
            if "answers" in example:
                example["answers"] = text_formats.answers_of(example["answers"])
        except DataError as error:
            errors.report(error)
            continue
        example["_where"] = where
        yield example
    if count == 0 and errors.error_count == faults:
        errors.report(
            DataError(f"{path}: the file holds no examples. Give a file with at least one.")
        )


def named(rows: Iterable[Mapping[str, Any]], settings: ReadSettings) -> Iterator[dict[str, Any]]:
    """Yield examples that are in memory under canonical names.

    Args:
        rows: The examples.
        settings: How they are read; without `columns` all fields keep their names.

    Raises:
        DataError: An example lacks a column, or has an unknown label; names its number.
    """
    for number, row in enumerate(rows, 1):
        where = row.get("_where", f"example {number}")
        example = _rename_columns(row, settings.columns, where) if settings.columns else dict(row)
        _name_labels(example, settings, where)
        if "answers" in example:
            example["answers"] = text_formats.answers_of(example["answers"])
        yield {**example, "_where": where}


def format_of(path: str | Path) -> str:
    """Return the format by the file's name.

    Raises:
        DataError: The suffix is unknown.
    """
    format = known_format(path)
    if format is None:
        ending = Path(str(path).removesuffix(".gz")).suffix
        raise DataError(
            f"'{path}': the ending '{ending}' says no format. "
            f"Set data.format to one of: {', '.join(FORMATS)}."
        )
    return format


def known_format(path: str | Path) -> Format | None:
    """Return the format by the suffix, or by braces that name two files; None if unknown."""
    if parallel_text.pair_of(path):
        return "parallel"
    ending = Path(str(path).removesuffix(".gz")).suffix.lower()
    return cast(Format | None, ENDINGS.get(ending))


def _rename_columns(
    row: Mapping[Any, Any], columns: Mapping[str, str | int], where: str
) -> dict[str, Any]:
    """Raw columns under their canonical names."""
    if not columns:
        example = {field: row[field] for field in FIELDS if field in row}
        if not example:
            raise DataError(
                f"{where}: none of the columns {', '.join(map(repr, row))} is a known field. "
                "Set data.columns, for example columns: {text: COLUMN, label: COLUMN}"
            )
        return example
    example = {}
    for field, column in columns.items():
        value = _column(row, column)
        if value is MISSING:
            raise DataError(
                f"{where}: no column '{column}' for data.columns.{field}. "
                f"{did_you_mean(str(column), [str(key) for key in row])} "
                f"The line has: {', '.join(str(key) for key in row)}."
            )
        example[field] = value
    return example


def _column(row: Mapping[Any, Any], column: str | int) -> Any:
    """A column's value; `outer.inner` is a field inside a field. MISSING where there is none."""
    if column in row or not isinstance(column, str):
        return row.get(column, MISSING)
    outer, dot, inner = column.partition(".")
    return _column(row[outer], inner) if dot and isinstance(row.get(outer), Mapping) else MISSING


def _name_labels(example: dict[str, Any], settings: ReadSettings, where: str) -> None:
    """Split several labels, and replace them by the names of `data.labels`."""
    label = example.get("label")
    if label is None:
        return
    if settings.label_separator and isinstance(label, str):
        label = [part.strip() for part in label.split(settings.label_separator) if part.strip()]
    if settings.labels:
        label = (
            [_label_name(part, settings, where) for part in label]
            if isinstance(label, list)
            else _label_name(label, settings, where)
        )
    example["label"] = label


def _label_name(label: Any, settings: ReadSettings, where: str) -> str | float:
    name = settings.labels.get(str(label))
    if name is None and label in settings.labels.values():
        name = label
    if name is None and (value := as_number(label)) is not None:
        name = next((to for of, to in settings.labels.items() if as_number(of) == value), None)
    if name is None:
        raise DataError(
            f"{where}: the label '{label}' is not in data.labels. "
            f"{did_you_mean(str(label), settings.labels)}"
        )
    return name
