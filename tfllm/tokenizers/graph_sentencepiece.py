"""SentencePiece as TensorFlow ops: tf-text's kernel, which is the same C++ as the Python package.

Its `FastSentencepieceTokenizer` is not used: on a BPE model it gives wrong ids without a word.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import tensorflow as tf

from tfllm.errors import SettingError
from tfllm.tokenizers.graph_base import TextGraph, without
from tfllm.tokenizers.literals import REPLACEMENT, Literal, Pieces, Tokens, rows_of, without_offsets

if TYPE_CHECKING:
    from tfllm.tokenizers.sentencepiece import SentencePiece


class SentencePieceGraph(TextGraph):
    """A SentencePiece model as TensorFlow ops; make it with `Tokenizer.graph()`."""

    def __init__(self, tokenizer: SentencePiece, profile: str = "reference"):
        check_profile(profile)
        literals = [
            Literal(token, number)
            for token in tokenizer.literal_tokens
            if (number := tokenizer.token_id(token)) is not None
        ]
        super().__init__(tokenizer, literals)
        self._model = kernel(tokenizer.model)
        with tf.init_scope():
            special = tokenizer.special_ids
            self._kept = tf.constant([i not in special for i in range(tokenizer.vocabulary_size)])

    def detokenize(self, ids: tf.RaggedTensor) -> tf.Tensor:
        """Ids int32 [B, None] to UTF-8 string [B]; special tokens and unknown ids left out."""
        return self._model.detokenize(without(ids, self._kept))

    def _tokens(self, pieces: Pieces, offsets: bool) -> Tokens:
        return tokens_of(self._model, pieces.strings, offsets)


def check_profile(profile: str) -> None:
    """Raises SettingError for any profile but the reference."""
    if profile != "reference":
        raise SettingError(f"There is no tokenizer profile '{profile}' for SentencePiece.")


def kernel(model: bytes) -> Any:
    """tf-text's tokenizer over a serialized ModelProto."""
    import tensorflow_text

    with tf.init_scope():
        return tensorflow_text.SentencepieceTokenizer(model, out_type=tf.int32)


def tokens_of(model: Any, pieces: tf.Tensor, offsets: bool) -> Tokens:
    """UTF-8 string [P] to tokens, literal ones not looked for."""
    valid = tf.strings.unicode_transcode(pieces, "UTF-8", "UTF-8", replacement_char=REPLACEMENT)
    if not offsets:
        ids = model.tokenize(valid)
        return without_offsets(ids.flat_values, ids.row_splits)
    ids, starts, ends = model.tokenize_with_offsets(valid)
    decoded = tf.raw_ops.UnicodeDecode(
        input=valid, input_encoding="UTF-8", errors="replace", replacement_char=REPLACEMENT
    )
    points, text_starts = decoded.char_values, decoded.row_splits
    sizes = tf.add_n([tf.cast(points >= limit, tf.int64) for limit in (0, 0x80, 0x800, 0x10000)])
    byte_ends = tf.cumsum(sizes)  # [C]: where each code point of the batch ends
    byte_starts = tf.cumsum(tf.cast(tf.strings.length(valid), tf.int64), exclusive=True)  # [P]
    piece = rows_of(ids.row_splits, tf.size(ids.flat_values))  # [M]
    base, begin = tf.gather(byte_starts, piece), tf.gather(text_starts[:-1], piece)

    def code_points(places: tf.RaggedTensor) -> tf.Tensor:
        place = base + tf.cast(places.flat_values, tf.int64)
        count = tf.searchsorted(byte_ends, place, side="right", out_type=tf.int64)
        return tf.cast(count - begin, tf.int32)

    lengths = text_starts[1:] - text_starts[:-1]
    return Tokens(ids.flat_values, code_points(starts), code_points(ends), ids.row_splits, lengths)
