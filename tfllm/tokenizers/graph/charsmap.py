"""SentencePiece's precompiled charsmap as TensorFlow ops, as the `tokenizers` package applies it.

The package does not take the longest match, as SentencePiece does. It goes by grapheme clusters:
one of less than six bytes is replaced whole by what the shortest entry that begins it stands for;
in any other cluster each code point is replaced alone.

Source: `tokenizers` (normalizers/precompiled.rs), spm_precompiled; Unicode's UAX 29.
"""

from __future__ import annotations

import functools
import unicodedata

import numpy as np
import tensorflow as tf

from tfllm.errors import TokenizerError
from tfllm.tokenizers.graph.codepoint_tables import (
    CODE_POINTS,
    PAGE_BITS,
    PAGE_SIZE,
    UNIFORM,
    representative_code_points,
)
from tfllm.tokenizers.graph.normalized_string import (
    NormalizedStrings,
    first_of_texts,
    repeat,
    transform,
)
from tfllm.tokenizers.graph.trie import NONE, CodePointTrie

CLUSTER_BYTES = 6  # clusters of so many bytes are no longer looked up whole
# Units of the double array: label, leaf flag, offset (Darts-clone).
LABEL, LEAF, VALUE = 1 << 31 | 0xFF, 1 << 8, (1 << 31) - 1
# How a code point joins its neighbours in a cluster.
OTHER, EXTENDS, PREPENDS, BREAKS, RETURN, NEWLINE = range(6)
PREPENDED = (  # Grapheme_Cluster_Break=Prepend, Unicode 16
    *range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0xD4E, 0x110BD, 0x110CD, 0x111C2,
    0x111C3, 0x113D1, 0x1193F, 0x11941, 0x11A3A, *range(0x11A84, 0x11A8A), 0x11D46, 0x11F02,
)  # fmt: skip
# Clusters of these go by further rules, but have six bytes at least, unless a rule begins with one.
FURTHER = (
    range(0x1100, 0x1200), range(0xA960, 0xA980), range(0xAC00, 0xD7FC), range(0x1F1E6, 0x1F200),
    (0xA9, 0xAE),
)  # fmt: skip


class Charsmap(tf.Module):
    """Texts to their normalized code points."""

    def __init__(self, blob: bytes):
        super().__init__()
        rules = parse_rules(blob)
        single = {ord(key): value for key, value in rules.items() if len(key) == 1}
        several = {
            key: value
            for key, value in rules.items()
            if len(key) > 1 and len(key.encode()) < CLUSTER_BYTES and ord(key[0]) not in single
        }
        for key in (*map(chr, single), *several):
            if any(ord(key[0]) in points for points in FURTHER) and len(key.encode()) < 5:
                raise TokenizerError(
                    f"tokenizer.json: the charsmap has a rule for U+{ord(key[0]):04X}, which is "
                    "not known in the graph. The tokenizer works in Python; or use the "
                    "checkpoint's .model file."
                )
        contents = [*single.values(), *several.values()]
        self._trie = CodePointTrie({key: len(single) + n for n, key in enumerate(several)})
        numbers = np.full(CODE_POINTS, NONE, np.int32)
        numbers[list(single)] = np.arange(len(single))
        lengths = np.array([*map(len, contents), 1], np.int64)
        begins = np.cumsum(lengths) - lengths
        with tf.init_scope():
            self._numbers = _paged(numbers)
            self._joins = _paged(joins_of_code_points())
            self._lengths, self._begins = tf.constant(lengths), tf.constant(begins)
            self._content = tf.constant([*(ord(c) for text in contents for c in text), 0])
        self._itself = len(contents)

    def __call__(self, texts: NormalizedStrings) -> NormalizedStrings:
        """Code points that came from the texts' own, one or several each."""
        numbers = _looked_up(self._numbers, texts.points)
        ones = tf.ones_like(texts.starts)
        joined = self._joined(texts)
        numbers, parts = tf.cond(
            tf.reduce_any(joined),
            lambda: self._clusters(texts, numbers, joined),
            lambda: (numbers, ones),
        )
        return tf.cond(
            tf.reduce_any(numbers != NONE),
            lambda: self._replaced(texts, numbers, parts),
            lambda: texts,
        )

    def _joined(self, texts: NormalizedStrings) -> tf.Tensor:
        """bool [C]: whether each code point is in the cluster of the one before it."""
        own = _looked_up(self._joins, texts.points)
        before = tf.concat([[BREAKS], own[:-1]], 0)
        free = (before != BREAKS) & (before != RETURN) & (before != NEWLINE)
        after = (own != BREAKS) & (own != RETURN) & (own != NEWLINE)
        joins = (own == EXTENDS) & free | (before == PREPENDS) & after
        joins |= (before == RETURN) & (own == NEWLINE)
        return joins & ~first_of_texts(texts)

    def _clusters(
        self, texts: NormalizedStrings, numbers: tf.Tensor, joined: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """The rule of each part of a text at its first code point, and the part's code points.

        A part has 0 code points where it belongs to the one before it.
        """
        cluster = tf.cumsum(tf.cast(~joined, tf.int64)) - 1
        firsts = tf.where(~joined)[:, 0]
        stops = tf.concat([firsts[1:], texts.size[None]], 0)
        sizes = tf.add_n(
            [tf.cast(texts.points >= limit, tf.int64) for limit in (0, 0x80, 0x800, 0x10000)]
        )
        bytes_of = tf.math.segment_sum(sizes, cluster)
        small = (bytes_of < CLUSTER_BYTES) & (stops - firsts > 1)
        firsts, stops = tf.boolean_mask(firsts, small), tf.boolean_mask(stops, small)
        # Longer entries are written first, so that the shortest stays.
        begins, _, found = self._trie.find_all(texts.points, stops, firsts)
        ends = tf.scatter_nd(firsts[:, None], stops, texts.size[None])
        order = tf.range(tf.size(found), 0, -1) - 1
        rule = numbers
        shortest = tf.math.unsorted_segment_max(order, begins, texts.size)
        matched = tf.where(shortest >= 0)[:, 0]
        value = tf.gather(found, tf.size(found) - 1 - tf.gather(shortest, matched))
        rule = tf.tensor_scatter_nd_update(rule, matched[:, None], value)
        whole = (ends > 0) & (rule != NONE)  # clusters with a rule
        covered = joined & tf.gather(whole, tf.gather(tf.where(~joined)[:, 0], cluster))
        parts = tf.where(whole, ends - tf.range(texts.size), tf.ones_like(ends))
        parts = tf.where(covered, tf.zeros_like(parts), parts)
        return tf.where(covered, NONE, rule), parts

    def _replaced(
        self, texts: NormalizedStrings, numbers: tf.Tensor, parts: tf.Tensor
    ) -> NormalizedStrings:
        """What `NormalizedString::transform` makes of the package's list of changes."""
        rule = tf.where(numbers == NONE, self._itself, numbers)
        lengths = tf.where(parts > 0, tf.gather(self._lengths, rule), tf.zeros_like(parts))
        new, index, copy = repeat(texts, lengths)
        place = tf.gather(self._begins, tf.gather(rule, index)) + copy
        kept = tf.gather(numbers, index) == NONE
        points = tf.where(kept, new.points, tf.gather(self._content, place))
        # A character put in has the place of the one before it; the last one before a gap takes it.
        change = tf.cast(copy >= tf.gather(parts, index), tf.int64)
        lost = tf.maximum(parts - lengths, 0)
        last = tf.cumsum(lengths) - 1  # the character written last, when each part is done
        last = tf.where(last >= tf.gather(new.splits[:-1], texts.rows), last, -1)
        change -= tf.math.unsorted_segment_sum(lost, last, new.size)
        return transform(texts, points, change, new.splits)


def parse_rules(blob: bytes) -> dict[str, str]:
    """The entries of a precompiled charsmap that the package can meet.

    That is, those of less than CLUSTER_BYTES bytes that no shorter entry begins.
    """
    size = int.from_bytes(blob[:4], "little")
    if size % 4 or len(blob) < 4 + size:
        raise TokenizerError("tokenizer.json: 'precompiled_charsmap' is cut short. Copy it again.")
    units = np.frombuffer(blob[4 : 4 + size], "<u4").astype(np.int64)
    normalized = blob[4 + size :]
    labels = np.arange(1, 256)
    nodes = np.array([_offset(units[:1])[0]])
    keys = [b""]
    rules = {}
    for _ in range(CLUSTER_BYTES - 1):
        children = nodes[:, None] ^ labels
        inside = children < len(units)
        unit = units[np.where(inside, children, 0)]
        parents, which = np.nonzero(inside & (unit & LABEL == labels))
        unit = unit[parents, which]
        found = [keys[p] + bytes([labels[w]]) for p, w in zip(parents, which, strict=True)]
        nodes = children[parents, which] ^ _offset(unit)
        ends = (unit & LEAF) != 0
        for place in np.flatnonzero(ends):
            begin = int(units[nodes[place]] & VALUE)
            content = normalized[begin : normalized.index(b"\0", begin)]
            rules[found[place].decode("utf-8", "surrogateescape")] = content.decode()
        keys, nodes = [found[place] for place in np.flatnonzero(~ends)], nodes[~ends]
    return rules


@functools.cache
def joins_of_code_points() -> np.ndarray:
    """How each code point joins its neighbours; what extends a cluster, the package is asked."""
    from tokenizers import normalizers

    points = [point for point in representative_code_points() if point not in (0x0A, 0x0D)]
    # A charsmap with one rule, `x` to `y`: a cluster that begins with x becomes y alone.
    probe = normalizers.Precompiled(_one_rule())
    answers = probe.normalize_str("\n".join("x" + chr(point) for point in points)).split("\n")
    joins = np.full(CODE_POINTS, OTHER, np.int32)
    for point, answer in zip(points, answers, strict=True):
        if answer == "y":
            joins[point] = EXTENDS
        elif unicodedata.category(chr(point)) in ("Cc", "Cf", "Zl", "Zp"):
            joins[point] = BREAKS
    for uniform in UNIFORM:
        joins[uniform.start : uniform.stop] = joins[uniform.start]
    joins[list(PREPENDED)] = PREPENDS
    joins[0x0D], joins[0x0A] = RETURN, NEWLINE
    return joins


def _one_rule() -> bytes:
    """The charsmap of `x` to `y`: a double array of the root, `x` and its leaf."""
    units = np.zeros(256 * 2, "<u4")
    units[0] = 256 << 10  # the root's children stand at 256 ^ label
    units[256 ^ ord("x")] = ord("x") | LEAF | ((256 ^ ord("x")) ^ 1) << 10
    units[1] = 1 << 31  # the leaf, with the value 0
    return (4 * len(units)).to_bytes(4, "little") + units.tobytes() + b"y\0"


def _offset(units: np.ndarray) -> np.ndarray:
    return (units >> 10) << ((units & (1 << 9)) >> 6)


def _paged(values: np.ndarray) -> tuple[tf.Tensor, tf.Tensor]:
    pages, page_of = np.unique(values.reshape(-1, PAGE_SIZE), axis=0, return_inverse=True)
    starts = (page_of.reshape(-1) * PAGE_SIZE).astype(np.int32)
    return tf.constant(starts), tf.constant(pages.reshape(-1))


def _looked_up(table: tuple[tf.Tensor, tf.Tensor], points: tf.Tensor) -> tf.Tensor:
    start = tf.gather(table[0], tf.bitwise.right_shift(points, PAGE_BITS))
    return tf.gather(table[1], start + tf.bitwise.bitwise_and(points, PAGE_SIZE - 1))
