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
    MAX_PARTS,
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
            self._decomposed = tf.constant(table.decomposed)
            self._parts = tf.constant(table.parts)
            self._kept_parts = tf.constant(table.kept_parts)
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
        origins = tf.cond(
            tf.reduce_any(tf.bitwise.right_shift(entries, KIND_SHIFT) == MARK),
            lambda: self._origins(points, kinds, origins),
            lambda: tf.tile(origins[:, None], [1, 3]),
        )
        entries = tf.reshape(entries, [-1])
        origins = tf.reshape(origins, [-1])
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
        """Where the reference says that the (up to three) parts of code points came from: [C, 3].

        It takes text apart, puts marks in order and only then counts: what was the first part of
        a code point, wherever it stands now, comes from the next place of the text, and another
        part from the same place as what stands before it. Accents are stripped after that.
        """
        place, apart = _found(self._decomposed, points)
        parts = tf.where(
            apart[:, None],
            tf.gather(self._parts, place),
            tf.pad(points[:, None], [[0, 0], [0, MAX_PARTS - 1]]),
        )
        classes = self._classes(parts)
        # The rest was cleaned away before.
        counted = (kinds != DROPPED) | apart | (classes[:, 0] > 0)
        first = tf.constant([[True] + [False] * (MAX_PARTS - 1)])
        taken = tf.where(((parts > 0) | first) & counted[:, None])
        order = _canonical(tf.gather_nd(classes, taken))
        taken = tf.gather(taken, order)
        place_in_text = tf.cumsum(tf.cast(taken[:, 1] == 0, tf.int64)) - 1
        came_from = tf.gather(tf.boolean_mask(origins, counted), place_in_text)
        all_origins = tf.tensor_scatter_nd_update(
            tf.tile(origins[:, None], [1, MAX_PARTS]), taken, came_from
        )
        kept = tf.where(apart[:, None], tf.gather(self._kept_parts, place), 0)
        return tf.gather(all_origins, kept, batch_dims=1)

    def _classes(self, points: tf.Tensor) -> tf.Tensor:
        """int32 [C...]: combining classes as ranks, 0 for what is no mark."""
        place, known = _found(self._marks, points)
        return tf.where(known, tf.gather(self._mark_classes, place), 0)


def _found(ascending: tf.Tensor, points: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Where points stand among the ascending ones, and whether they do."""
    flat = tf.searchsorted(ascending, tf.reshape(points, [-1]))
    place = tf.reshape(tf.minimum(flat, tf.size(ascending) - 1), tf.shape(points))
    return place, tf.gather(ascending, place) == points


def _canonical(classes: tf.Tensor) -> tf.Tensor:
    """The order of code points after canonical ordering: int32 [C]."""
    run = tf.cumsum(tf.cast(classes == 0, tf.int64))
    return tf.argsort(run * MORE_THAN_CLASSES + tf.cast(classes, tf.int64), stable=True)


def _entry(kinds: tf.Tensor, points: tf.Tensor) -> tf.Tensor:
    return tf.bitwise.bitwise_or(tf.bitwise.left_shift(kinds, KIND_SHIFT), points)


def _selected(mask: tf.Tensor, *arrays: tf.Tensor) -> tuple[tf.Tensor, ...]:
    index = tf.where(mask)[:, 0]
    return tuple(tf.gather(array, index) for array in arrays)
