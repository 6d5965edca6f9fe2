"""Unicode's normalization form NFC as TensorFlow ops, with the offsets of the `tokenizers` package.

Code points are decomposed, marks are put in canonical order, and pairs are composed: all spans of a
batch (a starter with its marks) at once, one step for each code point of the longest span. The
decompositions and pairs are those of the package.

Source: Unicode, section 3.11; `tokenizers` (tokenizer/normalizer.rs), unicode-normalization.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfllm.tokenizers.graph.codepoint_tables import (
    CODE_POINTS,
    PAGE_BITS,
    PAGE_SIZE,
    UNIFORM,
    combining_classes,
    normalize_code_points,
    representative_code_points,
)
from tfllm.tokenizers.graph.normalized_string import (
    NormalizedStrings,
    first_of_texts,
    repeat,
    transform,
)

MORE_THAN_CLASSES = 256
POINT_BITS = 21
NONE = -1


class Tables(NamedTuple):
    """Decompositions and pairs; entry of code point c: pages[page_starts[c >> 8] + (c & 255)]."""

    page_starts: np.ndarray
    """int32 [4352]"""
    pages: np.ndarray
    """int32 [N, 2]: the row of the decomposition, else NONE; the combining class, or
    MORE_THAN_CLASSES for a starter that may be composed with its predecessor."""
    part_begins: np.ndarray
    """int64 [D + 1]: where each decomposition begins in `parts`."""
    part_sizes: np.ndarray
    """int64 [D + 1]: the code points of each decomposition."""
    parts: np.ndarray
    """int32: the code points of all decompositions."""
    pairs: np.ndarray
    """int64 [P + 1], sorted: first << POINT_BITS | second."""
    composed: np.ndarray
    """int32 [P + 1]: what each pair becomes."""


@functools.cache
def tables() -> Tables:
    """Build the tables by running the reference once over every code point."""
    from tokenizers import normalizers

    points = representative_code_points()
    decomposed = dict(zip(points, normalize_code_points(points, normalizers.NFD()), strict=True))
    decomposed = {point: parts for point, parts in decomposed.items() if parts != chr(point)}
    compose = normalizers.NFC()
    pairs = {}
    for point, parts in decomposed.items():
        if len(parts) > 1 and compose.normalize_str(parts) == chr(point):
            first = compose.normalize_str(parts[:-1])
            if len(first) == 1:
                pairs[ord(first) << POINT_BITS | ord(parts[-1])] = point
    entries = np.full((CODE_POINTS, 2), 0, np.int32)
    entries[:, 0] = NONE
    entries[list(decomposed), 0] = np.arange(len(decomposed))
    for point, rank in combining_classes().items():
        entries[point, 1] = rank
    for pair in pairs:
        second = pair & (1 << POINT_BITS) - 1
        if not entries[second, 1]:
            entries[second, 1] = MORE_THAN_CLASSES
    for uniform in UNIFORM:
        entries[uniform.start : uniform.stop] = entries[uniform.start]
    pages, page_of = np.unique(entries.reshape(-1, 2 * PAGE_SIZE), axis=0, return_inverse=True)
    sizes = np.array([*map(len, decomposed.values()), 1], np.int64)
    keys = sorted(pairs)
    return Tables(
        (page_of.reshape(-1) * PAGE_SIZE).astype(np.int32),
        pages.reshape(-1, 2),
        np.cumsum(sizes) - sizes,
        sizes,
        np.array([*(ord(c) for parts in decomposed.values() for c in parts), 0], np.int32),
        np.array([*keys, np.iinfo(np.int64).max], np.int64),
        np.array([*(pairs[key] for key in keys), NONE], np.int32),
    )


class Composer(tf.Module):
    """Normalizes texts to NFC."""

    def __init__(self) -> None:
        super().__init__()
        with tf.init_scope():
            self._tables = Tables(*map(tf.constant, tables()))

    def __call__(self, texts: NormalizedStrings) -> NormalizedStrings:
        """Normalize texts, keeping the offsets of the code points."""
        return tf.cond(
            tf.reduce_any(texts.points > 0x7F), lambda: self._normalize(texts), lambda: texts
        )

    def _entries(self, points: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Rows of decompositions and combining classes: int32 [C] each."""
        start = tf.gather(self._tables.page_starts, tf.bitwise.right_shift(points, PAGE_BITS))
        index = start + tf.bitwise.bitwise_and(points, PAGE_SIZE - 1)
        rows, classes = tf.unstack(tf.gather(self._tables.pages, index), axis=1)
        return rows, classes

    def _normalize(self, texts: NormalizedStrings) -> NormalizedStrings:
        table = self._tables
        row, _ = self._entries(texts.points)
        unchanged = row == NONE
        row = tf.where(unchanged, tf.size(table.part_sizes) - 1, row)
        new, index, copy = repeat(texts, tf.gather(table.part_sizes, row))
        part = tf.gather(table.parts, tf.gather(tf.gather(table.part_begins, row), index) + copy)
        points = tf.where(tf.gather(unchanged, index), new.points, part)
        changes = tf.cast(copy > 0, tf.int64)
        _, classes = self._entries(points)
        starters = (classes == 0) | (classes == MORE_THAN_CLASSES)
        marks = tf.where(starters, 0, classes)
        begins = first_of_texts(new)
        # Neighbouring marks are sorted by class (stable).
        run = tf.cumsum(tf.cast(starters | begins, tf.int64))
        order = tf.argsort(run * MORE_THAN_CLASSES + tf.cast(marks, tf.int64), stable=True)
        points, changes, marks, starters = (
            tf.gather(values, order) for values in (points, changes, marks, starters)
        )
        spans = begins | (tf.gather(classes, order) == 0)
        points, changes, kept = self._compose(points, changes, marks, starters, spans)
        indices = tf.where(kept)[:, 0]
        splits = tf.searchsorted(indices, new.splits, out_type=tf.int64)
        return transform(texts, tf.gather(points, indices), tf.gather(changes, indices), splits)

    def _find_pairs(self, first: tf.Tensor, second: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The indices of pairs of code points in the table, and whether they are in it."""
        key = tf.bitwise.left_shift(tf.cast(first, tf.int64), POINT_BITS)
        key += tf.cast(second, tf.int64)
        pair = tf.searchsorted(self._tables.pairs, key)
        return pair, tf.gather(self._tables.pairs, pair) == key

    def _compose(
        self,
        points: tf.Tensor,
        changes: tf.Tensor,
        marks: tf.Tensor,
        starters: tf.Tensor,
        begins: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Compose pairs of code points, each at the index of its first one.

        Args:
            points: Code points in canonical order, int32 [C].
            changes: The changes of `transform`, int64 [C].
            marks: Combining classes, 0 for starters, int32 [C].
            starters: Whether each is a starter, bool [C].
            begins: Whether a span begins with each, bool [C].

        Returns:
            New `points` and `changes`, and which of them are kept, bool [C].
        """
        size = tf.size(points, out_type=tf.int64)
        firsts = tf.where(begins)[:, 0]
        sizes = tf.concat([firsts[1:], size[None]], 0) - firsts
        order = tf.argsort(sizes, direction="DESCENDING", stable=True)
        firsts, falling = tf.gather(firsts, order), -tf.gather(sizes, order)
        # Of each span: the index of the last starter, and the class of the mark before.
        starter_index = tf.where(tf.gather(starters, firsts), firsts, NONE)
        last = tf.fill(tf.shape(firsts), NONE)
        kept = tf.ones(tf.shape(points), tf.bool)

        def step(
            number: tf.Tensor,
            starter_index: tf.Tensor,
            last: tf.Tensor,
            points: tf.Tensor,
            changes: tf.Tensor,
            kept: tf.Tensor,
        ) -> tuple[tf.Tensor, ...]:
            active = tf.searchsorted(falling, -(number + 1)[None], side="right")[0]
            starter_index, last = starter_index[:active], last[:active]
            index = firsts[:active] + number
            mark, is_starter = tf.gather(marks, index), tf.gather(starters, index)
            target = tf.maximum(starter_index, 0)
            pair, is_pair = self._find_pairs(tf.gather(points, target), tf.gather(points, index))
            unblocked = (last == NONE) | (last < mark)
            composes = is_pair & unblocked & (starter_index != NONE)
            rows = tf.where(composes)[:, 0]
            into, removed = tf.gather(target, rows)[:, None], tf.gather(index, rows)
            points = tf.tensor_scatter_nd_update(
                points, into, tf.gather(self._tables.composed, tf.gather(pair, rows))
            )
            changes = tf.tensor_scatter_nd_add(changes, into, tf.gather(changes, removed) - 1)
            kept = tf.tensor_scatter_nd_update(
                kept, removed[:, None], tf.zeros_like(removed, tf.bool)
            )
            starter_index = tf.where(~composes & is_starter, index, starter_index)
            blocks = ~composes & (starter_index != NONE)
            last = tf.where(blocks, tf.where(is_starter, NONE, mark), last)
            return number + 1, starter_index, last, points, changes, kept

        unknown = tf.TensorShape([None])
        state = (tf.constant(1, tf.int64), starter_index, last, points, changes, kept)
        steps = tf.reduce_max(tf.concat([sizes, [0]], 0))
        *_, points, changes, kept = tf.while_loop(
            lambda number, *_: number < steps,
            step,
            state,
            shape_invariants=(tf.TensorShape([]), *(unknown,) * 5),
        )
        return points, changes, kept
