"""The special tokens around texts, and the rows that every tokenizer makes with them.

A tokenizer says how it splits a text; rows, truncation and windows are the same for all.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, cast

import numpy as np

from tfllm.tokenizers import word_pieces
from tfllm.tokenizers.base import (
    Encoding,
    check_max_length,
    check_stride,
    kept_lengths,
    kept_question,
    window_ranges,
)


@dataclass(frozen=True)
class Form:
    """Rows `start a end` and `start a between b end`, special tokens as ids."""

    start: tuple[int, ...] = ()
    between: tuple[int, ...] = ()
    end: tuple[int, ...] = ()
    between_types: tuple[int, ...] = ()
    """type_ids of `between`"""
    second_type: int = 0
    """type_id of the second text and of the `end` after it; all else is of type 0"""

    @property
    def single_specials(self) -> int:
        return len(self.start) + len(self.end)

    @property
    def pair_specials(self) -> int:
        return self.single_specials + len(self.between)

    @property
    def without_specials(self) -> Form:
        return Form(second_type=self.second_type)


def bert(start: int, end: int) -> Form:
    """`[CLS] a [SEP] b [SEP]`, types 0 and 1: BERT, ALBERT."""
    return Form((start,), (end,), (end,), (0,), 1)


class Piece(NamedTuple):
    """A range of one text's tokens."""

    ids: list[int]
    offsets: list[tuple[int, int]]
    word_ids: list[int | None]


class Tokens(Protocol):
    """What a splitter returns for one text; an Encoding of the `tokenizers` package is one."""

    ids: Any
    offsets: Any
    word_ids: Any

    def __len__(self) -> int: ...


class RowTokenizer:
    """Rows for a tokenizer that gives `form`, `_split` and its vocabulary's marks."""

    @property
    def form(self) -> Form:
        raise NotImplementedError

    @property
    def target(self) -> Any:
        """The tokenizer of targets, where a task has sources and targets: itself for most."""
        return self

    def check_rows(self, max_length: int | None) -> None:
        """Raises TokenizerError where rows of at most `max_length` tokens are not known."""

    def _split(self, texts: Sequence[str]) -> Sequence[Tokens]:
        """Tokens of each text, without special tokens around them, uncut."""
        raise NotImplementedError

    def encode(
        self,
        text: str,
        pair: str | None = None,
        *,
        max_length: int | None = None,
        add_special_tokens: bool = True,
    ) -> Encoding:
        """One row; a pair is cut longest-first to `max_length` tokens, special tokens included."""
        pairs = None if pair is None else [pair]
        return self.encode_batch(
            [text], pairs, max_length=max_length, add_special_tokens=add_special_tokens
        )[0]

    def encode_batch(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        *,
        max_length: int | None = None,
        add_special_tokens: bool = True,
    ) -> list[Encoding]:
        """`encode` for many texts at once, in parallel."""
        self.check_rows(max_length)
        form = self.form if add_special_tokens else self.form.without_specials
        first = self._split(texts)
        if pairs is None:
            check_max_length(max_length, form.single_specials)
            room = None if max_length is None else max_length - form.single_specials
            return [_row(form, [_cut(a, 0, room)]) for a in first]
        check_max_length(max_length, form.pair_specials)
        rows = []
        for a, b in zip(first, self._split(pairs), strict=True):
            lengths: tuple[int | None, int | None] = (None, None)
            if max_length is not None:
                lengths = kept_lengths(len(a), len(b), max_length - form.pair_specials)
            rows.append(_row(form, [_cut(a, 0, lengths[0]), _cut(b, 0, lengths[1])]))
        return rows

    def encode_ids(
        self, texts: Sequence[str], *, add_special_tokens: bool = True
    ) -> list[list[int]]:
        """The ids alone of many texts, in parallel: for a corpus or a prompt."""
        form = self.form if add_special_tokens else self.form.without_specials
        return [[*form.start, *ids, *form.end] for ids in self._split_ids(texts)]

    def _split_ids(self, texts: Sequence[str]) -> list[list[int]]:
        return [list(tokens.ids) for tokens in self._split(texts)]

    def chat(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True
    ) -> list[int]:
        """A conversation's ids, as the chat template writes it (see `tokenizers.chat`)."""
        from tfllm.tokenizers import chat

        return chat.encode(cast(Any, self), messages, add_generation_prompt=add_generation_prompt)

    def encode_words(self, words: Sequence[str], *, max_length: int | None = None) -> Encoding:
        """One row of words that are split already; `word_ids` index `words`.

        The ids are those of the text that one space between the words makes, so that a model meets
        the same rows in training and in a text. A word without any character that the
        normalisation keeps has no token. Offsets count within each word.
        """
        self.check_rows(max_length)
        check_max_length(max_length, self.form.single_specials)
        room = None if max_length is None else max_length - self.form.single_specials
        piece = _cut(self._split([" ".join(words)])[0], 0, room)
        marks = self.token_marks[np.array(piece.ids, np.int64)]
        return _row(self.form, [_in_words(words, piece, marks)])

    @functools.cached_property
    def token_marks(self) -> np.ndarray:
        """What `word_pieces` asks of every token: int8 [V]."""
        return word_pieces.token_marks(cast(Any, self))

    @functools.cached_property
    def fillings(self) -> list[tuple[int, str]]:
        """How each token is written in the place of a mask: `word_pieces.fillings`."""
        return word_pieces.fillings(cast(Any, self))

    def encode_windows(
        self, question: str, context: str, *, max_length: int, stride: int
    ) -> list[Encoding]:
        """Rows `start question between window end` whose windows overlap by `stride` tokens.

        As Hugging Face's truncation "only_second" with overflowing tokens, but for a question so
        long that windows could hardly move: it is cut (see `base.kept_question`).
        """
        form = self.form
        check_stride(max_length, stride, form.pair_specials)
        asked, text = self._split([question, context])
        room = max_length - form.pair_specials
        kept = kept_question(len(asked), len(text), room, stride)
        head = _cut(asked, 0, kept)
        ranges = window_ranges(len(text), room - kept, stride)
        return [_row(form, [head, _cut(text, start, stop)]) for start, stop in ranges]


def _cut(tokens: Tokens, start: int, stop: int | None) -> Piece:
    return Piece(tokens.ids[start:stop], tokens.offsets[start:stop], tokens.word_ids[start:stop])


def _in_words(words: Sequence[str], piece: Piece, marks: np.ndarray) -> Piece:
    """A piece of the words' joined text with their numbers, and offsets within them."""
    sizes = np.array([len(word) for word in words], np.int64)
    begins = np.cumsum(sizes + 1) - sizes - 1
    owner = np.repeat(np.arange(len(words)), sizes + 1)[:-1]
    owner = np.where(word_pieces.is_white(" ".join(words)), word_pieces.NO_WORD, owner)
    offsets = np.array(piece.offsets, np.int64).reshape(-1, 2)
    numbers = word_pieces.word_numbers(owner, offsets, marks)
    begin, size = (np.append(part, 0)[numbers] for part in (begins, sizes))
    within = np.clip(offsets - begin[:, None], 0, size[:, None])
    return Piece(
        piece.ids,
        [(int(start), int(end)) for start, end in within],
        [None if number == word_pieces.NO_WORD else int(number) for number in numbers],
    )


def _row(form: Form, pieces: Sequence[Piece]) -> Encoding:
    row = Encoding([], [], [], [], [])
    _add_specials(row, form.start, [0] * len(form.start))
    for sequence, piece in enumerate(pieces):
        if sequence:
            _add_specials(row, form.between, form.between_types)
        row.ids.extend(piece.ids)
        row.offsets.extend(piece.offsets)
        row.word_ids.extend(piece.word_ids)
        row.sequence_ids.extend([sequence] * len(piece.ids))
        row.type_ids.extend([form.second_type if sequence else 0] * len(piece.ids))
    last_type = form.second_type if len(pieces) > 1 else 0
    _add_specials(row, form.end, [last_type] * len(form.end))
    return row


def _add_specials(row: Encoding, ids: Sequence[int], types: Sequence[int]) -> None:
    row.ids.extend(ids)
    row.type_ids.extend(types)
    row.offsets.extend([(0, 0)] * len(ids))
    row.sequence_ids.extend([None] * len(ids))
    row.word_ids.extend([None] * len(ids))


def scalars(text: str) -> str:
    """The text with lone surrogates, which UTF-8 cannot hold, replaced by U+FFFD."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text)
    return text
