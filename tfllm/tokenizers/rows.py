"""The rows of model input that every tokenizer builds: special tokens, truncation, windows.

A tokenizer defines how it tokenizes a text; rows, truncation and windows are the same for all.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, cast

import numpy as np

from tfllm.errors import SettingError
from tfllm.tokenizers import chat, word_alignment
from tfllm.tokenizers.base import Encoding, RowTemplate, Tokenizer
from tfllm.tokenizers.tokenizer_config import SpecialTokens, TokenizerConfig

# Windows over a context move by at least 1 / WINDOW_SHARE of the room that the stride leaves.
WINDOW_SHARE = 4


class TokenSequence(Protocol):
    """The tokens of one text, as an Encoding of the `tokenizers` package has them."""

    @property
    def ids(self) -> list[int]: ...
    @property
    def offsets(self) -> list[tuple[int, int]]: ...
    @property
    def word_ids(self) -> list[int | None]: ...
    def __len__(self) -> int: ...


@dataclass(frozen=True)
class TextTokens:
    """The tokens of one text, or a range of them, without special tokens around them."""

    ids: list[int]
    offsets: list[tuple[int, int]]
    """The characters that each token came from, in code points of the text."""
    word_ids: list[int | None]
    """The index of the word that each token belongs to."""

    def __len__(self) -> int:
        return len(self.ids)


class RowTokenizer:
    """Builds rows for a tokenizer that has a `row_template`, `_tokenize` and a vocabulary."""

    row_template: RowTemplate
    """The special tokens that `encode` puts around texts."""

    @property
    def target(self) -> Self:
        """The tokenizer of targets, where a task has sources and targets: itself for most."""
        return self

    def check_truncation_side(self, max_length: int | None) -> None:
        """Check that rows are truncated on the right: see `base.Tokenizer`."""

    def _tokenize(self, texts: Sequence[str]) -> Sequence[TokenSequence]:
        """The tokens of each text, without special tokens around them, not truncated."""
        raise NotImplementedError

    def encode(
        self,
        text: str,
        pair: str | None = None,
        *,
        max_length: int | None = None,
        add_special_tokens: bool = True,
    ) -> Encoding:
        """Encode one text or a pair to a row: see `base.Tokenizer`."""
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
        """Encode many texts or pairs in parallel; see `encode`."""
        self.check_truncation_side(max_length)
        template = (
            self.row_template if add_special_tokens else self.row_template.without_special_tokens
        )
        first = self._tokenize(texts)
        if pairs is None:
            check_max_length(max_length, template.num_special_tokens)
            room = None if max_length is None else max_length - template.num_special_tokens
            return [_row(template, [_slice(a, 0, room)]) for a in first]
        check_max_length(max_length, template.num_pair_special_tokens)
        rows = []
        for a, b in zip(first, self._tokenize(pairs), strict=True):
            lengths: tuple[int | None, int | None] = (None, None)
            if max_length is not None:
                lengths = truncated_lengths(
                    len(a), len(b), max_length - template.num_pair_special_tokens
                )
            rows.append(_row(template, [_slice(a, 0, lengths[0]), _slice(b, 0, lengths[1])]))
        return rows

    def encode_ids(
        self, texts: Sequence[str], *, add_special_tokens: bool = True
    ) -> list[list[int]]:
        """Encode many texts in parallel to ids only: for a corpus or a prompt."""
        template = (
            self.row_template if add_special_tokens else self.row_template.without_special_tokens
        )
        return [[*template.prefix, *ids, *template.suffix] for ids in self._tokenize_ids(texts)]

    def _tokenize_ids(self, texts: Sequence[str]) -> list[list[int]]:
        return [list(tokens.ids) for tokens in self._tokenize(texts)]

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True
    ) -> list[int]:
        """Encode a conversation with the chat template (see `tokenizers.chat`)."""
        return chat.encode(
            cast(Tokenizer, self), messages, add_generation_prompt=add_generation_prompt
        )

    def encode_words(self, words: Sequence[str], *, max_length: int | None = None) -> Encoding:
        """Encode pre-split words to a row; `word_ids` index `words`, offsets count within words.

        The ids are those of the words joined by spaces, so that a model reads the same rows in
        training and in a text. A word of which normalization leaves no character has no token.

        Args:
            words: The words of one text.
            max_length: Tokens of the row at most, special tokens included.

        Raises:
            SettingError: `max_length` has no room for the special tokens.
        """
        self.check_truncation_side(max_length)
        check_max_length(max_length, self.row_template.num_special_tokens)
        room = None if max_length is None else max_length - self.row_template.num_special_tokens
        tokens = _slice(self._tokenize([" ".join(words)])[0], 0, room)
        kinds = self.token_kinds[np.array(tokens.ids, np.int64)]
        return _row(self.row_template, [_align_to_words(words, tokens, kinds)])

    @functools.cached_property
    def token_kinds(self) -> np.ndarray:
        """The kind of each token (`word_alignment.token_kinds`): int8 [V]."""
        return word_alignment.token_kinds(cast(Tokenizer, self))

    @functools.cached_property
    def fill_mask_texts(self) -> list[tuple[int, str]]:
        """How each token is written into a text: `word_alignment.fill_mask_texts`."""
        return word_alignment.fill_mask_texts(cast(Tokenizer, self))

    def encode_windows(
        self, question: str, context: str, *, max_length: int, stride: int
    ) -> list[Encoding]:
        """Encode a question with overlapping windows over its context. See `base.Tokenizer`.

        As Hugging Face's truncation "only_second" with overflowing tokens, except that a question
        so long that windows could hardly move is truncated (see `truncated_question_length`).

        Raises:
            SettingError: Windows of `max_length` tokens cannot overlap by `stride`.
        """
        template = self.row_template
        check_stride(max_length, stride, template.num_pair_special_tokens)
        question_tokens, context_tokens = self._tokenize([question, context])
        room = max_length - template.num_pair_special_tokens
        length = truncated_question_length(len(question_tokens), len(context_tokens), room, stride)
        head = _slice(question_tokens, 0, length)
        ranges = window_ranges(len(context_tokens), room - length, stride)
        return [
            _row(template, [head, _slice(context_tokens, start, stop)]) for start, stop in ranges
        ]


class NamedTokenizer(RowTokenizer):
    """The properties of `base.Tokenizer` that follow from the fields below, of a dataclass."""

    special_tokens: SpecialTokens
    row_template: RowTemplate
    target_template: RowTemplate | None
    """The template of targets, where it differs."""
    vocabulary: list[str]
    config: Mapping[str, Any]
    """tokenizer_config.json"""
    _ids: Mapping[str, int]

    def check_truncation_side(self, max_length: int | None) -> None:
        """Check that rows are truncated on the right: see `base.Tokenizer`."""
        if max_length is not None:
            TokenizerConfig(self.config).check_truncation()

    @property
    def target(self) -> Self:
        """The tokenizer with the template of targets."""
        if self.target_template is None:
            return self
        return self.with_templates(self.target_template, None, self.config)

    def with_templates(
        self, source: RowTemplate, target: RowTemplate | None, config: Mapping[str, Any]
    ) -> Self:
        """Return a copy with other templates and settings.

        Args:
            source: The template of sources.
            target: The template of targets; None: that of sources.
            config: The content of tokenizer_config.json.
        """
        instance: Any = self
        return dataclasses.replace(
            instance, row_template=source, target_template=target, config=config
        )

    @property
    def vocabulary_size(self) -> int:
        """The number of tokens."""
        return len(self.vocabulary)

    @property
    def lowercase(self) -> bool:
        """False: texts are not lowercased, or only by the file's own normalizer."""
        return False

    @property
    def pad_token_id(self) -> int | None:
        """The id of the padding token."""
        return self.token_id(self.special_tokens.pad_token)

    @property
    def unk_token_id(self) -> int | None:
        """The id of the unknown token."""
        return self.token_id(self.special_tokens.unk_token)

    @property
    def bos_token_id(self) -> int | None:
        """The id of the token that begins a row."""
        return self.token_id(self.special_tokens.bos_token)

    @property
    def eos_token_id(self) -> int | None:
        """The id of the token that ends a row."""
        return self.token_id(self.special_tokens.eos_token)

    @property
    def mask_token_id(self) -> int | None:
        """The id of the mask token."""
        return self.token_id(self.special_tokens.mask_token)

    def token_id(self, token: str | None) -> int | None:
        """Return the id of a token, or None where the vocabulary lacks it."""
        return None if token is None else self._ids.get(token)


def truncated_lengths(first: int, second: int, budget: int) -> tuple[int, int]:
    """Return how many tokens of each text of a pair are kept by longest-first truncation.

    The shorter text is complete as long as it fills at most half of the budget, and the odd token
    goes to the longer text (to the second where both are equally long).

    Source: Hugging Face `tokenizers` (utils/truncation.rs), in closed form.

    Args:
        first: Tokens of the first text.
        second: Tokens of the second text.
        budget: Tokens of the pair at most, without special tokens.
    """
    if first + second <= budget:
        return first, second
    shorter, longer = sorted((first, second))
    longer = shorter if shorter > budget else max(shorter, budget - shorter)
    if shorter + longer > budget:
        shorter, longer = budget // 2, budget // 2 + budget % 2
    return (longer, shorter) if first > second else (shorter, longer)


def window_ranges(length: int, size: int, stride: int) -> list[tuple[int, int]]:
    """Divide a text into overlapping windows: half-open ranges of tokens.

    Args:
        length: Tokens of the text.
        size: Tokens of a window.
        stride: Tokens that two neighbouring windows share.
    """
    ranges = [(0, min(size, length))]
    while ranges[-1][1] < length:
        start = ranges[-1][0] + size - stride
        ranges.append((start, min(start + size, length)))
    return ranges


def truncated_question_length(question: int, context: int, room: int, stride: int) -> int:
    """Return how many tokens of a question are kept.

    All, where the context fits beside it or windows can move by a quarter of `room - stride`. A
    longer question is truncated to leave that much: Hugging Face keeps it, and with a question that
    takes nearly the whole row would produce a row for every token of the context.

    Args:
        question: Tokens of the question.
        context: Tokens of the context.
        room: Tokens of a row for question and window.
        stride: Tokens that two neighbouring windows share.
    """
    if question + context <= room:
        return question
    movable = room - stride
    return min(question, movable - -(-movable // WINDOW_SHARE))


def check_max_length(max_length: int | None, specials: int) -> None:
    """Check that rows have room for the special tokens.

    Args:
        max_length: Tokens of a row; None: any number.
        specials: Number of special tokens.

    Raises:
        SettingError: They have none.
    """
    if max_length is not None and max_length < specials:
        raise SettingError(
            f"max_length {max_length} has no room for the {specials} special tokens of a row. "
            "Set it higher."
        )


def check_stride(max_length: int, stride: int, specials: int) -> None:
    """Check that windows can overlap.

    Args:
        max_length: Tokens of a row.
        stride: Tokens that two neighbouring windows share.
        specials: Special tokens of a row.

    Raises:
        SettingError: They cannot.
    """
    if stride < 0 or stride + specials >= max_length:
        raise SettingError(
            f"stride {stride} does not fit windows of max_length {max_length}: it must lie between "
            f"0 and {max_length - specials - 1}. Lower the stride or raise max_length."
        )


def _slice(tokens: TokenSequence, start: int, stop: int | None) -> TextTokens:
    return TextTokens(
        tokens.ids[start:stop], tokens.offsets[start:stop], tokens.word_ids[start:stop]
    )


def _align_to_words(words: Sequence[str], tokens: TextTokens, kinds: np.ndarray) -> TextTokens:
    """Tokens of the joined words with the index of each one's word, and offsets within it."""
    sizes = np.array([len(word) for word in words], np.int64)
    begins = np.cumsum(sizes + 1) - sizes - 1
    word_of_character = np.repeat(np.arange(len(words)), sizes + 1)[:-1]
    word_of_character = np.where(
        word_alignment.is_white(" ".join(words)), word_alignment.NO_WORD, word_of_character
    )
    offsets = np.array(tokens.offsets, np.int64).reshape(-1, 2)
    word_ids = word_alignment.word_ids_of_tokens(word_of_character, offsets, kinds)
    begin, size = (np.append(part, 0)[word_ids] for part in (begins, sizes))
    within = np.clip(offsets - begin[:, None], 0, size[:, None])
    return TextTokens(
        tokens.ids,
        [(int(start), int(end)) for start, end in within],
        [None if index == word_alignment.NO_WORD else int(index) for index in word_ids],
    )


def _row(template: RowTemplate, texts: Sequence[TextTokens]) -> Encoding:
    row = Encoding([], [], [], [], [])
    _add_specials(row, template.prefix, [0] * len(template.prefix))
    for sequence, tokens in enumerate(texts):
        if sequence:
            _add_specials(row, template.separator, template.separator_type_ids)
        row.ids.extend(tokens.ids)
        row.offsets.extend(tokens.offsets)
        row.word_ids.extend(tokens.word_ids)
        row.sequence_ids.extend([sequence] * len(tokens))
        row.type_ids.extend([template.pair_type_id if sequence else 0] * len(tokens))
    last_type = template.pair_type_id if len(texts) > 1 else 0
    _add_specials(row, template.suffix, [last_type] * len(template.suffix))
    return row


def _add_specials(row: Encoding, ids: Sequence[int], types: Sequence[int]) -> None:
    row.ids.extend(ids)
    row.type_ids.extend(types)
    row.offsets.extend([(0, 0)] * len(ids))
    row.sequence_ids.extend([None] * len(ids))
    row.word_ids.extend([None] * len(ids))


def replace_surrogates(text: str) -> str:
    """Replace lone surrogates, which UTF-8 cannot encode, by U+FFFD."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text)
    return text
