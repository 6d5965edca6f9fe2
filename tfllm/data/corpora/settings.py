"""The `data.prepare` part of a recipe."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator

from tfllm.config import Settings


class PrepareSettings(Settings):
    """How `tfllm prepare` builds a corpus from the training files.

    A document is a record of a table or of JSON lines; in plain text it depends on `data.format`:
    a line (text), a paragraph (paragraphs) or a file (document)."""

    document_start: str | None = None
    """Plain text only: regular expression; a line with a match starts a new document."""
    sentences: Literal["punctuation", "lines", "none"] | None = None
    """How documents are split into sentences: at punctuation and line ends, at line ends alone, or
    not at all. Unset: punctuation; none if the task is causal_lm."""
    join_lines: bool = False
    """Treat line ends as spaces: for texts with wrapped lines."""
    shortest_characters: int = Field(default=1, ge=1)
    """Drop documents with fewer characters."""
    longest_characters: int = Field(default=1_000_000, ge=1000)
    """Split longer documents, at a line end if possible. In characters."""
    duplicates: Literal["keep", "exact", "near"] = "exact"
    """Deduplication: keep all documents, drop later ones with the same text (up to white space), or
    drop near duplicates too (MinHash)."""
    similarity: float = Field(default=0.8, ge=0.5, le=1)
    """Near duplicates: least Jaccard similarity of five-word shingles, estimated by MinHash."""
    max_bad_lines: int | None = Field(default=None, ge=0)
    """Stop when more lines than this are unusable; unset: skip, count and list them all."""
    shard_megabytes: int = Field(default=64, ge=1)
    """Approximate size of a shard file, in MiB; a resumed run keeps finished shards."""

    @field_validator("document_start")
    @classmethod
    def _is_expression(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return value
