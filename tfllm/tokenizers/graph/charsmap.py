"""SentencePiece's precompiled charsmap as TensorFlow ops, as the `tokenizers` package applies it.

The package does not take the longest match, as SentencePiece does. It goes by grapheme clusters: a
cluster of less than six bytes is replaced by the value of the shortest entry that begins it; in any
other cluster each code point is replaced on its own. Normalizers that replace every code point on
its own are here too.

Source: `tokenizers` (normalizers/precompiled.rs), spm_precompiled; Unicode's UAX 29.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Mapping, Sequence

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
    select,
    transform,
)
from tfllm.tokenizers.graph.trie import NONE, CodePointTrie

CLUSTER_BYTES = 6  # shorter clusters are looked up as a whole
# Units of the double array: label, leaf flag, offset (Darts-clone).
LABEL, LEAF, VALUE = 1 << 31 | 0xFF, 1 << 8, (1 << 31) - 1
# How a code point combines with its neighbours in a cluster.
OTHER, EXTENDS, PREPENDS, BREAKS, RETURN, NEWLINE = range(6)
PREPENDED = (  # Grapheme_Cluster_Break=Prepend, Unicode 16
    *range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0xD4E, 0x110BD, 0x110CD, 0x111C2,
    0x111C3, 0x113D1, 0x1193F, 0x11941, 0x11A3A, *range(0x11A84, 0x11A8A), 0x11D46, 0x11F02,
)  # fmt: skip
# Their clusters follow other rules, but have six bytes at least, unless an entry begins with one.
OTHER_RULES = (
    range(0x1100, 0x1200), range(0xA960, 0xA980), range(0xAC00, 0xD7FC), range(0x1F1E6, 0x1F200),
    (0xA9, 0xAE),
)  # fmt: skip


class CodePointMap(tf.Module):
    """Replaces code points of texts, each on its own.

    Args:
        contents: Code point: what replaces it; others are kept.
        further: Further replacements, which only a subclass makes.
    """

    def __init__(self, contents: Mapping[int, str], further: Sequence[str] = ()):
        super().__init__()
        every = [*contents.values(), *further]
        rule_of_point = np.full(CODE_POINTS, NONE, np.int32)
        rule_of_point[list(contents)] = np.arange(len(contents))
        lengths = np.array([*map(len, every), 1], np.int64)
        begins = np.cumsum(lengths) - lengths
        with tf.init_scope():
            self._rules = _to_pages(rule_of_point)
            self._lengths, self._begins = tf.constant(lengths), tf.constant(begins)
            self._content = tf.constant([*(ord(c) for text in every for c in text), 0])
        self._identity_rule = len(every)

    def __call__(self, texts: NormalizedStrings) -> NormalizedStrings:
        """Normalize texts, keeping the offsets of the code points."""
        return self._apply(texts, _look_up(self._rules, texts.points), tf.ones_like(texts.starts))

    def _apply(
        self, texts: NormalizedStrings, rules: tf.Tensor, sizes: tf.Tensor
    ) -> NormalizedStrings:
        return tf.cond(
            tf.reduce_any(rules != NONE),
            lambda: self._replace(texts, rules, sizes),
            lambda: texts,
        )

    def _replace(
        self, texts: NormalizedStrings, rules: tf.Tensor, sizes: tf.Tensor
    ) -> NormalizedStrings:
        """Apply the package's list of changes, as `NormalizedString::transform` does."""
        rule = tf.where(rules == NONE, self._identity_rule, rules)
        lengths = tf.where(sizes > 0, tf.gather(self._lengths, rule), tf.zeros_like(sizes))
        new, index, copy = repeat(texts, lengths)
        content_index = tf.gather(self._begins, tf.gather(rule, index)) + copy
        kept = tf.gather(rules, index) == NONE
        points = tf.where(kept, new.points, tf.gather(self._content, content_index))
        # An inserted character has the offsets of the one before it; the last character before a
        # removed one takes its offsets.
        changes = tf.cast(copy >= tf.gather(sizes, index), tf.int64)
        removed = tf.maximum(sizes - lengths, 0)
        last = tf.cumsum(lengths) - 1  # the last character written for each match
        last = tf.where(last >= tf.gather(new.splits[:-1], texts.rows), last, -1)
        changes -= tf.math.unsorted_segment_sum(removed, last, new.size)
        return transform(texts, points, changes, new.splits)


class AccentStripper(CodePointMap):
    """Removes combining marks; what is left keeps its own offsets."""

    def __call__(self, texts: NormalizedStrings) -> NormalizedStrings:
        """Normalize texts, keeping the offsets of the code points."""
        return select(texts, _look_up(self._rules, texts.points) == NONE)


@functools.cache
def code_point_map(kind: str) -> CodePointMap:
    """Create one of the package's normalizers as a map of code points.

    Args:
        kind: "Lowercase", "StripAccents", or "NFKD", without its order of combining marks, which
            changes nothing where StripAccents follows.
    """
    from tokenizers import normalizers

    normalize = getattr(normalizers, kind)().normalize_str
    outputs = ((point, normalize(chr(point))) for point in representative_code_points())
    create = AccentStripper if kind == "StripAccents" else CodePointMap
    return create({point: output for point, output in outputs if output != chr(point)})


class Charsmap(CodePointMap):
    """Normalizes texts by a precompiled charsmap.

    Args:
        charsmap: The value of `precompiled_charsmap`, decoded.

    Raises:
        TokenizerError: It is cut short, or has an entry that the graph does not implement.
    """

    def __init__(self, charsmap: bytes):
        rules = parse_rules(charsmap)
        single = {ord(key): value for key, value in rules.items() if len(key) == 1}
        several = {
            key: value
            for key, value in rules.items()
            if len(key) > 1 and len(key.encode()) < CLUSTER_BYTES and ord(key[0]) not in single
        }
        for key in (*map(chr, single), *several):
            if any(ord(key[0]) in points for points in OTHER_RULES) and len(key.encode()) < 5:
                raise TokenizerError(
                    f"tokenizer.json: the charsmap has a rule for U+{ord(key[0]):04X}, which is "
                    "not known in the graph. The tokenizer works in Python; or use the "
                    "checkpoint's .model file."
                )
        super().__init__(single, [*several.values()])
        self._trie = CodePointTrie({key: len(single) + n for n, key in enumerate(several)})
        with tf.init_scope():
            self._break_kinds = _to_pages(cluster_break_kinds())

    def __call__(self, texts: NormalizedStrings) -> NormalizedStrings:
        """Normalize texts, keeping the offsets of the code points."""
        rules = _look_up(self._rules, texts.points)
        ones = tf.ones_like(texts.starts)
        joined = self._joins_previous(texts)
        rules, sizes = tf.cond(
            tf.reduce_any(joined),
            lambda: self._apply_to_clusters(texts, rules, joined),
            lambda: (rules, ones),
        )
        return self._apply(texts, rules, sizes)

    def _joins_previous(self, texts: NormalizedStrings) -> tf.Tensor:
        """bool [C]: whether each code point is in the cluster of the one before it."""
        kind = _look_up(self._break_kinds, texts.points)
        before = tf.concat([[BREAKS], kind[:-1]], 0)
        extendable = (before != BREAKS) & (before != RETURN) & (before != NEWLINE)
        after = (kind != BREAKS) & (kind != RETURN) & (kind != NEWLINE)
        joins = (kind == EXTENDS) & extendable | (before == PREPENDS) & after
        joins |= (before == RETURN) & (kind == NEWLINE)
        return joins & ~first_of_texts(texts)

    def _apply_to_clusters(
        self, texts: NormalizedStrings, rules: tf.Tensor, joined: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """The rule of each match at its first code point, [C], and its number of code points, [C].

        That number is 0 for a code point that belongs to the match before it.
        """
        cluster = tf.cumsum(tf.cast(~joined, tf.int64)) - 1
        firsts = tf.where(~joined)[:, 0]
        stops = tf.concat([firsts[1:], texts.size[None]], 0)
        sizes = tf.add_n(
            [tf.cast(texts.points >= limit, tf.int64) for limit in (0, 0x80, 0x800, 0x10000)]
        )
        cluster_bytes = tf.math.segment_sum(sizes, cluster)
        small = (cluster_bytes < CLUSTER_BYTES) & (stops - firsts > 1)
        firsts, stops = tf.boolean_mask(firsts, small), tf.boolean_mask(stops, small)
        begins, _, values = self._trie.find_all(texts.points, stops, firsts)
        ends = tf.scatter_nd(firsts[:, None], stops, texts.size[None])
        order = tf.range(tf.size(values), 0, -1) - 1  # shorter entries come first
        shortest = tf.math.unsorted_segment_max(order, begins, texts.size)
        matched = tf.where(shortest >= 0)[:, 0]
        value = tf.gather(values, tf.size(values) - 1 - tf.gather(shortest, matched))
        rules = tf.tensor_scatter_nd_update(rules, matched[:, None], value)
        replaced = (ends > 0) & (rules != NONE)  # clusters with a rule
        covered = joined & tf.gather(replaced, tf.gather(tf.where(~joined)[:, 0], cluster))
        sizes = tf.where(replaced, ends - tf.range(texts.size), tf.ones_like(ends))
        sizes = tf.where(covered, tf.zeros_like(sizes), sizes)
        return tf.where(covered, NONE, rules), sizes


def parse_rules(charsmap: bytes) -> dict[str, str]:
    """Read the entries of a precompiled charsmap that the package can match.

    These are the entries of less than CLUSTER_BYTES bytes that no shorter entry begins.

    Raises:
        TokenizerError: It is cut short.
    """
    size = int.from_bytes(charsmap[:4], "little")
    if size % 4 or len(charsmap) < 4 + size:
        raise TokenizerError("tokenizer.json: 'precompiled_charsmap' is cut short. Copy it again.")
    units = np.frombuffer(charsmap[4 : 4 + size], "<u4").astype(np.int64)
    normalized = charsmap[4 + size :]
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
        children_keys = [keys[p] + bytes([labels[w]]) for p, w in zip(parents, which, strict=True)]
        nodes = children[parents, which] ^ _offset(unit)
        ends = (unit & LEAF) != 0
        for index in np.flatnonzero(ends):
            begin = int(units[nodes[index]] & VALUE)
            content = normalized[begin : normalized.index(b"\0", begin)]
            rules[children_keys[index].decode("utf-8", "surrogateescape")] = content.decode()
        keys, nodes = [children_keys[index] for index in np.flatnonzero(~ends)], nodes[~ends]
    return rules


@functools.cache
def cluster_break_kinds() -> np.ndarray:
    """Return how each code point combines with its neighbours in a cluster: int32 [code points].

    Which code points extend a cluster is asked of the package.
    """
    from tokenizers import normalizers

    points = [point for point in representative_code_points() if point not in (0x0A, 0x0D)]
    # A charsmap with one rule, `x` to `y`: a cluster that begins with x becomes y alone.
    probe = normalizers.Precompiled(_single_rule_charsmap())
    outputs = probe.normalize_str("\n".join("x" + chr(point) for point in points)).split("\n")
    kinds = np.full(CODE_POINTS, OTHER, np.int32)
    for point, output in zip(points, outputs, strict=True):
        if output == "y":
            kinds[point] = EXTENDS
        elif unicodedata.category(chr(point)) in ("Cc", "Cf", "Zl", "Zp"):
            kinds[point] = BREAKS
    for uniform in UNIFORM:
        kinds[uniform.start : uniform.stop] = kinds[uniform.start]
    kinds[list(PREPENDED)] = PREPENDS
    kinds[0x0D], kinds[0x0A] = RETURN, NEWLINE
    return kinds


def _single_rule_charsmap() -> bytes:
    """The charsmap of `x` to `y`: a double array of the root, `x` and its leaf."""
    units = np.zeros(256 * 2, "<u4")
    units[0] = 256 << 10  # the root's children are at 256 ^ label
    units[256 ^ ord("x")] = ord("x") | LEAF | ((256 ^ ord("x")) ^ 1) << 10
    units[1] = 1 << 31  # the leaf, with the value 0
    return (4 * len(units)).to_bytes(4, "little") + units.tobytes() + b"y\0"


def _offset(units: np.ndarray) -> np.ndarray:
    return (units >> 10) << ((units & (1 << 9)) >> 6)


def _to_pages(values: np.ndarray) -> tuple[tf.Tensor, tf.Tensor]:
    pages, page_of = np.unique(values.reshape(-1, PAGE_SIZE), axis=0, return_inverse=True)
    starts = (page_of.reshape(-1) * PAGE_SIZE).astype(np.int32)
    return tf.constant(starts), tf.constant(pages.reshape(-1))


def _look_up(table: tuple[tf.Tensor, tf.Tensor], points: tf.Tensor) -> tf.Tensor:
    start = tf.gather(table[0], tf.bitwise.right_shift(points, PAGE_BITS))
    return tf.gather(table[1], start + tf.bitwise.bitwise_and(points, PAGE_SIZE - 1))
