"""How a data file is read: the part of the settings that recipes and commands share."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tfllm.config import Settings

Format = Literal[
    "text", "paragraphs", "document", "dialogues",
    "tsv", "csv", "jsonl", "parquet", "squad", "conll", "parallel",
]  # fmt: skip


class ReadSettings(Settings):
    """How a data file is read: the part of `data` that `evaluate` and `predict` share."""

    format: Format | None = None
    """The file's format; by its ending where unset. Plain text is a text a line (text), between
    blank lines (paragraphs), or a whole file (document); dialogues have __eou__ between turns.
    parallel: two text files, named `train.{en,de}.gz`."""
    columns: dict[str, str | int] = Field(default_factory=dict)
    """Canonical field to the file's column: its name, or its index from 0 without a header."""
    header: bool = True
    """Whether the first line of a TSV or CSV file names the columns."""
    quoting: bool | None = None
    """Whether fields may stand in double quotes. Unset: yes in CSV, no in TSV."""
    labels: dict[str, str | float] = Field(default_factory=dict)
    """Names for the labels as they stand in the file, for example {"0": negative}."""
    label_separator: str | None = None
    """What separates several labels in one field (multi-label classification)."""
