"""What every tokenizer gives: rows of model input with the way back to the text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tfllm.errors import TokenizerError


@dataclass(frozen=True)
class RowTemplate:
    """Rows `prefix a suffix` and `prefix a separator b suffix`, special tokens as ids."""

    prefix: tuple[int, ...] = ()
    separator: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
    separator_type_ids: tuple[int, ...] = ()
    """token_type_ids of `separator`"""
    pair_type_id: int = 0
    """token_type_id of the second text and of the `suffix` after it; everything else has type 0"""

    @property
    def num_special_tokens(self) -> int:
        """Special tokens of a row of one text."""
        return len(self.prefix) + len(self.suffix)

    @property
    def num_pair_special_tokens(self) -> int:
        """Special tokens of a row of two texts."""
        return self.num_special_tokens + len(self.separator)

    @property
    def without_special_tokens(self) -> RowTemplate:
        return RowTemplate(pair_type_id=self.pair_type_id)


def bert_template(start: int, end: int) -> RowTemplate:
    """`[CLS] a [SEP] b [SEP]`, types 0 and 1: BERT, ALBERT."""
    return RowTemplate((start,), (end,), (end,), (0,), 1)


@dataclass(frozen=True)
class Encoding:
    """One row of model input of T tokens, special tokens included. Every list has T entries.

    `offsets` count characters (Unicode code points) of the text that a token came from, (0, 0) for
    the special tokens put around it; for pre-split words they count within the word.
    `sequence_ids` are 0 in the first text, 1 in the second, None for special tokens. `word_ids`
    number the words of each text.
    """

    ids: list[int]
    type_ids: list[int]
    offsets: list[tuple[int, int]]
    sequence_ids: list[int | None]
    word_ids: list[int | None]

    def __len__(self) -> int:
        return len(self.ids)


class Tokenizer(Protocol):
    """Text to ids and back; `graph()` gives the same as TensorFlow ops.

    Special tokens that a vocabulary lacks have the id None. Text is Unicode; a lone surrogate
    counts as U+FFFD. Special tokens written in a text are recognised.
    """

    kind: str
    """The vocabulary's kind: "wordpiece", "bytepair", "sentencepiece" or "characters"."""

    @property
    def vocabulary(self) -> list[str]:
        """id -> token"""
        ...

    @property
    def vocabulary_size(self) -> int: ...
    @property
    def pad_token_id(self) -> int | None: ...
    @property
    def unk_token_id(self) -> int | None: ...
    @property
    def bos_token_id(self) -> int | None:
        """[CLS], <s>: begins a row or a document"""
        ...

    @property
    def eos_token_id(self) -> int | None:
        """[SEP], </s>, <|endoftext|>: ends a row or a document"""
        ...

    @property
    def mask_token_id(self) -> int | None: ...
    @property
    def all_special_ids(self) -> frozenset[int]:
        """All special tokens: `decode` leaves them out."""
        ...

    @property
    def lowercase(self) -> bool: ...

    @property
    def token_kinds(self) -> np.ndarray:
        """How each token says where words begin (`word_alignment`): int8 [V]."""
        ...

    @property
    def fill_mask_texts(self) -> list[tuple[int, str]]:
        """How each token is written in the place of a mask (`word_alignment.fill_mask_texts`)."""
        ...

    @property
    def row_template(self) -> RowTemplate:
        """The special tokens that `encode` puts around texts."""
        ...

    @property
    def target(self) -> Tokenizer:
        """The tokenizer of targets, where a task has sources and targets: itself for most."""
        ...

    @property
    def chat_template(self) -> str | None:
        """The Jinja template of conversations (see `tokenizers.chat`)."""
        ...

    def check_truncation_side(self, max_length: int | None) -> None:
        """Raises TokenizerError where rows cut to `max_length` tokens would lose their start."""
        ...

    def token_id(self, token: str) -> int | None:
        """The id of a token, None where the vocabulary lacks it."""
        ...

    def encode(
        self,
        text: str,
        pair: str | None = None,
        *,
        max_length: int | None = None,
        add_special_tokens: bool = True,
    ) -> Encoding:
        """One row; a pair is cut longest-first to `max_length` tokens, special tokens included."""
        ...

    def encode_batch(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        *,
        max_length: int | None = None,
        add_special_tokens: bool = True,
    ) -> list[Encoding]:
        """`encode` for many texts at once, in parallel."""
        ...

    def encode_ids(
        self, texts: Sequence[str], *, add_special_tokens: bool = True
    ) -> list[list[int]]:
        """The ids alone of many texts, in parallel: for a corpus or a prompt."""
        ...

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True
    ) -> list[int]:
        """A conversation's ids, as the chat template writes it (see `tokenizers.chat`)."""
        ...

    def encode_words(self, words: Sequence[str], *, max_length: int | None = None) -> Encoding:
        """One row of words that are split already; `word_ids` index `words`."""
        ...

    def encode_windows(
        self, question: str, context: str, *, max_length: int, stride: int
    ) -> list[Encoding]:
        """Rows that repeat the question over a context cut into overlapping windows."""
        ...

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids, always valid Unicode; an id without a token has none.

        Raises TokenizerError for a negative id.
        """
        ...

    def save(self, directory: str | Path) -> None:
        """Writes the tokenizer's files in Hugging Face's form."""
        ...

    def graph(self, profile: str = "reference") -> Any:
        """The same tokenizer as TensorFlow ops."""
        ...


def valid_id_ranges(tokenizer: Tokenizer, size: int) -> tuple[tuple[int, int], ...]:
    """Half-open ranges of the ids below `size` that have a token; () where all have one.

    A table of embeddings may have more rows than the vocabulary has tokens, and ids may have gaps.
    """
    present = [bool(token) for token in tokenizer.vocabulary[:size]]
    if len(present) == size and all(present):
        return ()
    edges = [
        number
        for number, (before, now) in enumerate(
            zip([False, *present], [*present, False], strict=True)
        )
        if before != now
    ]
    return tuple(zip(edges[::2], edges[1::2], strict=True))


def check_ids(ids: Sequence[int]) -> None:
    """Raises TokenizerError naming the first id that is negative.

    An id behind the vocabulary is no error: embedding tables are padded, and such an id has no
    text.
    """
    for number in ids:
        if number < 0:
            raise TokenizerError(f"There is no token {number}: ids begin with 0.")
