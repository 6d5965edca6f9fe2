"""The special tokens around texts, and the rows that every tokenizer makes with them.

A tokenizer says how it splits a text; rows, truncation and windows are the same for all.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, cast

import numpy as np

from tfllm.errors import SettingError
from tfllm.tokenizers import chat, word_alignment
from tfllm.tokenizers.base import Encoding, RowTemplate
from tfllm.tokenizers.tokenizer_config import SpecialTokens, TokenizerConfig

# Windows over a context move by at least this share of the room that the stride leaves.
WINDOW_SHARE = 4


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
    """Rows for a tokenizer that gives `template`, `_split` and its vocabulary's marks."""

    row_template: RowTemplate
    """The special tokens that `encode` puts around texts."""

    @property
    def target(self) -> Any:
        """The tokenizer of targets, where a task has sources and targets: itself for most."""
        return self

    def check_truncation_side(self, max_length: int | None) -> None:
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
        self.check_truncation_side(max_length)
        template = (
            self.row_template if add_special_tokens else self.row_template.without_special_tokens
        )
        first = self._split(texts)
        if pairs is None:
            check_max_length(max_length, template.num_special_tokens)
            room = None if max_length is None else max_length - template.num_special_tokens
            return [_row(template, [_cut(a, 0, room)]) for a in first]
        check_max_length(max_length, template.num_pair_special_tokens)
        rows = []
        for a, b in zip(first, self._split(pairs), strict=True):
            lengths: tuple[int | None, int | None] = (None, None)
            if max_length is not None:
                lengths = truncated_lengths(
                    len(a), len(b), max_length - template.num_pair_special_tokens
                )
            rows.append(_row(template, [_cut(a, 0, lengths[0]), _cut(b, 0, lengths[1])]))
        return rows

    def encode_ids(
        self, texts: Sequence[str], *, add_special_tokens: bool = True
    ) -> list[list[int]]:
        """The ids alone of many texts, in parallel: for a corpus or a prompt."""
        template = (
            self.row_template if add_special_tokens else self.row_template.without_special_tokens
        )
        return [[*template.prefix, *ids, *template.suffix] for ids in self._split_ids(texts)]

    def _split_ids(self, texts: Sequence[str]) -> list[list[int]]:
        return [list(tokens.ids) for tokens in self._split(texts)]

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True
    ) -> list[int]:
        """A conversation's ids, as the chat template writes it (see `tokenizers.chat`)."""
        return chat.encode(cast(Any, self), messages, add_generation_prompt=add_generation_prompt)

    def encode_words(self, words: Sequence[str], *, max_length: int | None = None) -> Encoding:
        """One row of words that are split already; `word_ids` index `words`.

        The ids are those of the text that one space between the words makes, so that a model meets
        the same rows in training and in a text. A word without any character that the
        normalisation keeps has no token. Offsets count within each word.
        """
        self.check_truncation_side(max_length)
        check_max_length(max_length, self.row_template.num_special_tokens)
        room = None if max_length is None else max_length - self.row_template.num_special_tokens
        piece = _cut(self._split([" ".join(words)])[0], 0, room)
        marks = self.token_kinds[np.array(piece.ids, np.int64)]
        return _row(self.row_template, [_in_words(words, piece, marks)])

    @functools.cached_property
    def token_kinds(self) -> np.ndarray:
        """What `word_alignment` asks of every token: int8 [V]."""
        return word_alignment.token_kinds(cast(Any, self))

    @functools.cached_property
    def fill_mask_texts(self) -> list[tuple[int, str]]:
        """How each token is written in the place of a mask: `word_alignment.fill_mask_texts`."""
        return word_alignment.fill_mask_texts(cast(Any, self))

    def encode_windows(
        self, question: str, context: str, *, max_length: int, stride: int
    ) -> list[Encoding]:
        """Rows `start question between window end` whose windows overlap by `stride` tokens.

        As Hugging Face's truncation "only_second" with overflowing tokens, but for a question so
        long that windows could hardly move: it is cut (see `truncated_question_length`).
        """
        template = self.row_template
        check_stride(max_length, stride, template.num_pair_special_tokens)
        asked, text = self._split([question, context])
        room = max_length - template.num_pair_special_tokens
        kept = truncated_question_length(len(asked), len(text), room, stride)
        head = _cut(asked, 0, kept)
        ranges = window_ranges(len(text), room - kept, stride)
        return [_row(template, [head, _cut(text, start, stop)]) for start, stop in ranges]


class NamedTokenizer(RowTokenizer):
    """The properties of `base.Tokenizer` that follow from the fields below."""

    special_tokens: SpecialTokens
    row_template: RowTemplate
    target_template: RowTemplate | None
    """Of targets, where it differs."""
    vocabulary: list[str]
    config: Mapping[str, Any]
    """tokenizer_config.json"""
    _ids: Mapping[str, int]

    def check_truncation_side(self, max_length: int | None) -> None:
        """See RowTokenizer. A prompt is never cut by the tokenizer, so it does not matter there."""
        if max_length is not None:
            TokenizerConfig(self.config).check_truncation()

    @property
    def target(self) -> Any:
        if self.target_template is None:
            return self
        changed: Any = self
        return dataclasses.replace(changed, row_template=self.target_template, target_template=None)

    @property
    def vocabulary_size(self) -> int:
        return len(self.vocabulary)

    @property
    def lowercase(self) -> bool:
        return False

    @property
    def pad_token_id(self) -> int | None:
        return self.token_id(self.special_tokens.pad_token)

    @property
    def unk_token_id(self) -> int | None:
        return self.token_id(self.special_tokens.unk_token)

    @property
    def bos_token_id(self) -> int | None:
        return self.token_id(self.special_tokens.bos_token)

    @property
    def eos_token_id(self) -> int | None:
        return self.token_id(self.special_tokens.eos_token)

    @property
    def mask_token_id(self) -> int | None:
        return self.token_id(self.special_tokens.mask_token)

    def token_id(self, token: str | None) -> int | None:
        """The id of a token, None where the vocabulary lacks it."""
        return None if token is None else self._ids.get(token)


def truncated_lengths(first: int, second: int, budget: int) -> tuple[int, int]:
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


def truncated_question_length(question: int, context: int, room: int, stride: int) -> int:
    """How many tokens of a question stay in rows of `room` tokens for question and window.

    All, where the context fits beside it or windows can move by a quarter of `room - stride`. A
    longer question is cut to leave that much: Hugging Face keeps it, and with a question that takes
    nearly the whole row would make a row for every token of the context.
    """
    if question + context <= room:
        return question
    movable = room - stride
    return min(question, movable - -(-movable // WINDOW_SHARE))


def check_max_length(max_length: int | None, specials: int) -> None:
    """Raises SettingError when not even the special tokens fit."""
    if max_length is not None and max_length < specials:
        raise SettingError(
            f"max_length {max_length} has no room for the {specials} special tokens of a row. "
            "Set it higher."
        )


def check_stride(max_length: int, stride: int, specials: int) -> None:
    """Raises SettingError when windows of `max_length` tokens cannot overlap by `stride`."""
    if stride < 0 or stride + specials >= max_length:
        raise SettingError(
            f"stride {stride} does not fit windows of max_length {max_length}: it must lie between "
            f"0 and {max_length - specials - 1}. Lower the stride or raise max_length."
        )


def _cut(tokens: Tokens, start: int, stop: int | None) -> Piece:
    return Piece(tokens.ids[start:stop], tokens.offsets[start:stop], tokens.word_ids[start:stop])


def _in_words(words: Sequence[str], piece: Piece, marks: np.ndarray) -> Piece:
    """A piece of the words' joined text with their numbers, and offsets within them."""
    sizes = np.array([len(word) for word in words], np.int64)
    begins = np.cumsum(sizes + 1) - sizes - 1
    owner = np.repeat(np.arange(len(words)), sizes + 1)[:-1]
    owner = np.where(word_alignment.is_white(" ".join(words)), word_alignment.NO_WORD, owner)
    offsets = np.array(piece.offsets, np.int64).reshape(-1, 2)
    numbers = word_alignment.word_ids_of_tokens(owner, offsets, marks)
    begin, size = (np.append(part, 0)[numbers] for part in (begins, sizes))
    within = np.clip(offsets - begin[:, None], 0, size[:, None])
    return Piece(
        piece.ids,
        [(int(start), int(end)) for start, end in within],
        [None if number == word_alignment.NO_WORD else int(number) for number in numbers],
    )


def _row(template: RowTemplate, pieces: Sequence[Piece]) -> Encoding:
    row = Encoding([], [], [], [], [])
    _add_specials(row, template.prefix, [0] * len(template.prefix))
    for sequence, piece in enumerate(pieces):
        if sequence:
            _add_specials(row, template.separator, template.separator_type_ids)
        row.ids.extend(piece.ids)
        row.offsets.extend(piece.offsets)
        row.word_ids.extend(piece.word_ids)
        row.sequence_ids.extend([sequence] * len(piece.ids))
        row.type_ids.extend([template.pair_type_id if sequence else 0] * len(piece.ids))
    last_type = template.pair_type_id if len(pieces) > 1 else 0
    _add_specials(row, template.suffix, [last_type] * len(template.suffix))
    return row


def _add_specials(row: Encoding, ids: Sequence[int], types: Sequence[int]) -> None:
    row.ids.extend(ids)
    row.type_ids.extend(types)
    row.offsets.extend([(0, 0)] * len(ids))
    row.sequence_ids.extend([None] * len(ids))
    row.word_ids.extend([None] * len(ids))


def replace_surrogates(text: str) -> str:
    """The text with lone surrogates, which UTF-8 cannot hold, replaced by U+FFFD."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text)
    return text
