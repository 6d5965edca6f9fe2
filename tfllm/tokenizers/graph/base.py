"""Base class of the in-graph tokenizers: texts to ids, rows and windows, ids to texts."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from tfllm.tokenizers.base import Tokenizer
from tfllm.tokenizers.graph import rows
from tfllm.tokenizers.graph.added_tokens import (
    REPLACEMENT,
    AddedTokenPattern,
    AddedTokenSplitter,
    SegmentTokens,
    TextSegments,
    insert_added_tokens,
)


class TokenizerGraph(tf.Module):
    """A tokenizer as TensorFlow ops, created by `Tokenizer.graph()`.

    Text is UTF-8; each invalid byte sequence counts as one U+FFFD, as in Python's
    errors="replace". The methods work eagerly and inside `tf.function`, and are saved with the
    module that holds them. They use only core ops and tf-text kernels that TF Serving links: no
    Python, no XLA, no cache.

    Args:
        tokenizer: The Python tokenizer.
        patterns: The added tokens that are matched before normalization.
    """

    trims_offsets = False
    """Whether offsets leave out the white space at the ends of a token."""
    prefix_space = False
    """Whether a space is put before texts that begin without one."""

    def __init__(self, tokenizer: Tokenizer, patterns: Sequence[AddedTokenPattern]):
        super().__init__()
        self.tokenizer = tokenizer
        self.ids = rows.RowIds(tokenizer.row_template, tokenizer.pad_token_id)
        self._split_at_added_tokens = AddedTokenSplitter(patterns)
        # One function, so that a saved model holds these ops once however many signatures use them.
        signature = [tf.TensorSpec([None], tf.string)]
        self._ids_with_offsets = tf.function(
            lambda texts: self._tokenize(texts, True), signature, autograph=False
        )
        self._ids_without_offsets = tf.function(
            lambda texts: self._tokenize(texts, False)[0], signature, autograph=False
        )

    def __call__(
        self, texts: tf.Tensor, pairs: tf.Tensor | None = None, *, max_length: int
    ) -> dict[str, tf.Tensor]:
        """Encode texts to rows of model input.

        Args:
            texts: UTF-8 string [B].
            pairs: The second text of each row, UTF-8 string [B]; None: rows of one text.
            max_length: Tokens of a row at most, special tokens included.

        Returns:
            What `pack` returns.
        """
        second = None if pairs is None else self.tokenize(pairs)
        return self.pack(self.tokenize(texts), second, max_length=max_length)

    def tokenize(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """Tokenize UTF-8 string [B] to ids int32 [B, None], without special tokens around them."""
        return self._ids_without_offsets(tf.convert_to_tensor(texts, tf.string))

    def tokenize_with_offsets(
        self, texts: tf.Tensor
    ) -> tuple[tf.RaggedTensor, tf.RaggedTensor, tf.RaggedTensor]:
        """Tokenize UTF-8 string [B] to ids, starts and ends: ragged int32 [B, None].

        Starts and ends count code points of the original text.
        """
        return self._ids_with_offsets(tf.convert_to_tensor(texts, tf.string))

    def encode(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """Tokenize UTF-8 string [B] to ids int32 [B, None] with the special tokens of one text."""
        ids, template = self.tokenize(texts), self.ids.template
        if not template.num_special_tokens:
            return ids
        size = tf.size(texts, out_type=tf.int64)

        def repeat(special_ids: tuple[int, ...]) -> tf.RaggedTensor:
            values = tf.tile(tf.constant(special_ids, tf.int32), size[None])
            return tf.RaggedTensor.from_uniform_row_length(values, len(special_ids), nrows=size)

        parts = [repeat(template.prefix)] if template.prefix else []
        parts += [ids] + ([repeat(template.suffix)] if template.suffix else [])
        return tf.concat(parts, 1)

    def detokenize(self, ids: tf.RaggedTensor) -> tf.Tensor:
        """Decode ids int32 [B, None] to UTF-8 string [B]; skip special tokens and unknown ids."""
        raise NotImplementedError

    def pack(
        self, first: tf.RaggedTensor, second: tf.RaggedTensor | None = None, *, max_length: int
    ) -> dict[str, tf.Tensor]:
        """Build padded rows of model input from ids.

        Args:
            first: Ids of the first texts, int32 [B, None].
            second: Ids of the second texts, int32 [B, None]; None: rows of one text.
            max_length: Tokens of a row at most, special tokens included; pairs are truncated
                longest-first.

        Returns:
            "token_ids", "segment_ids" and "padding_mask": int32 [B, T], T the longest row.

        Raises:
            TokenizerError: The tokenizer's files ask for truncation on the left.
        """
        self.tokenizer.check_truncation_side(max_length)
        return rows.pack(first, second, max_length, self.ids)

    def windows(
        self, questions: tf.Tensor, contexts: tf.Tensor, *, max_length: int, stride: int
    ) -> dict[str, tf.Tensor]:
        """Build rows of a question and overlapping windows over its context.

        Args:
            questions: UTF-8 string [B].
            contexts: UTF-8 string [B].
            max_length: Tokens of a row at most, special tokens included.
            stride: Tokens that two neighbouring windows share.

        Returns:
            int32 [R, T]: "token_ids", "segment_ids", "padding_mask", "starts" and "ends" (code
            points of the context, -1 outside of it); int32 [R]: "example", the index of the
            example that each row belongs to.
        """
        context, starts, ends = self.tokenize_with_offsets(contexts)
        question = self.tokenize(questions)
        return rows.windows(question, context, starts, ends, max_length, stride, self.ids)

    def _tokenize_segments(self, segments: TextSegments, offsets: bool) -> SegmentTokens:
        """Tokenize segments without added tokens.

        Without `offsets`, starts, ends and lengths are unspecified.
        """
        raise NotImplementedError

    def _tokenize(self, texts: tf.Tensor, offsets: bool) -> tuple[tf.RaggedTensor, ...]:
        segments = self._split_at_added_tokens(texts)
        tokens = self._tokenize_segments(segments, offsets)
        if self._split_at_added_tokens:
            tokens = tf.cond(
                tf.reduce_any(segments.added_ids >= 0),
                lambda: insert_added_tokens(
                    tokens, segments, self.trims_offsets, self.prefix_space
                ),
                lambda: tokens,
            )
        splits = tf.gather(tokens.splits, segments.text_splits)
        ids, starts, ends = (
            tf.RaggedTensor.from_row_splits(values, splits, validate=False)
            for values in (tokens.ids, tokens.starts, tokens.ends)
        )
        return ids, starts, ends


def filter_ids(ids: tf.RaggedTensor, kept: tf.Tensor) -> tf.RaggedTensor:
    """Drop ids.

    Args:
        ids: int32 [B, None].
        kept: Whether each id of the vocabulary stays: bool [V]. Ids that are not below V are
            dropped.
    """
    size = tf.size(kept)
    values = ids.flat_values
    valid = (values >= 0) & (values < size)
    mask = valid & tf.gather(kept, tf.clip_by_value(values, 0, size - 1))
    return tf.ragged.boolean_mask(ids, ids.with_flat_values(mask))


def join_utf8(pieces: tf.RaggedTensor) -> tf.Tensor:
    """Join strings [B, None] to valid UTF-8 [B]; an invalid byte sequence becomes U+FFFD."""
    return tf.strings.unicode_transcode(
        tf.strings.reduce_join(pieces, axis=-1), "UTF-8", "UTF-8", replacement_char=REPLACEMENT
    )
