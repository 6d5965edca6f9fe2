"""Texts as code points with their offsets in the original text, as TensorFlow ops for normalizers.

Each operation follows the `tokenizers` package's `NormalizedString`, with its offsets: an inserted
character has the offsets of the last removed one, or of the one that follows it.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import tensorflow as tf

from tfllm.tokenizers.graph.added_tokens import REPLACEMENT, row_ids
from tfllm.tokenizers.word_alignment import WHITE_SPACE


class NormalizedStrings(NamedTuple):
    """C code points of P texts."""

    points: tf.Tensor
    """int32 [C]"""
    starts: tf.Tensor
    """int64 [C]: where in the original text each code point came from."""
    ends: tf.Tensor
    """int64 [C]: the end of that range."""
    splits: tf.Tensor
    """int64 [P + 1]: the code points of each text."""

    @property
    def size(self) -> tf.Tensor:
        """C, the number of code points: a scalar int64."""
        return tf.size(self.points, out_type=tf.int64)

    @property
    def rows(self) -> tf.Tensor:
        """int64 [C]: the text of each code point."""
        return row_ids(self.splits, self.size)


def decode(texts: tf.Tensor) -> NormalizedStrings:
    """Decode UTF-8 string [P]; each invalid byte sequence becomes one U+FFFD."""
    decoded = tf.raw_ops.UnicodeDecode(
        input=texts, input_encoding="UTF-8", errors="replace", replacement_char=REPLACEMENT
    )
    points = decoded.char_values
    return with_own_offsets(NormalizedStrings(points, points, points, decoded.row_splits))


def with_own_offsets(texts: NormalizedStrings) -> NormalizedStrings:
    """Set the offsets of each code point to its current index in its text."""
    index = tf.range(texts.size) - tf.gather(texts.splits, texts.rows)
    return texts._replace(starts=index, ends=index + 1)


def encode(points: tf.Tensor, splits: tf.Tensor) -> tf.Tensor:
    """Encode code points int32 [C] with row splits int64 [P + 1] to UTF-8 string [P]."""
    return tf.raw_ops.UnicodeEncode(
        input_values=points,
        input_splits=splits,
        errors="replace",
        output_encoding="UTF-8",
        replacement_char=REPLACEMENT,
    )


def is_white(points: tf.Tensor) -> tf.Tensor:
    """Return whether each code point is Unicode's White_Space: bool [C]."""
    inside = [(points >= first) & (points <= last) for first, last in WHITE_SPACE]
    return functools.reduce(tf.logical_or, inside)


def select(texts: NormalizedStrings, kept: tf.Tensor) -> NormalizedStrings:
    """Keep the code points where `kept` bool [C] is true."""
    indices = tf.where(kept)[:, 0]
    splits = tf.searchsorted(indices, texts.splits, out_type=tf.int64)
    points, starts, ends = (tf.gather(part, indices) for part in texts[:3])
    return NormalizedStrings(points, starts, ends, splits)


def repeat(
    texts: NormalizedStrings, counts: tf.Tensor
) -> tuple[NormalizedStrings, tf.Tensor, tf.Tensor]:
    """Repeat each code point.

    Args:
        texts: The texts, of C code points.
        counts: How often each is repeated: int64 [C].

    Returns:
        The D repeated code points; int64 [D]: the index of the code point that each was, and the
        number of the copy.
    """
    index = tf.repeat(tf.range(texts.size), counts)
    begins = tf.cumsum(counts, exclusive=True)
    copy = tf.range(tf.size(index, out_type=tf.int64)) - tf.gather(begins, index)
    splits = tf.gather(tf.concat([begins, tf.reduce_sum(counts)[None]], 0), texts.splits)
    points, starts, ends = (tf.gather(part, index) for part in texts[:3])
    return NormalizedStrings(points, starts, ends, splits), index, copy


def replace(
    texts: NormalizedStrings, inside: tf.Tensor, last: tf.Tensor, content: str
) -> NormalizedStrings:
    """Replace matches by `content`.

    Args:
        texts: The texts.
        inside: Whether each code point is part of a match, bool [C].
        last: Whether each is the last of a match, bool [C].
        content: The replacement.
    """
    size = tf.constant(len(content), tf.int64)
    counts = tf.where(last, size, tf.where(inside, tf.zeros_like(size), tf.ones_like(size)))
    new, index, copy = repeat(texts, counts)
    replacement = tf.gather(tf.constant([*map(ord, content), 0]), copy)
    return new._replace(points=tf.where(tf.gather(last, index), replacement, new.points))


def prepend(
    texts: NormalizedStrings, before: tf.Tensor, content: str
) -> tuple[NormalizedStrings, tf.Tensor, tf.Tensor]:
    """Put `content` before the code points where `before` bool [C] is true.

    Returns:
        The D new code points; the index of the code point that each was, int64 [D]; whether the
        content begins with it, bool [D].
    """
    size = tf.constant(len(content), tf.int64)
    new, index, copy = repeat(texts, tf.where(before, size + 1, tf.ones_like(size)))
    added = tf.gather(before, index) & (copy < size)
    inserted = tf.gather(tf.constant([*map(ord, content), 0]), copy)
    new = new._replace(points=tf.where(added, inserted, new.points))
    return new, index, added & (copy == 0)


def first_of_texts(texts: NormalizedStrings) -> tf.Tensor:
    """Return whether each code point is the first of its text: bool [C]."""
    starts = tf.boolean_mask(texts.splits[:-1], texts.splits[:-1] < texts.splits[1:])
    flags = tf.zeros(tf.shape(texts.points), tf.bool)
    return tf.tensor_scatter_nd_update(flags, starts[:, None], tf.ones_like(starts, tf.bool))


def transform(
    texts: NormalizedStrings, points: tf.Tensor, changes: tf.Tensor, splits: tf.Tensor
) -> NormalizedStrings:
    """Replace the code points of texts, as the package's `NormalizedString::transform` does.

    Args:
        texts: The texts.
        points: The new code points, int32 [D].
        changes: int64 [D]: 0 replaces the next code point of the text, -n replaces it and n more,
            and 1 inserts.
        splits: The new code points of each text, int64 [P + 1].
    """
    replaced = tf.where(changes > 0, tf.zeros_like(changes), 1 - changes)
    offsets = tf.cumsum(replaced, exclusive=True)
    rows = row_ids(splits, tf.size(points))
    firsts = tf.gather(tf.concat([offsets, [0]], 0), splits[:-1])
    source = offsets - tf.gather(firsts, rows) - tf.cast(changes > 0, tf.int64)
    source = tf.gather(texts.splits, rows) + tf.maximum(source, 0)
    return NormalizedStrings(
        points, tf.gather(texts.starts, source), tf.gather(texts.ends, source), splits
    )


def original_offsets(
    texts: NormalizedStrings, splits: tf.Tensor, starts: tf.Tensor, ends: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Convert offsets in normalized texts to offsets in the original texts.

    Args:
        texts: The normalized texts.
        splits: The tokens of each text, int64 [P + 1].
        starts: Where tokens start in the normalized texts, int32 [M].
        ends: Where they end, int32 [M].

    Returns:
        Starts and ends in the original texts, int32 [M] each.
    """
    base = tf.gather(texts.splits, row_ids(splits, tf.size(starts)))
    first, last = (base + tf.cast(part, tf.int64) for part in (starts, ends - 1))
    original_starts, original_ends = tf.gather(texts.starts, first), tf.gather(texts.ends, last)
    return tf.cast(original_starts, tf.int32), tf.cast(original_ends, tf.int32)


def strip(texts: NormalizedStrings, left: bool, right: bool) -> NormalizedStrings:
    """Strip the white space at the ends of texts.

    Args:
        texts: The texts.
        left: Whether at their beginning.
        right: Whether at their end.
    """
    solid = tf.where(~is_white(texts.points))[:, 0]
    size = texts.size[None]
    following = tf.gather(
        tf.concat([solid, size], 0),
        tf.searchsorted(solid, texts.splits[:-1], out_type=tf.int64),
    )
    preceding = tf.gather(
        tf.concat([[-1], solid], 0), tf.searchsorted(solid, texts.splits[1:], out_type=tf.int64)
    )
    rows, index = texts.rows, tf.range(texts.size)
    kept = tf.ones(tf.shape(texts.points), tf.bool)
    if left:
        kept &= index >= tf.gather(following, rows)
    if right:
        kept &= index <= tf.gather(preceding, rows)
    return select(texts, kept)


def replace_runs(
    texts: NormalizedStrings, character: str, least: int, content: str
) -> NormalizedStrings:
    """Replace runs of one character, as the pattern ` {2,}` does.

    Args:
        texts: The texts.
        character: The character.
        least: How many of it are a run at least.
        content: What replaces a run.
    """
    same, run, index_in_run = _runs(texts, character)
    sizes = tf.math.unsorted_segment_sum(tf.cast(same, tf.int64), run, texts.size + 1)
    inside = same & (tf.gather(sizes, run) >= least)
    return replace(texts, inside, inside & (index_in_run == tf.gather(sizes, run) - 1), content)


def replace_all(
    texts: NormalizedStrings, character: str, count: int, content: str
) -> NormalizedStrings:
    """Replace repetitions of one character: a literal pattern such as two quotes.

    Args:
        texts: The texts.
        character: The character.
        count: How often the pattern has it.
        content: What replaces each.
    """
    if count == 1:
        same = texts.points == ord(character)
        return replace(texts, same, same, content)
    same, run, index_in_run = _runs(texts, character)
    sizes = tf.math.unsorted_segment_sum(tf.cast(same, tf.int64), run, texts.size + 1)
    inside = same & (index_in_run < tf.gather(sizes, run) // count * count)
    return replace(texts, inside, inside & (index_in_run % count == count - 1), content)


def _runs(texts: NormalizedStrings, character: str) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Whether each code point is the character; the number of its run, and its index in that."""
    same = texts.points == ord(character)
    begins = ~same | ~tf.concat([[False], same[:-1]], 0) | first_of_texts(texts)
    run = tf.cumsum(tf.cast(begins, tf.int64)) - 1
    firsts = tf.where(begins)[:, 0]
    return same, run, tf.range(texts.size) - tf.gather(firsts, run)
