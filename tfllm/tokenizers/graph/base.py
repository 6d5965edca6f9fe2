"""What every tokenizer gives as TensorFlow ops: texts to ids, rows and windows, ids to texts."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from tfllm.tokenizers.base import Tokenizer
from tfllm.tokenizers.graph import rows
from tfllm.tokenizers.graph.added_tokens import (
    REPLACEMENT,
    AddedTokenPattern,
    AddedTokenSplitter,
    Pieces,
    Tokens,
    insert_added_tokens,
)


class TokenizerGraph(tf.Module):
    """Texts to token ids and back as TensorFlow ops; make it with `Tokenizer.graph()`.

    Text is UTF-8; each invalid byte sequence counts as one U+FFFD, as in Python's
    errors="replace". Its methods work eagerly and inside `tf.function`, and save with the module
    that holds them. Only core ops and tf-text kernels that TF Serving links; no Python, no XLA, no
    cache.
    """

    trims_offsets = False
    """Whether white space at a token's ends is not in its offsets."""
    prefix_space = False
    """Whether a space is put before texts that begin without one."""

    def __init__(self, tokenizer: Tokenizer, literals: Sequence[AddedTokenPattern]):
        super().__init__()
        self.tokenizer = tokenizer  # the vocabulary, for whoever turns ids back into tokens
        self.ids = rows.Ids(tokenizer.row_template, tokenizer.pad_token_id)
        self._cut = AddedTokenSplitter(literals)
        # One function, so that a saved model holds these ops once however many signatures use them.
        signature = [tf.TensorSpec([None], tf.string)]
        self._with_offsets = tf.function(
            lambda texts: self._tokenized(texts, True), signature, autograph=False
        )
        self._ids_alone = tf.function(
            lambda texts: self._tokenized(texts, False)[0], signature, autograph=False
        )

    def __call__(
        self, texts: tf.Tensor, pairs: tf.Tensor | None = None, *, max_length: int
    ) -> dict[str, tf.Tensor]:
        """UTF-8 string [B] to rows of model input, as `pack` describes them."""
        second = None if pairs is None else self.tokenize(pairs)
        return self.pack(self.tokenize(texts), second, max_length=max_length)

    def tokenize(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """UTF-8 string [B] to ids int32 [B, None], no special tokens around them."""
        return self._ids_alone(tf.convert_to_tensor(texts, tf.string))

    def tokenize_with_offsets(
        self, texts: tf.Tensor
    ) -> tuple[tf.RaggedTensor, tf.RaggedTensor, tf.RaggedTensor]:
        """UTF-8 string [B] to ids, starts, ends: ragged int32 [B, None].

        Starts and ends count code points of the text as it was given.
        """
        return self._with_offsets(tf.convert_to_tensor(texts, tf.string))

    def encode(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """UTF-8 string [B] to ids int32 [B, None] with the special tokens of a single text."""
        ids, template = self.tokenize(texts), self.ids.template
        if not template.num_special_tokens:
            return ids
        size = tf.size(texts, out_type=tf.int64)

        def around(specials: tuple[int, ...]) -> tf.RaggedTensor:
            values = tf.tile(tf.constant(specials, tf.int32), size[None])
            return tf.RaggedTensor.from_uniform_row_length(values, len(specials), nrows=size)

        parts = [around(template.prefix)] if template.prefix else []
        parts += [ids] + ([around(template.suffix)] if template.suffix else [])
        return tf.concat(parts, 1)

    def detokenize(self, ids: tf.RaggedTensor) -> tf.Tensor:
        """Ids int32 [B, None] to UTF-8 string [B]; special tokens and unknown ids left out."""
        raise NotImplementedError

    def pack(
        self, first: tf.RaggedTensor, second: tf.RaggedTensor | None = None, *, max_length: int
    ) -> dict[str, tf.Tensor]:
        """Ids to "token_ids", "segment_ids", "padding_mask": int32 [B, T], T the longest row.

        No row passes `max_length`, special tokens included; pairs are cut longest-first.
        """
        self.tokenizer.check_truncation_side(max_length)
        return rows.pack(first, second, max_length, self.ids)

    def windows(
        self, questions: tf.Tensor, contexts: tf.Tensor, *, max_length: int, stride: int
    ) -> dict[str, tf.Tensor]:
        """UTF-8 strings [B] to R rows whose windows over the context overlap by `stride` tokens.

        int32 [R, T]: "token_ids", "segment_ids", "padding_mask", "starts", "ends" (code points of
        the context, -1 outside of it); int32 [R]: "example", the index of each row's example.
        """
        context, starts, ends = self.tokenize_with_offsets(contexts)
        question = self.tokenize(questions)
        return rows.windows(question, context, starts, ends, max_length, stride, self.ids)

    def _tokens(self, pieces: Pieces, offsets: bool) -> Tokens:
        """Pieces of text to tokens, literal ones not looked for.

        Without `offsets`, starts, ends and lengths may be anything.
        """
        raise NotImplementedError

    def _tokenized(self, texts: tf.Tensor, offsets: bool) -> tuple[tf.RaggedTensor, ...]:
        pieces = self._cut(texts)
        tokens = self._tokens(pieces, offsets)
        if self._cut:
            tokens = tf.cond(
                tf.reduce_any(pieces.added_ids >= 0),
                lambda: insert_added_tokens(tokens, pieces, self.trims_offsets, self.prefix_space),
                lambda: tokens,
            )
        splits = tf.gather(tokens.splits, pieces.text_splits)
        ids, starts, ends = (
            tf.RaggedTensor.from_row_splits(values, splits, validate=False)
            for values in (tokens.ids, tokens.starts, tokens.ends)
        )
        return ids, starts, ends


def filter_ids(ids: tf.RaggedTensor, kept: tf.Tensor) -> tf.RaggedTensor:
    """The ids of which `kept` bool [V] says so; ids outside of 0 to V - 1 are dropped."""
    size = tf.size(kept)
    values = ids.flat_values
    known = (values >= 0) & (values < size)
    chosen = known & tf.gather(kept, tf.clip_by_value(values, 0, size - 1))
    return tf.ragged.boolean_mask(ids, ids.with_flat_values(chosen))


def join_utf8(pieces: tf.RaggedTensor) -> tf.Tensor:
    """Strings [B, None] to valid UTF-8 [B]: invalid byte sequences become U+FFFD."""
    return tf.strings.unicode_transcode(
        tf.strings.reduce_join(pieces, axis=-1), "UTF-8", "UTF-8", replacement_char=REPLACEMENT
    )
