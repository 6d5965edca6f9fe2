"""Texts as code points that know where they came from, in TensorFlow: what normalizers change.

Each operation follows the `tokenizers` package's `NormalizedString`, with its offsets: a character
that is put in has the place of the last one taken out, or of the one that it stands before.
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
    """int64 [C]: first place of the text that a code point came from"""
    ends: tf.Tensor
    """int64 [C]: the place after its last one"""
    splits: tf.Tensor
    """int64 [P + 1]: the code points of each text"""

    @property
    def size(self) -> tf.Tensor:
        """int64: C"""
        return tf.size(self.points, out_type=tf.int64)

    @property
    def rows(self) -> tf.Tensor:
        """int64 [C]: the text of each code point."""
        return row_ids(self.splits, self.size)


def decode(texts: tf.Tensor) -> NormalizedStrings:
    """UTF-8 string [P]; each invalid byte sequence is one U+FFFD."""
    found = tf.raw_ops.UnicodeDecode(
        input=texts, input_encoding="UTF-8", errors="replace", replacement_char=REPLACEMENT
    )
    points = found.char_values
    return with_own_offsets(NormalizedStrings(points, points, points, found.row_splits))


def with_own_offsets(texts: NormalizedStrings) -> NormalizedStrings:
    """The same code points, each of the place where it stands now."""
    place = tf.range(texts.size) - tf.gather(texts.splits, texts.rows)
    return texts._replace(starts=place, ends=place + 1)


def encode(points: tf.Tensor, splits: tf.Tensor) -> tf.Tensor:
    """Code points [C] to UTF-8 string [P]."""
    return tf.raw_ops.UnicodeEncode(
        input_values=points,
        input_splits=splits,
        errors="replace",
        output_encoding="UTF-8",
        replacement_char=REPLACEMENT,
    )


def is_white(points: tf.Tensor) -> tf.Tensor:
    """bool [C]: Unicode's White_Space."""
    inside = [(points >= first) & (points <= last) for first, last in WHITE_SPACE]
    return functools.reduce(tf.logical_or, inside)


def select(texts: NormalizedStrings, kept: tf.Tensor) -> NormalizedStrings:
    """The code points of which `kept` bool [C] says so."""
    places = tf.where(kept)[:, 0]
    splits = tf.searchsorted(places, texts.splits, out_type=tf.int64)
    points, starts, ends = (tf.gather(part, places) for part in texts[:3])
    return NormalizedStrings(points, starts, ends, splits)


def repeat(
    texts: NormalizedStrings, counts: tf.Tensor
) -> tuple[NormalizedStrings, tf.Tensor, tf.Tensor]:
    """Each code point as often as `counts` int64 [C] says.

    Also int64 [D]: which one each was, and the number of its copy.
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
    """Matches replaced: bool [C] of what is part of one, and of the last code point of each."""
    size = tf.constant(len(content), tf.int64)
    counts = tf.where(last, size, tf.where(inside, tf.zeros_like(size), tf.ones_like(size)))
    new, index, copy = repeat(texts, counts)
    written = tf.gather(tf.constant([*map(ord, content), 0]), copy)
    return new._replace(points=tf.where(tf.gather(last, index), written, new.points))


def prepend(
    texts: NormalizedStrings, before: tf.Tensor, content: str
) -> tuple[NormalizedStrings, tf.Tensor, tf.Tensor]:
    """`content` put before the code points of which `before` bool [C] says so.

    Also which code point each was, int64 [D], and where the content begins, bool [D].
    """
    size = tf.constant(len(content), tf.int64)
    new, index, copy = repeat(texts, tf.where(before, size + 1, tf.ones_like(size)))
    added = tf.gather(before, index) & (copy < size)
    written = tf.gather(tf.constant([*map(ord, content), 0]), copy)
    new = new._replace(points=tf.where(added, written, new.points))
    return new, index, added & (copy == 0)


def first_of_texts(texts: NormalizedStrings) -> tf.Tensor:
    """bool [C]: the first code point of each text that has one."""
    starts = tf.boolean_mask(texts.splits[:-1], texts.splits[:-1] < texts.splits[1:])
    flags = tf.zeros(tf.shape(texts.points), tf.bool)
    return tf.tensor_scatter_nd_update(flags, starts[:, None], tf.ones_like(starts, tf.bool))


def transform(
    texts: NormalizedStrings, points: tf.Tensor, changes: tf.Tensor, splits: tf.Tensor
) -> NormalizedStrings:
    """`NormalizedString::transform`: new code points [D] with the package's `changes` int64 [D].

    0 takes the place of the next one of the text, -n of n more behind it, and 1 is put in.
    """
    taken = tf.where(changes > 0, tf.zeros_like(changes), 1 - changes)
    places = tf.cumsum(taken, exclusive=True)
    rows = row_ids(splits, tf.size(points))
    firsts = tf.gather(tf.concat([places, [0]], 0), splits[:-1])
    source = places - tf.gather(firsts, rows) - tf.cast(changes > 0, tf.int64)
    source = tf.gather(texts.splits, rows) + tf.maximum(source, 0)
    return NormalizedStrings(
        points, tf.gather(texts.starts, source), tf.gather(texts.ends, source), splits
    )


def original_offsets(
    texts: NormalizedStrings, splits: tf.Tensor, starts: tf.Tensor, ends: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Tokens' places in the texts as they are now, int32 [M], to those in the texts as given.

    `splits` int64 [P + 1]: the tokens of each text.
    """
    base = tf.gather(texts.splits, row_ids(splits, tf.size(starts)))
    first, last = (base + tf.cast(part, tf.int64) for part in (starts, ends - 1))
    found = tf.gather(texts.starts, first), tf.gather(texts.ends, last)
    return tf.cast(found[0], tf.int32), tf.cast(found[1], tf.int32)


def strip(texts: NormalizedStrings, left: bool, right: bool) -> NormalizedStrings:
    """Texts without the white space at their ends."""
    solid = tf.where(~is_white(texts.points))[:, 0]
    size = texts.size[None]
    following = tf.gather(
        tf.concat([solid, size], 0),
        tf.searchsorted(solid, texts.splits[:-1], out_type=tf.int64),
    )
    preceding = tf.gather(
        tf.concat([[-1], solid], 0), tf.searchsorted(solid, texts.splits[1:], out_type=tf.int64)
    )
    rows, place = texts.rows, tf.range(texts.size)
    kept = tf.ones(tf.shape(texts.points), tf.bool)
    if left:
        kept &= place >= tf.gather(following, rows)
    if right:
        kept &= place <= tf.gather(preceding, rows)
    return select(texts, kept)


def replace_runs(
    texts: NormalizedStrings, character: str, least: int, content: str
) -> NormalizedStrings:
    """Runs of at least so many of one character replaced: the pattern ` {2,}`."""
    same, run, place = _runs(texts, character)
    sizes = tf.math.unsorted_segment_sum(tf.cast(same, tf.int64), run, texts.size + 1)
    inside = same & (tf.gather(sizes, run) >= least)
    return replace(texts, inside, inside & (place == tf.gather(sizes, run) - 1), content)


def replace_all(
    texts: NormalizedStrings, character: str, count: int, content: str
) -> NormalizedStrings:
    """Every so many of one character replaced: a literal pattern such as ` ` or two quotes."""
    if count == 1:
        same = texts.points == ord(character)
        return replace(texts, same, same, content)
    same, run, place = _runs(texts, character)
    sizes = tf.math.unsorted_segment_sum(tf.cast(same, tf.int64), run, texts.size + 1)
    inside = same & (place < tf.gather(sizes, run) // count * count)
    return replace(texts, inside, inside & (place % count == count - 1), content)


def _runs(texts: NormalizedStrings, character: str) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Whether each code point is the character; the number of its run, and its place in that."""
    same = texts.points == ord(character)
    begins = ~same | ~tf.concat([[False], same[:-1]], 0) | first_of_texts(texts)
    run = tf.cumsum(tf.cast(begins, tf.int64)) - 1
    firsts = tf.where(begins)[:, 0]
    return same, run, tf.range(texts.size) - tf.gather(firsts, run)
