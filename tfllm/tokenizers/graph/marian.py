"""One side of a Marian tokenizer as TensorFlow ops: tf-text's SentencePiece and a table of ids."""

from __future__ import annotations

from typing import Protocol

import tensorflow as tf

from tfllm.tokenizers import sentencepiece_proto as proto
from tfllm.tokenizers.graph.added_tokens import (
    MatchesAddedTokens,
    Pieces,
    Tokens,
    added_token_patterns,
)
from tfllm.tokenizers.graph.base import TokenizerGraph, filter_ids
from tfllm.tokenizers.graph.sentencepiece import check_profile, tokenize_pieces
from tfllm.tokenizers.graph.sentencepiece_kernel import SentencePieceKernel


class MarianModel(MatchesAddedTokens, Protocol):
    """What the graph reads of one side of a Marian tokenizer."""

    @property
    def model(self) -> bytes:
        """The ModelProto, serialized."""
        ...


class _NumberedPieces(SentencePieceKernel):
    """A model whose pieces have the ids of a table."""

    out_type = tf.string

    def __init__(self, tokenizer: MarianModel):
        super().__init__(tokenizer.model)
        with tf.init_scope():
            numbers = tf.range(tokenizer.vocabulary_size)
            self._table = tf.lookup.StaticHashTable(
                tf.lookup.KeyValueTensorInitializer(tokenizer.vocabulary, numbers),
                tokenizer.unk_token_id,
            )

    def _numbers(self, values: tf.Tensor) -> tf.Tensor:
        return self._table.lookup(values)


class MarianGraph(TokenizerGraph):
    """One side of a Marian tokenizer as TensorFlow ops; make it with `Tokenizer.graph()`."""

    def __init__(self, tokenizer: MarianModel, profile: str = "reference"):
        check_profile(profile)
        super().__init__(tokenizer, added_token_patterns(tokenizer))
        self._model = _NumberedPieces(tokenizer)
        special = tokenizer.all_special_ids
        with tf.init_scope():
            self._kept = tf.constant([i not in special for i in range(tokenizer.vocabulary_size)])
            self._pieces = tf.constant(tokenizer.vocabulary)

    def detokenize(self, ids: tf.RaggedTensor) -> tf.Tensor:
        """Ids int32 [B, None] to UTF-8 string [B]; special tokens and unknown ids left out."""
        ids = filter_ids(ids, self._kept)
        pieces = ids.with_flat_values(tf.gather(self._pieces, ids.flat_values))
        texts = self._model.detokenize(pieces)
        return tf.strings.strip(tf.strings.regex_replace(texts, proto.SPACE, " "))

    def _tokens(self, pieces: Pieces, offsets: bool) -> Tokens:
        return tokenize_pieces(self._model, pieces.strings, offsets)
