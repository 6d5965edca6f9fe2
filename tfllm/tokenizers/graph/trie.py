"""A trie over code points as constants of a graph, which finds all its entries in texts."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import tensorflow as tf

POINT_BITS = 21
NONE = -1


class CodePointTrie(tf.Module):
    """Maps texts to values.

    Args:
        entries: Text -> value of at least 0.
    """

    def __init__(self, entries: Mapping[str, int]):
        super().__init__()
        edges: dict[int, int] = {}
        values = [NONE]
        for text, value in entries.items():
            node = 0
            for character in text:
                key = node << POINT_BITS | ord(character)
                child = edges.get(key)
                if child is None:
                    child = edges[key] = len(values)
                    values.append(NONE)
                node = child
            values[node] = value
        self.depth = max(map(len, entries), default=0)
        keys = np.array(sorted(edges), np.int64)
        with tf.init_scope():
            self._keys = tf.constant(np.append(keys, np.iinfo(np.int64).max))
            self._children = tf.constant(
                np.array([*(edges[int(key)] for key in keys), 0], np.int32)
            )
            self._values = tf.constant(np.array(values, np.int32))

    def find_all(
        self, points: tf.Tensor, limits: tf.Tensor, begins: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Find every entry that begins at the given positions, shorter ones first.

        Args:
            points: Code points, int32 [C].
            limits: The position where the text of each of `begins` ends, int64 [A].
            begins: Positions, int64 [A].

        Returns:
            Where each entry begins and its length, int64 [K], and its value, int32 [K].
        """

        def array(dtype: tf.DType) -> tf.TensorArray:
            empty = tf.TensorArray(
                dtype, size=1, dynamic_size=True, element_shape=[None], infer_shape=False
            )
            return empty.write(0, tf.zeros([0], dtype))

        def step(
            depth: tf.Tensor,
            begin: tf.Tensor,
            limit: tf.Tensor,
            node: tf.Tensor,
            arrays: list[tf.TensorArray],
        ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor, list[tf.TensorArray]]:
            alive = tf.where(begin + depth < limit)[:, 0]
            begin, limit, node = (tf.gather(part, alive) for part in (begin, limit, node))
            point = tf.cast(tf.gather(points, begin + depth), tf.int64)
            key = tf.bitwise.left_shift(tf.cast(node, tf.int64), POINT_BITS) + point
            edge = tf.searchsorted(self._keys, key)
            matched = tf.where(tf.gather(self._keys, edge) == key)[:, 0]
            begin, limit, edge = (tf.gather(part, matched) for part in (begin, limit, edge))
            node = tf.gather(self._children, edge)
            value = tf.gather(self._values, node)
            ends = tf.where(value != NONE)[:, 0]
            first = tf.gather(begin, ends)
            matches = (first, tf.fill(tf.shape(first), depth + 1), tf.gather(value, ends))
            row = tf.cast(depth + 1, tf.int32)
            arrays = [each.write(row, part) for each, part in zip(arrays, matches, strict=True)]
            return depth + 1, begin, limit, node, arrays

        _, _, _, _, arrays = tf.while_loop(
            lambda depth, begin, *_: (depth < self.depth) & (tf.size(begin) > 0),
            step,
            (
                tf.constant(0, tf.int64),
                begins,
                limits,
                tf.zeros(tf.shape(begins), tf.int32),
                [array(tf.int64), array(tf.int64), array(tf.int32)],
            ),
        )
        begin, length, value = (each.concat() for each in arrays)
        return begin, length, value
