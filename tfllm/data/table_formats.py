"""Reading of TSV, CSV and Parquet files: rows of columns."""

from __future__ import annotations

import csv
import functools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tfllm.data.lines import (
    LONGEST_LINE_BYTES,
    RAISE_ERRORS,
    ReadErrorPolicy,
    open_file,
    read_lines,
)
from tfllm.data.read_settings import ReadSettings
from tfllm.errors import DataError, MissingExtra

log = logging.getLogger(__name__)

Row = tuple[Any, dict[Any, Any]]

PARQUET_ROWS = 1024  # read at once


def read_tsv(
    path: str | Path, settings: ReadSettings, errors: ReadErrorPolicy = RAISE_ERRORS
) -> Iterator[Row]:
    """Yield the rows of a TSV file; quotes are text unless `data.quoting` is true.

    Args:
        path: The file.
        settings: Columns, header and quoting.
        errors: What happens to unusable lines.
    """
    return _read_table(path, settings, "\t", bool(settings.quoting), errors)


def read_csv(
    path: str | Path, settings: ReadSettings, errors: ReadErrorPolicy = RAISE_ERRORS
) -> Iterator[Row]:
    """Yield the rows of a CSV file, with double quotes where needed (RFC 4180).

    Args:
        path: The file.
        settings: Columns, header and quoting.
        errors: What happens to unusable lines.
    """
    return _read_table(path, settings, ",", settings.quoting is not False, errors)


def read_parquet(
    path: str | Path, settings: ReadSettings, errors: ReadErrorPolicy = RAISE_ERRORS
) -> Iterator[Row]:
    """Yield the rows of a Parquet file, numbered as "row N".

    Args:
        path: The file.
        settings: Names the columns that are read.
        errors: Its `on_open` is called with the file.

    Raises:
        DataError: The file is not readable.
        MissingExtra: pyarrow is not installed.
    """
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise MissingExtra("pyarrow", "parquet") from None
    wanted = {str(column) for column in settings.columns.values()}
    number = 0
    try:
        file = parquet.ParquetFile(open_file(path, errors))
        _check_repeated(file.schema_arrow.names, str(path))
        columns = sorted(wanted) if wanted and wanted <= set(file.schema_arrow.names) else None
        for batch in file.iter_batches(batch_size=PARQUET_ROWS, columns=columns):
            for row in batch.to_pylist():
                number += 1
                yield f"row {number}", row
    except (OSError, ValueError) as error:  # pyarrow's errors derive from these
        first = str(error).splitlines()[0]
        raise DataError(f"{path}: not a readable Parquet file ({first}). Check it.") from None


def _read_table(
    path: str | Path, settings: ReadSettings, delimiter: str, quoting: bool, errors: ReadErrorPolicy
) -> Iterator[Row]:
    """The rows of a table. Rows without content, which spreadsheets leave at the end, are skipped.

    Fields are stripped where the names in the header have spaces around them. A column without a
    name is dropped.
    """
    split = functools.partial(_quoted_rows, header=settings.header) if quoting else _plain_rows
    names: list[str] | None = None
    spaced = False
    count, blank = 0, list[int]()
    for number, fields in split(path, delimiter, errors):
        count += 1
        if settings.header and names is None:
            names = _header(fields, path, number, settings)
            spaced = any(name != name.strip() for name in fields)
        elif not any(map(str.strip, fields)):
            blank.append(number)
        elif names is None:
            yield number, dict(enumerate(fields))
        elif len(fields) != len(names):
            errors.report(
                DataError(
                    f"{path}:{number}: {_fields(len(fields))}, but the header names {len(names)}. "
                    "Correct the line"
                    + ("." if quoting else ", or set data.quoting: true if fields are quoted.")
                )
            )
        else:
            values = map(str.strip, fields) if spaced else fields
            yield number, {name: value for name, value in zip(names, values, strict=True) if name}
    if blank:
        rows = f"{len(blank)} row" + ("s" if len(blank) > 1 else "")
        log.warning("%s: skipped %s without content, the first in line %d.", path, rows, blank[0])
    if names is not None and count == 1:
        raise DataError(f"{path}: only a header line and no examples. Give at least one row.")


def _header(fields: list[str], path: str | Path, number: int, settings: ReadSettings) -> list[str]:
    names = [name.strip() for name in fields]
    _check_repeated([name for name in names if name], f"{path}:{number}")
    by_index = [column for column in settings.columns.values() if isinstance(column, int)]
    if by_index:
        raise DataError(
            f"{path}: data.columns names a column by index ({by_index[0]}), which goes with "
            f"data.header: false. The header names: {', '.join(names)}."
        )
    return names


def _check_repeated(names: Sequence[str], where: str) -> None:
    """Refuse a column name that occurs twice."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(
            f"{where}: the column '{twice[0]}' stands twice in the header. Rename one of the two."
        )


def _plain_rows(
    path: str | Path, delimiter: str, errors: ReadErrorPolicy
) -> Iterator[tuple[int, list[str]]]:
    for number, line in read_lines(path, errors):
        if line.strip():
            yield number, line.split(delimiter)


def _quoted_rows(
    path: str | Path, delimiter: str, errors: ReadErrorPolicy, header: bool
) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(LONGEST_LINE_BYTES)
    numbers: list[int] = []  # of the lines that the row takes

    def lines() -> Iterator[str]:
        for number, line in read_lines(path, errors):
            numbers.append(number)
            yield line + "\n"

    rows = lines()
    reader = csv.reader(rows, delimiter=delimiter, strict=True)
    while True:
        numbers.clear()
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            through = f", through line {numbers[-1]}" if len(numbers) > 1 else ""
            fault = DataError(
                f"{path}:{numbers[0]}: not a row of a quoted table ({error}{through}). Close the "
                "quotes, double those inside a field, or set data.quoting: false."
            )
        else:
            if header and any(name.startswith(" ") for name in fields):
                # A blank after each delimiter: a quote after it opens a field all the same.
                reader = csv.reader(rows, delimiter=delimiter, strict=True, skipinitialspace=True)
            header = False
            if fields:
                yield numbers[0], fields
            continue
        errors.report(fault)


def _fields(count: int) -> str:
    return f"{count} field" + ("s" if count != 1 else "")
