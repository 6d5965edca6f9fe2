"""Texts to normalised words in the graph: gathers from the tables of `codepoints`, exact and flat.

All texts of a batch are worked on as one flat array of code points (C of them); a space put after
each text keeps its last word from the next text's first.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from tfllm.tokenizers.graph.added_tokens import REPLACEMENT
from tfllm.tokenizers.graph.codepoint_tables import (
    ALONE,
    BARRIER,
    DELTA_ZERO,
    DROPPED,
    HANGUL,
    HANGUL_SYLLABLES,
    KIND_SHIFT,
    MARK,
    PAGE_BITS,
    PAGE_SIZE,
    SEQUENCE,
    SPACE,
    VALUE_MASK,
    WORD,
    Table,
)

MORE_THAN_CLASSES = 256


class Words(NamedTuple):
    """The W words of B texts, with the K code points they keep and where those came from."""

    strings: tf.Tensor
    """string [W]"""
    splits: tf.Tensor
    """int64 [B + 1]: the words of each text"""
    code_points: tf.Tensor
    """int32 [K]: after normalisation"""
    code_point_splits: tf.Tensor
    """int64 [W + 1]: the code points of each word"""
    origins: tf.Tensor
    """int64 [K]: index among all the batch's code points that a kept one came from"""
    text_starts: tf.Tensor
    """int64 [B + 1]: where each text begins among all the batch's code points, one space after
    each text counted"""


class WordSplitter(tf.Module):
    """Holds a table as constants, once for all the functions that use it."""

    def __init__(self, table: Table):
        super().__init__()
        with tf.init_scope():
            self._page_starts = tf.constant(table.page_starts)
            self._pages = tf.constant(table.pages)
            self._sequences = tf.constant(table.sequences)
            self._marks = tf.constant(table.marks)
            self._mark_classes = tf.constant(table.mark_classes)
        self._changes_length = bool(
            ((table.pages >> KIND_SHIFT) >= SEQUENCE).any() or len(table.marks)
        )

    def __call__(self, texts: tf.Tensor) -> Words:
        """UTF-8 string [B] to words."""
        decoded = tf.raw_ops.UnicodeDecode(
            input=tf.strings.join([texts, " "]),
            input_encoding="UTF-8",
            errors="replace",
            replacement_char=REPLACEMENT,
        )
        points, kinds, origins = self._normalized(decoded.char_values)
        points, kinds, origins = _selected(kinds > BARRIER, points, kinds, origins)
        in_word = kinds >= WORD
        after_word = tf.concat([[False], in_word[:-1]], 0)
        begins = (kinds == ALONE) | (in_word & ~after_word)
        points, begins, origins = _selected(kinds != SPACE, points, begins, origins)
        size = tf.size(points, out_type=tf.int64)
        firsts = tf.where(begins)[:, 0]
        splits = tf.searchsorted(tf.gather(origins, firsts), decoded.row_splits, out_type=tf.int64)
        code_point_splits = tf.concat([firsts, [size]], 0)
        strings = tf.raw_ops.UnicodeEncode(
            input_values=points,
            input_splits=code_point_splits,
            errors="replace",
            output_encoding="UTF-8",
            replacement_char=REPLACEMENT,
        )
        return Words(strings, splits, points, code_point_splits, origins, decoded.row_splits)

    def _normalized(self, points: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """int32 [C] to new code points, their kinds, and the index that each came from (int64)."""
        start = tf.gather(self._page_starts, tf.bitwise.right_shift(points, PAGE_BITS))
        entries = tf.gather(self._pages, start + tf.bitwise.bitwise_and(points, PAGE_SIZE - 1))
        kinds = tf.bitwise.right_shift(entries, KIND_SHIFT)
        values = tf.bitwise.bitwise_and(entries, VALUE_MASK)
        moved = points + (values - DELTA_ZERO)
        origins = tf.range(tf.size(points, out_type=tf.int64))
        if not self._changes_length:
            return moved, kinds, origins
        return tf.cond(
            tf.reduce_any(kinds >= MARK),
            lambda: self._lengthened(points, kinds, values, moved, origins),
            lambda: (moved, kinds, origins),
        )

    def _lengthened(self, points, kinds, values, moved, origins):
        """Gives each code point three places, filled as its kind says, and orders the marks."""
        origins = tf.cond(
            tf.reduce_any(kinds == MARK),
            lambda: self._origins(points, kinds, origins),
            lambda: origins,
        )
        kind = kinds[:, None]
        own = tf.pad(_entry(kinds, moved)[:, None], [[0, 0], [0, 2]])  # [C, 3]
        listed = tf.gather(self._sequences, tf.where(kinds == SEQUENCE, values, 0))
        syllable = points - HANGUL_SYLLABLES.start
        letters = _entry(
            tf.where([[True, True, False]] | (syllable % 28 > 0)[:, None], WORD, DROPPED),
            tf.stack(
                [0x1100 + syllable // 588, 0x1161 + syllable % 588 // 28, 0x11A7 + syllable % 28], 1
            ),
        )
        entries = tf.where(kind == SEQUENCE, listed, tf.where(kind == HANGUL, letters, own))
        entries = tf.reshape(entries, [-1])
        origins = tf.reshape(tf.tile(origins[:, None], [1, 3]), [-1])
        entries, origins = _selected(entries >= BARRIER << KIND_SHIFT, entries, origins)
        kinds = tf.bitwise.right_shift(entries, KIND_SHIFT)
        points = tf.bitwise.bitwise_and(entries, VALUE_MASK)
        points, origins = tf.cond(
            tf.reduce_any(kinds == MARK),
            lambda: self._ordered(points, kinds, origins),
            lambda: (points, origins),
        )
        return points, kinds, origins

    def _ordered(self, points, kinds, origins):
        """Marks in a row sorted by class, equal ones as they stood."""
        order = _canonical(tf.where(kinds == MARK, self._classes(points), 0))
        return tf.gather(points, order), tf.gather(origins, order)

    def _origins(self, points, kinds, origins):
        """Where the reference says that code points came from: a mark that is moved among others,
        dropped ones too, is said to come from the place that it moves to."""
        classes = self._classes(points)
        counted = tf.where((kinds != DROPPED) | (classes > 0))  # the rest was cleaned away before
        own = tf.gather_nd(origins, counted)
        order = _canonical(tf.gather_nd(classes, counted))
        order = tf.cast(order, tf.int64)
        moved = tf.scatter_nd(order[:, None], own, tf.shape(own, tf.int64))
        return tf.tensor_scatter_nd_update(origins, counted, moved)

    def _classes(self, points: tf.Tensor) -> tf.Tensor:
        """int32 [C]: combining classes as ranks, 0 for what is no mark."""
        place = tf.minimum(tf.searchsorted(self._marks, points), tf.size(self._marks) - 1)
        known = tf.gather(self._marks, place) == points
        return tf.where(known, tf.gather(self._mark_classes, place), 0)


def _canonical(classes: tf.Tensor) -> tf.Tensor:
    """The order of code points after canonical ordering: int32 [C]."""
    run = tf.cumsum(tf.cast(classes == 0, tf.int64))
    return tf.argsort(run * MORE_THAN_CLASSES + tf.cast(classes, tf.int64), stable=True)


def _entry(kinds: tf.Tensor, points: tf.Tensor) -> tf.Tensor:
    return tf.bitwise.bitwise_or(tf.bitwise.left_shift(kinds, KIND_SHIFT), points)


def _selected(mask: tf.Tensor, *arrays: tf.Tensor) -> tuple[tf.Tensor, ...]:
    index = tf.where(mask)[:, 0]
    return tuple(tf.gather(array, index) for array in arrays)
