"""Words of texts and their pieces, as `entities` finds them, as TensorFlow ops."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import tensorflow as tf

from tfllm.tasks.entities import LETTER, PUNCTUATION, WHITE, character_kinds
from tfllm.tasks.serving_graph import REPLACEMENT
from tfllm.tokenizers.word_alignment import CONTINUATION, NO_WORD, PLAIN, SINGLE_SPACE
from tfllm.tokenizers.word_alignment import WHITE as WHITE_TOKEN

if TYPE_CHECKING:
    from tfllm.tokenizers.base import Tokenizer

PAGE_BITS = 8


class WordTensors(NamedTuple):
    """The W words with pieces of a batch, in order: int64 [W]."""

    rows: tf.Tensor
    positions: tf.Tensor
    """first piece, counted from the row's start"""
    starts: tf.Tensor
    """first character, counted from the text's start"""
    ends: tf.Tensor


class GraphWords(tf.Module):
    """Finds the words of texts; its tables are constants."""

    def __init__(self, tokenizer: Tokenizer):
        super().__init__()
        pages, page_of = np.unique(
            character_kinds().reshape(-1, 1 << PAGE_BITS), axis=0, return_inverse=True
        )
        with tf.init_scope():
            self._page_of = tf.constant(page_of.reshape(-1).astype(np.int32))
            self._pages = tf.constant(pages)
            self._marks = tf.constant(tokenizer.token_kinds)

    def __call__(
        self,
        texts: tf.Tensor,
        ids: tf.RaggedTensor,
        starts: tf.RaggedTensor,
        ends: tf.RaggedTensor,
    ) -> WordTensors:
        """UTF-8 string [B] with the ids and offsets of their pieces, ragged int32 [B, None]."""
        # A space after each text keeps its characters from the next one's.
        decoded = tf.raw_ops.UnicodeDecode(
            input=tf.strings.join([texts, " "]),
            input_encoding="UTF-8",
            errors="replace",
            replacement_char=REPLACEMENT,
        )
        words = self._word_numbers(decoded.char_values)  # [C]
        rows = ids.value_rowids()  # [M]
        base = tf.gather(decoded.row_splits, rows)
        begin = base + tf.cast(starts.flat_values, tf.int64)
        stop = base + tf.cast(ends.flat_values, tf.int64)
        marks = tf.gather(self._marks, ids.flat_values)
        solid = tf.concat([tf.where(words >= 0)[:, 0], tf.shape(words, tf.int64)], 0)
        first = tf.gather(solid, tf.searchsorted(solid, begin, out_type=tf.int64))
        numbers = _numbers(words, rows, marks, first, tf.maximum(stop, begin + 1))
        return _words_of_pieces(
            numbers, rows, ids.row_starts(), base, marks, first, _last(solid, stop)
        )

    def _word_numbers(self, points: tf.Tensor) -> tf.Tensor:
        """Code points int32 [C] to the numbers of their words, int64 [C], NO_WORD for none."""
        page = tf.gather(self._page_of, tf.bitwise.right_shift(points, PAGE_BITS))
        position = tf.bitwise.bitwise_and(points, (1 << PAGE_BITS) - 1)
        kind = tf.gather_nd(self._pages, tf.stack([page, position], 1))
        edge = tf.constant([WHITE], kind.dtype)
        before = tf.concat([edge, kind[:-1]], 0)
        after = tf.concat([kind[1:], edge], 0)
        inner = (kind == PUNCTUATION) & (before == LETTER) & (after == LETTER)
        after_inner = tf.concat([[False], inner[:-1]], 0)
        solid = kind != WHITE
        goes_on = inner | after_inner | ((kind == LETTER) & (before == LETTER))
        number = tf.cumsum(tf.cast(solid & ~goes_on, tf.int64)) - 1
        return tf.where(solid, number, tf.constant(NO_WORD, tf.int64))


def _numbers(
    words: tf.Tensor, rows: tf.Tensor, marks: tf.Tensor, first: tf.Tensor, stop: tf.Tensor
) -> tf.Tensor:
    """`word_alignment.word_ids_of_tokens` of a batch's pieces: int64 [M]."""
    none = tf.constant([NO_WORD], tf.int64)
    inside = (first < stop) & (marks != WHITE_TOKEN)
    word = tf.where(inside, tf.gather(tf.concat([words, none], 0), first), none)
    following = tf.concat([word[1:], none], 0)
    plain = (marks == PLAIN) | (marks == CONTINUATION)
    alone = tf.concat([plain[1:] & (rows[1:] == rows[:-1]), [False]], 0)[: tf.size(marks)]
    word = tf.where(marks == SINGLE_SPACE, tf.where(alone, following[: tf.size(marks)], none), word)
    size = tf.size(marks, out_type=tf.int64)
    origins = tf.concat([[0], tf.where(marks != CONTINUATION)[:, 0]], 0)
    origin = tf.searchsorted(origins, tf.range(size), side="right", out_type=tf.int64) - 1
    return tf.gather(word, tf.gather(origins, origin))


def _last(solid: tf.Tensor, stop: tf.Tensor) -> tf.Tensor:
    """The position after the last solid character before each of `stop`: int64 [M]."""
    count = tf.searchsorted(solid[:-1], stop, out_type=tf.int64)
    return tf.gather(tf.concat([[0], solid[:-1] + 1], 0), count)


def _words_of_pieces(
    numbers: tf.Tensor,
    rows: tf.Tensor,
    row_starts: tf.Tensor,
    base: tf.Tensor,
    marks: tf.Tensor,
    first: tf.Tensor,
    last: tf.Tensor,
) -> WordTensors:
    """WordTensors from the numbers of their pieces [M], in the order of the numbers."""
    pieces = tf.where(numbers >= 0)[:, 0]
    count = tf.reduce_max(tf.concat([numbers, [NO_WORD]], 0)) + 1
    own = tf.gather(numbers, pieces)
    whole = tf.gather(marks, pieces) != SINGLE_SPACE
    far = tf.fill(tf.shape(pieces), tf.int64.max)
    position = tf.math.unsorted_segment_min(pieces, own, count)
    start = tf.math.unsorted_segment_min(tf.where(whole, tf.gather(first, pieces), far), own, count)
    end = tf.math.unsorted_segment_max(tf.where(whole, tf.gather(last, pieces), 0), own, count)
    present = tf.where(position < tf.size(numbers, out_type=tf.int64))[:, 0]
    position, start, end = (tf.gather(values, present) for values in (position, start, end))
    row, begin = tf.gather(rows, position), tf.gather(base, position)
    end = tf.maximum(end, start + 1)
    return WordTensors(row, position - tf.gather(row_starts, row), start - begin, end - begin)
