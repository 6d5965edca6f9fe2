"""The `data.prepare` part of a recipe: how texts become a corpus."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator

from tfllm.config import Settings


class PrepareSettings(Settings):
    """What `tfllm prepare` makes of the training files. A document is a record of a table or of
    JSON lines; of plain text what `data.format` says: a line (text), what stands between blank
    lines (paragraphs), or a file (document)."""

    document_start: str | None = None
    """Plain text: a regular expression; a line that it is found in begins a document."""
    sentences: Literal["punctuation", "lines", "none"] | None = None
    """How a document is cut into sentences: at punctuation and line ends, at line ends alone, or
    not at all. Unset: punctuation, and none where the task is causal_lm."""
    join_lines: bool = False
    """Lines are wrapped: a line end is a space and ends no sentence."""
    shortest_characters: int = Field(default=1, ge=1)
    """Documents with fewer characters are left out, and counted."""
    longest_characters: int = Field(default=1_000_000, ge=1000)
    """Longer documents are divided, at a line end where there is one."""
    duplicates: Literal["keep", "exact", "near"] = "exact"
    """Which later documents are left out: none, those of the same text (white space aside), or
    those nearly the same, too."""
    similarity: float = Field(default=0.8, ge=0.5, le=1)
    """near: the least share of common five-word sequences (Jaccard, estimated by MinHash)."""
    max_bad_lines: int | None = Field(default=None, ge=0)
    """Stop when more lines than this cannot be used; unset: go on, count and list them."""
    shard_megabytes: int = Field(default=64, ge=1)
    """About the size of a shard file; a finished shard is not made again after a kill."""

    @field_validator("document_start")
    @classmethod
    def _is_expression(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return value
