"""What every tokenizer does: encode texts to rows of model input, and decode ids to text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tfllm.errors import TokenizerError

if TYPE_CHECKING:
    import tensorflow as tf


@dataclass(frozen=True)
class RowTemplate:
    """The special tokens of rows `prefix a suffix` and `prefix a separator b suffix`."""

    prefix: tuple[int, ...] = ()
    """Ids before the first text."""
    separator: tuple[int, ...] = ()
    """Ids between two texts."""
    suffix: tuple[int, ...] = ()
    """Ids after the last text."""
    separator_type_ids: tuple[int, ...] = ()
    """The segment ids of `separator`."""
    pair_type_id: int = 0
    """The segment id of the second text and of the `suffix` after it; all else has 0."""

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
        """The template of rows of the texts alone."""
        return RowTemplate(pair_type_id=self.pair_type_id)


def bert_template(start: int, end: int) -> RowTemplate:
    """Return the template `[CLS] a [SEP] b [SEP]` of BERT and ALBERT, with segment ids 0 and 1.

    Args:
        start: The id of [CLS].
        end: The id of [SEP].
    """
    return RowTemplate((start,), (end,), (end,), (0,), 1)


def roberta_template(start: int, end: int) -> RowTemplate:
    """Return the template `<s> a </s></s> b </s>` of RoBERTa and MPNet, all of segment 0.

    Args:
        start: The id of <s>.
        end: The id of </s>.
    """
    return RowTemplate((start,), (end, end), (end,), (0, 0), 0)


@dataclass(frozen=True)
class Encoding:
    """One row of model input of T tokens, special tokens included. Every list has T entries."""

    ids: list[int]
    type_ids: list[int]
    """Segment ids."""
    offsets: list[tuple[int, int]]
    """The characters (Unicode code points) of the text that each token came from; (0, 0) for the
    special tokens around texts. For pre-split words they count within the word."""
    sequence_ids: list[int | None]
    """0 in the first text, 1 in the second, None for special tokens."""
    word_ids: list[int | None]
    """The index of the word in its text."""

    def __len__(self) -> int:
        return len(self.ids)


class InGraphTokenizer(Protocol):
    """A tokenizer as TensorFlow ops: see `tokenizers.graph.base.TokenizerGraph`."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The Python tokenizer."""
        ...

    def __call__(
        self, texts: tf.Tensor, pairs: tf.Tensor | None = None, *, max_length: int
    ) -> dict[str, tf.Tensor]:
        """Encode UTF-8 strings [B] to "token_ids", "segment_ids", "padding_mask": int32 [B, T]."""
        ...

    def tokenize(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """Tokenize UTF-8 string [B] to ids int32 [B, None], without special tokens around them."""
        ...

    def tokenize_with_offsets(
        self, texts: tf.Tensor
    ) -> tuple[tf.RaggedTensor, tf.RaggedTensor, tf.RaggedTensor]:
        """Tokenize UTF-8 string [B] to ids, starts and ends: ragged int32 [B, None]."""
        ...

    def encode(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """Tokenize UTF-8 string [B] to ids int32 [B, None] with the special tokens of one text."""
        ...

    def detokenize(self, ids: tf.RaggedTensor) -> tf.Tensor:
        """Decode ids int32 [B, None] to UTF-8 string [B]; skip special tokens and unknown ids."""
        ...

    def pack(
        self, first: tf.RaggedTensor, second: tf.RaggedTensor | None = None, *, max_length: int
    ) -> dict[str, tf.Tensor]:
        """Build padded rows of model input.

        Args:
            first: Ids of the first texts: int32 [B, None].
            second: Ids of the second texts: int32 [B, None].
            max_length: Tokens of a row at most, special tokens included.

        Returns:
            `token_ids`, `segment_ids` and `padding_mask`: int32 [B, T] each.
        """
        ...

    def windows(
        self, questions: tf.Tensor, contexts: tf.Tensor, *, max_length: int, stride: int
    ) -> dict[str, tf.Tensor]:
        """Build rows of a question and overlapping windows over its context.

        Args:
            questions: string [B].
            contexts: string [B].
            max_length: Tokens of a row at most, special tokens included.
            stride: Tokens that two neighbouring windows share.

        Returns:
            The model's inputs int32 [R, T], and where each row and token comes from.
        """
        ...


class Tokenizer(Protocol):
    """Encodes texts to ids and decodes them; `graph()` does the same as TensorFlow ops.

    Special tokens that a vocabulary lacks have the id None. Text is Unicode; a lone surrogate
    counts as U+FFFD. Special tokens written in a text are matched.
    """

    kind: str
    """The vocabulary's kind: "wordpiece", "bytepair", "sentencepiece" or "characters"."""

    @property
    def vocabulary(self) -> list[str]:
        """The tokens in the order of ids."""
        ...

    @property
    def vocabulary_size(self) -> int:
        """The number of tokens."""
        ...

    @property
    def pad_token_id(self) -> int | None:
        """The id of the padding token."""
        ...

    @property
    def unk_token_id(self) -> int | None:
        """The id of the unknown token."""
        ...

    @property
    def bos_token_id(self) -> int | None:
        """The token that begins a row or a document: [CLS], <s>."""
        ...

    @property
    def eos_token_id(self) -> int | None:
        """The token that ends a row or a document: [SEP], </s>, <|endoftext|>."""
        ...

    @property
    def mask_token_id(self) -> int | None:
        """The id of the mask token."""
        ...

    @property
    def all_special_ids(self) -> frozenset[int]:
        """The ids of all special tokens, which `decode` skips."""
        ...

    @property
    def lowercase(self) -> bool:
        """Whether texts are lowercased."""
        ...

    @property
    def token_kinds(self) -> np.ndarray:
        """The kind of each token, which says where words begin (`word_alignment`): int8 [V]."""
        ...

    @property
    def fill_mask_texts(self) -> list[tuple[int, str]]:
        """How each token is written into a text (`word_alignment.fill_mask_texts`)."""
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
        """Check that rows are truncated on the right.

        Args:
            max_length: Tokens of a row at most; None: rows are not truncated.

        Raises:
            TokenizerError: The tokenizer's files ask for truncation on the left.
        """
        ...

    def token_id(self, token: str) -> int | None:
        """Return the id of a token, or None where the vocabulary lacks it."""
        ...

    def encode(
        self,
        text: str,
        pair: str | None = None,
        *,
        max_length: int | None = None,
        add_special_tokens: bool = True,
    ) -> Encoding:
        """Encode one text or a pair to a row.

        Args:
            text: The first text.
            pair: The second text.
            max_length: Tokens of the row at most, special tokens included; a pair is truncated
                longest-first.
            add_special_tokens: Whether special tokens are put around the texts.

        Raises:
            SettingError: `max_length` has no room for the special tokens.
            TokenizerError: The tokenizer fails on a text, or truncates on the left.
        """
        ...

    def encode_batch(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        *,
        max_length: int | None = None,
        add_special_tokens: bool = True,
    ) -> list[Encoding]:
        """Encode many texts or pairs in parallel. See `encode`.

        Args:
            texts: The first texts.
            pairs: The second texts.
            max_length: Tokens of a row at most, special tokens included.
            add_special_tokens: Whether special tokens are put around the texts.

        Returns:
            A row for each text or pair.
        """
        ...

    def encode_ids(
        self, texts: Sequence[str], *, add_special_tokens: bool = True
    ) -> list[list[int]]:
        """Encode many texts in parallel to ids only: for a corpus or a prompt.

        Args:
            texts: The texts.
            add_special_tokens: Whether special tokens are put around the texts.

        Returns:
            Token ids of each text.
        """
        ...

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True
    ) -> list[int]:
        """Encode a conversation with the chat template (see `tokenizers.chat`).

        Args:
            messages: Dicts with "role" and "content".
            add_generation_prompt: Whether the prompt of the assistant's next turn is added.
        """
        ...

    def encode_words(self, words: Sequence[str], *, max_length: int | None = None) -> Encoding:
        """Encode pre-split words to a row; `word_ids` index `words`, offsets count within words.

        Args:
            words: The words of one text.
            max_length: Tokens of the row at most, special tokens included.
        """
        ...

    def encode_windows(
        self, question: str, context: str, *, max_length: int, stride: int
    ) -> list[Encoding]:
        """Encode a question with overlapping windows over its context, one row for each window.

        Args:
            question: The first text of every row.
            context: The text that is split into windows.
            max_length: Tokens of a row at most, special tokens included.
            stride: Tokens that two neighbouring windows share.

        Raises:
            SettingError: Windows of `max_length` tokens cannot overlap by `stride`.
        """
        ...

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Decode ids to text, always valid Unicode; an id above the vocabulary has no text.

        Args:
            ids: The token ids.
            skip_special_tokens: Whether special tokens are left out.

        Raises:
            TokenizerError: An id is negative.
        """
        ...

    def save(self, directory: str | Path) -> None:
        """Write the tokenizer's files in Hugging Face's form."""
        ...

    def graph(self, profile: str = "reference") -> InGraphTokenizer:
        """Build the same tokenizer as TensorFlow ops.

        Args:
            profile: "reference", or for WordPiece also "mediapipe".

        Raises:
            SettingError: The profile is unknown.
            TokenizerError: The graph does not implement a part of the tokenizer.
        """
        ...


def valid_id_ranges(tokenizer: Tokenizer, size: int) -> tuple[tuple[int, int], ...]:
    """Return half-open ranges of the ids that have a token; () where all have one.

    An embedding table may have more rows than the vocabulary has tokens, and ids may have gaps.

    Args:
        tokenizer: The tokenizer.
        size: Rows of the embedding table; all ids are below it.
    """
    present = [bool(token) for token in tokenizer.vocabulary[:size]]
    if len(present) == size and all(present):
        return ()
    edges = [
        token_id
        for token_id, (before, current) in enumerate(
            zip([False, *present], [*present, False], strict=True)
        )
        if before != current
    ]
    return tuple(zip(edges[::2], edges[1::2], strict=True))


def check_ids(ids: Sequence[int]) -> None:
    """Check that no id is negative.

    An id above the vocabulary is no error: embedding tables are padded, and such an id has no text.

    Raises:
        TokenizerError: Names the first negative id.
    """
    for token_id in ids:
        if token_id < 0:
            raise TokenizerError(f"There is no token {token_id}: ids begin with 0.")
