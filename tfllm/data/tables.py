"""TSV, CSV and Parquet files: rows of columns."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfllm.data.lines import LONGEST_LINE_BYTES, open_file, read_lines, resolve
from tfllm.errors import DataError, MissingExtra

if TYPE_CHECKING:
    from tfllm.data.sources import Reading

Row = tuple[Any, dict[Any, Any]]


def read_tsv(path: str | Path, settings: Reading) -> Iterator[Row]:
    """Columns between tabs; quote characters are text unless `data.quoting` is true."""
    return _read_table(path, settings, "\t", bool(settings.quoting))


def read_csv(path: str | Path, settings: Reading) -> Iterator[Row]:
    """Columns between commas, in double quotes where needed (RFC 4180)."""
    return _read_table(path, settings, ",", settings.quoting is not False)


def read_parquet(path: str | Path, settings: Reading) -> Iterator[Row]:
    """Rows of a Parquet file, group by group; the place is "row N"."""
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise MissingExtra("pyarrow", "parquet") from None
    open_file(path).close()  # the errors of missing and empty files
    try:
        file = parquet.ParquetFile(resolve(path))
        number = 0
        for batch in file.iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield f"row {number}", row
    except (OSError, ValueError) as error:  # pyarrow's errors derive from these
        first = str(error).splitlines()[0]
        raise DataError(f"{path}: not a readable Parquet file ({first}). Check it.") from None


def _read_table(
    path: str | Path, settings: Reading, delimiter: str, quoting: bool
) -> Iterator[Row]:
    split = _quoted_rows if quoting else _plain_rows
    names: list[Any] | None = None
    for number, fields in split(path, delimiter):
        if not settings.header:
            yield number, dict(enumerate(fields))
        elif names is None:
            names = _header(fields, path, number, delimiter, settings)
        elif len(fields) != len(names):
            raise DataError(
                f"{path}:{number}: {_fields(len(fields))}, but the header names {len(names)}. "
                "Correct the line"
                + ("." if quoting else ", or set data.quoting: true if fields are quoted.")
            )
        else:
            yield number, dict(zip(names, fields, strict=True))
    if names is not None and number == 1:
        raise DataError(f"{path}: only a header line and no examples. Give at least one row.")


def _header(
    fields: list[str], path: str | Path, number: int, delimiter: str, settings: Reading
) -> list[str]:
    names = [name.strip() for name in fields]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{path}:{number}: the column '{twice[0]}' stands twice in the header.")
    by_index = [column for column in settings.columns.values() if isinstance(column, int)]
    if by_index:
        raise DataError(
            f"{path}: data.columns names a column by index ({by_index[0]}), which goes with "
            f"data.header: false. The header names: {', '.join(names)}."
        )
    return names


def _plain_rows(path: str | Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    for number, line in read_lines(path):
        if line.strip():
            yield number, line.split(delimiter)


def _quoted_rows(path: str | Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(LONGEST_LINE_BYTES)
    lines = (line + "\n" for _, line in read_lines(path))
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    number = 1
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(
                f"{path}:{number}: not a row of a quoted table ({error}). Close the quotes, double "
                "those inside a field, or set data.quoting: false."
            ) from None
        if fields:
            yield number, fields
        number = reader.line_num + 1


def _fields(count: int) -> str:
    return f"{count} field" + ("s" if count != 1 else "")
