"""What every tokenizer gives: rows of model input with the way back to the text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tfllm.errors import SettingError

if TYPE_CHECKING:
    from tfllm.tokenizers.graph import GraphTokenizer

PAIR_SPECIALS = 3  # [CLS] a [SEP] b [SEP]
SINGLE_SPECIALS = 2  # [CLS] a [SEP]


def kept_lengths(first: int, second: int, budget: int) -> tuple[int, int]:
    """How many tokens of each text stay when a pair may have `budget` tokens, specials not counted.

    Longest-first truncation in the closed form of Hugging Face tokenizers
    (`utils/truncation.rs`): the shorter text stays whole as long as it fills at most half, and the
    odd token goes to the longer text (to the second where both are equally long).
    """
    if first + second <= budget:
        return first, second
    shorter, longer = sorted((first, second))
    longer = shorter if shorter > budget else max(shorter, budget - shorter)
    if shorter + longer > budget:
        shorter, longer = budget // 2, budget // 2 + budget % 2
    return (longer, shorter) if first > second else (shorter, longer)


def window_ranges(length: int, size: int, stride: int) -> list[tuple[int, int]]:
    """Half-open ranges of `size` tokens that overlap by `stride` and cover `length` tokens."""
    ranges = [(0, min(size, length))]
    while ranges[-1][1] < length:
        start = ranges[-1][0] + size - stride
        ranges.append((start, min(start + size, length)))
    return ranges


def check_max_length(max_length: int | None, specials: int) -> None:
    """Raises SettingError when not even the special tokens fit."""
    if max_length is not None and max_length < specials:
        raise SettingError(
            f"max_length {max_length} has no room for the {specials} special tokens of a row. "
            "Set it higher."
        )


def check_stride(max_length: int, stride: int) -> None:
    """Raises SettingError when windows of `max_length` tokens cannot overlap by `stride`."""
    if stride < 0 or stride + PAIR_SPECIALS >= max_length:
        raise SettingError(
            f"stride {stride} does not fit windows of max_length {max_length}: it must lie between "
            f"0 and {max_length - PAIR_SPECIALS - 1}. Lower the stride or raise max_length."
        )


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
    """Text to ids and back; `graph()` gives the same as TensorFlow ops."""

    kind: str
    """The vocabulary's kind: "wordpiece"."""

    @property
    def vocabulary(self) -> list[str]:
        """id -> token"""
        ...

    @property
    def vocabulary_size(self) -> int: ...
    @property
    def pad_id(self) -> int: ...
    @property
    def unknown_id(self) -> int: ...
    @property
    def start_id(self) -> int:
        """[CLS]"""
        ...

    @property
    def end_id(self) -> int:
        """[SEP]"""
        ...

    @property
    def mask_id(self) -> int: ...
    @property
    def lowercase(self) -> bool: ...

    def encode(
        self, text: str, pair: str | None = None, *, max_length: int | None = None
    ) -> Encoding:
        """One row; a pair is cut longest-first to `max_length` tokens, special tokens included."""
        ...

    def encode_batch(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        *,
        max_length: int | None = None,
    ) -> list[Encoding]:
        """`encode` for many texts at once, in parallel."""
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
        """The text of token ids."""
        ...

    def save(self, directory: str | Path) -> None:
        """Writes the tokenizer's files in Hugging Face's form."""
        ...

    def graph(self, profile: str = "reference") -> GraphTokenizer:
        """The same tokenizer as TensorFlow ops."""
        ...
