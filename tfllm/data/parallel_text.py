"""Parallel text files: sources in the lines of one file, targets in those of another.

One path names both with braces, as in a shell: `train.{en,de}.gz` is train.en.gz and train.de.gz.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

from tfllm.data.lines import RAISE_ERRORS, ReadErrorPolicy, read_lines
from tfllm.data.read_settings import ReadSettings
from tfllm.errors import DataError

BRACES = re.compile(r"(?<!\$)\{([^{},]*),([^{},]*)\}")


def pair_of(path: str | Path) -> tuple[str, str] | None:
    """Return the two paths that a path with braces names; None for any other path."""
    text = str(path)
    matches = BRACES.findall(text)
    if len(matches) != 1:
        return None
    first, second = (BRACES.sub(name.replace("\\", r"\\"), text) for name in matches[0])
    return first, second


def read_parallel(
    path: str | Path, settings: ReadSettings, errors: ReadErrorPolicy = RAISE_ERRORS
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line number, {"source", "target"}) of every line; pairs of blank lines are skipped.

    A line that cannot be read is an error whatever `errors` does: without it all pairs after it
    would be wrong.

    Args:
        path: A path with braces that names two files.
        settings: Not used.
        errors: Not used.

    Raises:
        DataError: A file cannot be read, or the two have different numbers of lines.
    """
    names = pair_of(path)
    if names is None:
        raise DataError(
            f"'{path}' is one file, and data.format: parallel reads two whose lines belong "
            "together. Name both, for example train.{en,de}.gz."
        )
    files = [read_lines(name) for name in names]
    for number, lines in enumerate(itertools.zip_longest(*files), 1):
        if None in lines:
            remaining = 1 + sum(1 for _ in files[lines.index(None) - 1])
            short, long = number - 1, number - 1 + remaining
            counts = (short, long) if lines[0] is None else (long, short)
            raise DataError(
                f"{names[0]} has {counts[0]} lines and {names[1]} has {counts[1]}: the lines of "
                "the two files must belong together. Give files of the same length."
            )
        (_, source), (_, target) = lines
        if source.strip() or target.strip():
            yield number, {"source": source, "target": target}
