"""One side of a Marian tokenizer as TensorFlow ops: tf-text's SentencePiece and an id table."""

from __future__ import annotations

from typing import Protocol

import tensorflow as tf

from tfllm.tokenizers import sentencepiece_proto as proto
from tfllm.tokenizers.graph.added_tokens import (
    MatchesAddedTokens,
    SegmentTokens,
    TextSegments,
    added_token_patterns,
)
from tfllm.tokenizers.graph.base import TokenizerGraph, filter_ids
from tfllm.tokenizers.graph.sentencepiece import check_profile, tokenize_segments
from tfllm.tokenizers.graph.sentencepiece_kernel import SentencePieceKernel


class MarianModel(MatchesAddedTokens, Protocol):
    """What the graph reads of one side of a Marian tokenizer."""

    @property
    def model(self) -> bytes:
        """The ModelProto, serialized."""
        ...


class _MarianKernel(SentencePieceKernel):
    """A SentencePiece model whose pieces have the ids of a table."""

    out_type = tf.string

    def __init__(self, tokenizer: MarianModel):
        super().__init__(tokenizer.model)
        with tf.init_scope():
            ids = tf.range(tokenizer.vocabulary_size)
            self._table = tf.lookup.StaticHashTable(
                tf.lookup.KeyValueTensorInitializer(tokenizer.vocabulary, ids),
                tokenizer.unk_token_id,
            )

    def _to_ids(self, values: tf.Tensor) -> tf.Tensor:
        return self._table.lookup(values)


class MarianGraph(TokenizerGraph):
    """One side of a Marian tokenizer as TensorFlow ops, created by `Tokenizer.graph()`.

    Raises:
        SettingError: The profile is unknown.
        TokenizerError: An added token is matched in a way that the graph does not implement.
    """

    def __init__(self, tokenizer: MarianModel, profile: str = "reference"):
        check_profile(profile)
        super().__init__(tokenizer, added_token_patterns(tokenizer))
        self._kernel = _MarianKernel(tokenizer)
        special = tokenizer.all_special_ids
        with tf.init_scope():
            self._kept = tf.constant([i not in special for i in range(tokenizer.vocabulary_size)])
            self._pieces = tf.constant(tokenizer.vocabulary)

    def detokenize(self, ids: tf.RaggedTensor) -> tf.Tensor:
        """Decode ids int32 [B, None] to UTF-8 string [B]; skip special tokens and unknown ids."""
        ids = filter_ids(ids, self._kept)
        pieces = ids.with_flat_values(tf.gather(self._pieces, ids.flat_values))
        texts = self._kernel.detokenize(pieces)
        return tf.strings.strip(tf.strings.regex_replace(texts, proto.SPACE, " "))

    def _tokenize_segments(self, segments: TextSegments, offsets: bool) -> SegmentTokens:
        return tokenize_segments(self._kernel, segments.strings, offsets)
