"""BERT's normalizer and pre-tokenizer as TensorFlow ops: gathers from `codepoint_tables`.

All texts of a batch are processed as one flat array of code points (C of them); a space after each
text separates its last word from the first word of the next text.
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
    """The W words of B texts, with their K code points and the origins of those."""

    strings: tf.Tensor
    """string [W]"""
    splits: tf.Tensor
    """int64 [B + 1]: the words of each text."""
    code_points: tf.Tensor
    """int32 [K]: the code points of all words, after normalization."""
    code_point_splits: tf.Tensor
    """int64 [W + 1]: the code points of each word."""
    origins: tf.Tensor
    """int64 [K]: the index in the batch of the code point that each came from."""
    text_starts: tf.Tensor
    """int64 [B + 1]: the index in the batch at which each text begins, with one space after each
    text."""


class BertWordSplitter(tf.Module):
    """Normalizes texts and splits them into words.

    Args:
        table: What becomes of each code point; held as constants, once for all functions.
    """

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
        """Split UTF-8 string [B] into words."""
        decoded = tf.raw_ops.UnicodeDecode(
            input=tf.strings.join([texts, " "]),
            input_encoding="UTF-8",
            errors="replace",
            replacement_char=REPLACEMENT,
        )
        points, kinds, origins = self._normalize(decoded.char_values)
        points, kinds, origins = _select(kinds > BARRIER, points, kinds, origins)
        in_word = kinds >= WORD
        after_word = tf.concat([[False], in_word[:-1]], 0)
        begins = (kinds == ALONE) | (in_word & ~after_word)
        points, begins, origins = _select(kinds != SPACE, points, begins, origins)
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

    def _normalize(self, points: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Code points int32 [C] to new ones, their kinds, and their origins int64."""
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
            lambda: self._expand(points, kinds, values, moved, origins),
            lambda: (moved, kinds, origins),
        )

    def _expand(
        self,
        points: tf.Tensor,
        kinds: tf.Tensor,
        values: tf.Tensor,
        moved: tf.Tensor,
        origins: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Expand each code point to up to three, as its kind says, and order the marks."""
        kind = kinds[:, None]
        single = tf.pad(_entry(kinds, moved)[:, None], [[0, 0], [0, 2]])  # [C, 3]
        listed = tf.gather(self._sequences, tf.where(kinds == SEQUENCE, values, 0))
        syllable = points - HANGUL_SYLLABLES.start
        letters = _entry(
            tf.where([[True, True, False]] | (syllable % 28 > 0)[:, None], WORD, DROPPED),
            tf.stack(
                [0x1100 + syllable // 588, 0x1161 + syllable % 588 // 28, 0x11A7 + syllable % 28], 1
            ),
        )
        entries = tf.where(kind == SEQUENCE, listed, tf.where(kind == HANGUL, letters, single))
        origins = tf.cond(
            tf.reduce_any(tf.bitwise.right_shift(entries, KIND_SHIFT) == MARK),
            lambda: self._origins(points, kinds, origins),
            lambda: tf.tile(origins[:, None], [1, 3]),
        )
        entries = tf.reshape(entries, [-1])
        origins = tf.reshape(origins, [-1])
        entries, origins = _select(entries >= BARRIER << KIND_SHIFT, entries, origins)
        kinds = tf.bitwise.right_shift(entries, KIND_SHIFT)
        points = tf.bitwise.bitwise_and(entries, VALUE_MASK)
        points, origins = tf.cond(
            tf.reduce_any(kinds == MARK),
            lambda: self._order_marks(points, kinds, origins),
            lambda: (points, origins),
        )
        return points, kinds, origins

    def _order_marks(
        self, points: tf.Tensor, kinds: tf.Tensor, origins: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Sort neighbouring marks by class (stable)."""
        order = _canonical_order(tf.where(kinds == MARK, self._classes(points), 0))
        return tf.gather(points, order), tf.gather(origins, order)

    def _origins(self, points: tf.Tensor, kinds: tf.Tensor, origins: tf.Tensor) -> tf.Tensor:
        """The origins of the (up to three) parts of code points in the reference: [C, 3].

        The reference decomposes the text, orders the marks and only then counts: what was the first
        part of a code point, wherever it is now, has the next origin of the text, and another part
        has the origin of its predecessor. Accents are stripped after that.
        """
        row, decomposes = _find(self._decomposed, points)
        parts = tf.where(
            decomposes[:, None],
            tf.gather(self._parts, row),
            tf.pad(points[:, None], [[0, 0], [0, MAX_PARTS - 1]]),
        )
        classes = self._classes(parts)
        # All others were removed before, when the text was cleaned.
        counted = (kinds != DROPPED) | decomposes | (classes[:, 0] > 0)
        first = tf.constant([[True] + [False] * (MAX_PARTS - 1)])
        present = tf.where(((parts > 0) | first) & counted[:, None])
        order = _canonical_order(tf.gather_nd(classes, present))
        present = tf.gather(present, order)
        index_in_text = tf.cumsum(tf.cast(present[:, 1] == 0, tf.int64)) - 1
        new_origins = tf.gather(tf.boolean_mask(origins, counted), index_in_text)
        all_origins = tf.tensor_scatter_nd_update(
            tf.tile(origins[:, None], [1, MAX_PARTS]), present, new_origins
        )
        kept = tf.where(decomposes[:, None], tf.gather(self._kept_parts, row), 0)
        return tf.gather(all_origins, kept, batch_dims=1)

    def _classes(self, points: tf.Tensor) -> tf.Tensor:
        """int32 [C...]: combining classes as ranks, 0 for all but marks."""
        row, is_mark = _find(self._marks, points)
        return tf.where(is_mark, tf.gather(self._mark_classes, row), 0)


def _find(ascending: tf.Tensor, points: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The indices of points in an ascending array, and whether they are in it."""
    flat = tf.searchsorted(ascending, tf.reshape(points, [-1]))
    index = tf.reshape(tf.minimum(flat, tf.size(ascending) - 1), tf.shape(points))
    return index, tf.gather(ascending, index) == points


def _canonical_order(classes: tf.Tensor) -> tf.Tensor:
    """The order of code points after canonical ordering: int32 [C]."""
    run = tf.cumsum(tf.cast(classes == 0, tf.int64))
    return tf.argsort(run * MORE_THAN_CLASSES + tf.cast(classes, tf.int64), stable=True)


def _entry(kinds: tf.Tensor, points: tf.Tensor) -> tf.Tensor:
    return tf.bitwise.bitwise_or(tf.bitwise.left_shift(kinds, KIND_SHIFT), points)


def _select(mask: tf.Tensor, *arrays: tf.Tensor) -> tuple[tf.Tensor, ...]:
    index = tf.where(mask)[:, 0]
    return tuple(tf.gather(array, index) for array in arrays)
