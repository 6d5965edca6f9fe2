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
    """How a data file is read."""

    format: Format | None = None
    """Format of the file; unset: by its suffix. `text`: one text per line; `paragraphs`: texts
    separated by blank lines; `document`: the whole file is one text; `dialogues`: one conversation
    per line with `__eou__` after each turn; `parallel`: two aligned text files, named as in
    `train.{en,de}.gz`."""
    columns: dict[str, str | int] = Field(default_factory=dict)
    """Field of an example: the file's column, by name, or without a header by index from 0."""
    header: bool = True
    """Whether the first line of a TSV or CSV file has the names of columns."""
    quoting: bool | None = None
    """Whether fields may be in double quotes. Unset: yes in CSV, no in TSV."""
    labels: dict[str, str | float] = Field(default_factory=dict)
    """Names of the labels in the file, for example {"0": negative}."""
    label_separator: str | None = None
    """Separator of several labels in one field (multi-label classification)."""
