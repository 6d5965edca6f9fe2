"""SentencePiece as TensorFlow ops: tf-text's kernel, which is the same C++ as the Python package.

Its `FastSentencepieceTokenizer` is not used: on a BPE model it gives wrong ids without a word.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import tensorflow as tf

from tfllm.errors import SettingError
from tfllm.tokenizers import proto
from tfllm.tokenizers.graph_base import TextGraph, without
from tfllm.tokenizers.literals import (
    REPLACEMENT,
    Pieces,
    Tokens,
    plain_literals,
    rows_of,
    without_offsets,
)
from tfllm.tokenizers.sentencepiece_kernel import SentencePieceKernel

if TYPE_CHECKING:
    from tfllm.tokenizers.sentencepiece import SentencePiece


class SentencePieceGraph(TextGraph):
    """A SentencePiece model as TensorFlow ops; make it with `Tokenizer.graph()`."""

    def __init__(self, tokenizer: SentencePiece, profile: str = "reference"):
        check_profile(profile)
        super().__init__(tokenizer, plain_literals(tokenizer))
        self._model = SentencePieceKernel(tokenizer.model)
        model = proto.parse(tokenizer.model, tokenizer.file_name)
        spec, special = model.normalizer_spec, tokenizer.special_ids
        self._strips = spec.add_dummy_prefix or spec.remove_extra_whitespaces
        self._strips_all = spec.remove_extra_whitespaces
        self._fence = next(
            (number, len(entry.piece.encode()))
            for number, entry in enumerate(model.pieces)
            if entry.type in (proto.NORMAL, proto.USER_DEFINED) and proto.SPACE not in entry.piece
        )
        with tf.init_scope():
            self._kept = tf.constant([i not in special for i in range(tokenizer.vocabulary_size)])
            self._spaced = tf.constant([entry.piece[:1] == proto.SPACE for entry in model.pieces])
            self._blank = tf.constant([entry.piece == proto.SPACE for entry in model.pieces])

    def detokenize(self, ids: tf.RaggedTensor) -> tf.Tensor:
        """Ids int32 [B, None] to UTF-8 string [B]; special tokens and unknown ids left out.

        Spaces at the start are counted here, behind a piece put before: the kernel is of an older
        version than the package, in which every leading piece lost its space.
        """
        ids = without(ids, self._kept)
        number, size_bytes = self._fence
        fences = tf.fill(tf.stack([ids.nrows(), 1]), number)
        texts = self._model.detokenize(tf.concat([fences, ids], 1))
        begin = tf.cast(self._leading(ids), tf.int32) + size_bytes
        return tf.strings.substr(texts, begin, tf.maximum(tf.strings.length(texts) - begin, 0))

    def _leading(self, ids: tf.RaggedTensor) -> tf.Tensor:
        """int64 [B]: the spaces that a text loses at its start."""
        counts = ids.row_lengths()
        if not self._strips:
            return tf.zeros_like(counts)
        place = tf.zeros_like(counts)  # of the piece that loses the last one
        if self._strips_all:
            solid = tf.where(~tf.gather(self._blank, ids.flat_values))[:, 0]
            solid = tf.concat([solid, tf.size(ids.flat_values, out_type=tf.int64)[None]], 0)
            starts = ids.row_starts()
            found = tf.gather(solid, tf.searchsorted(solid, starts, out_type=tf.int64))
            place = tf.minimum(found - starts, counts)
        padded = tf.concat([ids.flat_values, [0]], 0)
        piece = tf.gather(padded, ids.row_starts() + tf.minimum(place, counts))
        loses = tf.gather(self._spaced, piece) & (place < counts)
        return place + tf.cast(loses, tf.int64)

    def _tokens(self, pieces: Pieces, offsets: bool) -> Tokens:
        return tokens_of(self._model, pieces.strings, offsets)


def check_profile(profile: str) -> None:
    """Raises SettingError for any profile but the reference."""
    if profile != "reference":
        raise SettingError(f"There is no tokenizer profile '{profile}' for SentencePiece.")


def tokens_of(model: SentencePieceKernel, pieces: tf.Tensor, offsets: bool) -> Tokens:
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
