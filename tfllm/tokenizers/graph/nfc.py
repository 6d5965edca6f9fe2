"""Unicode's form NFC as TensorFlow ops, offsets included, as the `tokenizers` package has them.

Code points are taken apart, marks are put in order and what belongs together is put together again:
every stretch of a batch at once, one step for each code point of the longest. The package says what
each code point falls into and which pairs make one.

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
    """What the package does. The entry of c: pages[page_starts[c >> 8] + (c & 255)]."""

    page_starts: np.ndarray
    pages: np.ndarray
    """int32 [N, 2]: the row of `parts` for what falls apart, else NONE; the combining class, and
    MORE_THAN_CLASSES more for a starter that may be joined to what stands before it"""
    part_begins: np.ndarray
    part_sizes: np.ndarray
    parts: np.ndarray
    pairs: np.ndarray
    """int64, sorted: first << POINT_BITS | second"""
    composed: np.ndarray


@functools.cache
def tables() -> Tables:
    """Asked of the reference once about every code point."""
    from tokenizers import normalizers

    points = representative_code_points()
    apart = dict(zip(points, normalize_code_points(points, normalizers.NFD()), strict=True))
    apart = {point: parts for point, parts in apart.items() if parts != chr(point)}
    compose = normalizers.NFC()
    pairs = {}
    for point, parts in apart.items():
        if len(parts) > 1 and compose.normalize_str(parts) == chr(point):
            first = compose.normalize_str(parts[:-1])
            if len(first) == 1:
                pairs[ord(first) << POINT_BITS | ord(parts[-1])] = point
    entries = np.full((CODE_POINTS, 2), 0, np.int32)
    entries[:, 0] = NONE
    entries[list(apart), 0] = np.arange(len(apart))
    for point, rank in combining_classes(points).items():
        entries[point, 1] = rank
    for pair in pairs:
        second = pair & (1 << POINT_BITS) - 1
        if not entries[second, 1]:
            entries[second, 1] = MORE_THAN_CLASSES
    for uniform in UNIFORM:
        entries[uniform.start : uniform.stop] = entries[uniform.start]
    pages, page_of = np.unique(entries.reshape(-1, 2 * PAGE_SIZE), axis=0, return_inverse=True)
    sizes = np.array([*map(len, apart.values()), 1], np.int64)
    keys = sorted(pairs)
    return Tables(
        (page_of.reshape(-1) * PAGE_SIZE).astype(np.int32),
        pages.reshape(-1, 2),
        np.cumsum(sizes) - sizes,
        sizes,
        np.array([*(ord(c) for parts in apart.values() for c in parts), 0], np.int32),
        np.array([*keys, np.iinfo(np.int64).max], np.int64),
        np.array([*(pairs[key] for key in keys), NONE], np.int32),
    )


class Composer(tf.Module):
    """Texts to NFC."""

    def __init__(self) -> None:
        super().__init__()
        with tf.init_scope():
            self._tables = Tables(*map(tf.constant, tables()))

    def __call__(self, texts: NormalizedStrings) -> NormalizedStrings:
        """Code points that came from the texts' own."""
        return tf.cond(
            tf.reduce_any(texts.points > 0x7F), lambda: self._composed(texts), lambda: texts
        )

    def _entries(self, points: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Rows of `parts` and classes: int32 [C] each."""
        start = tf.gather(self._tables.page_starts, tf.bitwise.right_shift(points, PAGE_BITS))
        place = start + tf.bitwise.bitwise_and(points, PAGE_SIZE - 1)
        rows, classes = tf.unstack(tf.gather(self._tables.pages, place), axis=1)
        return rows, classes

    def _composed(self, texts: NormalizedStrings) -> NormalizedStrings:
        table = self._tables
        row, _ = self._entries(texts.points)
        whole = row == NONE
        row = tf.where(whole, tf.size(table.part_sizes) - 1, row)
        new, index, copy = repeat(texts, tf.gather(table.part_sizes, row))
        part = tf.gather(table.parts, tf.gather(tf.gather(table.part_begins, row), index) + copy)
        points = tf.where(tf.gather(whole, index), new.points, part)
        changes = tf.cast(copy > 0, tf.int64)
        _, classes = self._entries(points)
        starters = (classes == 0) | (classes == MORE_THAN_CLASSES)
        marks = tf.where(starters, 0, classes)
        begins = first_of_texts(new)
        # Marks in a row by their classes; those of one class stay as they stood.
        run = tf.cumsum(tf.cast(starters | begins, tf.int64))
        order = tf.argsort(run * MORE_THAN_CLASSES + tf.cast(marks, tf.int64), stable=True)
        points, changes, marks, starters = (
            tf.gather(values, order) for values in (points, changes, marks, starters)
        )
        stretch = begins | (tf.gather(classes, order) == 0)
        points, changes, kept = self._joined(points, changes, marks, starters, stretch)
        places = tf.where(kept)[:, 0]
        splits = tf.searchsorted(places, new.splits, out_type=tf.int64)
        return transform(texts, tf.gather(points, places), tf.gather(changes, places), splits)

    def _joined(self, points, changes, marks, starters, begins):
        """Points and changes [C] with what belongs together at its first place; what is left."""
        size = tf.size(points, out_type=tf.int64)
        firsts = tf.where(begins)[:, 0]
        sizes = tf.concat([firsts[1:], size[None]], 0) - firsts
        order = tf.argsort(sizes, direction="DESCENDING", stable=True)
        firsts, falling = tf.gather(firsts, order), -tf.gather(sizes, order)
        # Of each stretch: the place that may be joined to, and the class of the mark before.
        opened = tf.where(tf.gather(starters, firsts), firsts, NONE)
        last = tf.fill(tf.shape(firsts), NONE)
        kept = tf.ones(tf.shape(points), tf.bool)

        def step(number, opened, last, points, changes, kept):
            active = tf.searchsorted(falling, -(number + 1)[None], side="right")[0]
            opened, last = opened[:active], last[:active]
            place = firsts[:active] + number
            mark, starter = tf.gather(marks, place), tf.gather(starters, place)
            target = tf.maximum(opened, 0)
            key = tf.cast(tf.gather(points, target), tf.int64)
            key = tf.bitwise.left_shift(key, POINT_BITS)
            key += tf.cast(tf.gather(points, place), tf.int64)
            edge = tf.searchsorted(self._tables.pairs, key)
            found = tf.gather(self._tables.pairs, edge) == key
            free = (last == NONE) | (last < mark)
            joins = found & free & (opened != NONE)
            joined = tf.where(joins)[:, 0]
            into, taken = tf.gather(target, joined)[:, None], tf.gather(place, joined)
            points = tf.tensor_scatter_nd_update(
                points, into, tf.gather(self._tables.composed, tf.gather(edge, joined))
            )
            changes = tf.tensor_scatter_nd_add(changes, into, tf.gather(changes, taken) - 1)
            kept = tf.tensor_scatter_nd_update(kept, taken[:, None], tf.zeros_like(taken, tf.bool))
            opened = tf.where(~joins & starter, place, opened)
            waits = ~joins & (opened != NONE)
            last = tf.where(waits, tf.where(starter, NONE, mark), last)
            return number + 1, opened, last, points, changes, kept

        unknown = tf.TensorShape([None])
        state = (tf.constant(1, tf.int64), opened, last, points, changes, kept)
        steps = tf.reduce_max(tf.concat([sizes, [0]], 0))
        *_, points, changes, kept = tf.while_loop(
            lambda number, *_: number < steps,
            step,
            state,
            shape_invariants=(tf.TensorShape([]), *(unknown,) * 5),
        )
        return points, changes, kept
