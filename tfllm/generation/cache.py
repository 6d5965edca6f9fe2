"""Stored keys and values: a tuple over layers of (keys, values), each float [B, H, C, hd].

Place p of a row holds its token p, and zeros before there is one. No layer writes a cache; the
loop does, by one of `WRITERS`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

Cache = tuple[tuple[tf.Tensor, tf.Tensor], ...]
Writer = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]

BUCKET = 64  # places
GROWTH = 16  # places at once where every step copies the whole cache, as in beam search


def capacity(places: int) -> int:
    """The capacity that `places` tokens are given: 64, 128, 192, …"""
    return -(-places // BUCKET) * BUCKET


def scatter(stored: tf.Tensor, new: tf.Tensor, places: tf.Tensor) -> tf.Tensor:
    """`stored` [B, H, C, hd] with `new` [B, H, 1, hd] at `places` int32 [B] of each row.

    Each place must hold zeros or, where a row has finished, `new` itself; else it is rounded. The
    difference is added because that operation works in place; tensor_scatter_nd_update does not.
    """
    shape = tf.shape(new)
    batch, heads = shape[0], new.shape[1]
    grid = [batch, heads]
    indices = tf.stack(
        [
            tf.broadcast_to(tf.range(batch)[:, None], grid),
            tf.broadcast_to(tf.range(heads)[None], grid),
            tf.broadcast_to(places[:, None], grid),
        ],
        axis=-1,
    )
    change = new[:, :, 0] - tf.gather_nd(stored, indices)
    return tf.raw_ops.ScatterNdNonAliasingAdd(input=stored, indices=indices, updates=change)


def select(stored: tf.Tensor, new: tf.Tensor, places: tf.Tensor) -> tf.Tensor:
    """The same as `scatter`, without an operation that LiteRT would have to spell out."""
    here = tf.equal(tf.range(tf.shape(stored)[2])[None], places[:, None])
    return tf.where(here[:, None, :, None], new, stored)


WRITERS: dict[str, Writer] = {"scatter": scatter, "select": select}


class Written:
    """A cache that takes the new keys and values of each layer at `places` int32 [B] as the layer
    computes them.

    The layer attends to what is stored then. Nothing else reads the tensors from before, so that
    `scatter` can write into them.
    """

    def __init__(self, cache: Cache, places: tf.Tensor, writer: Writer):
        self._before = cache
        self._places = places
        self._writer = writer
        self._after: list[tuple[tf.Tensor, tf.Tensor]] = []

    def layers(self) -> tuple[Callable[[tf.Tensor, tf.Tensor], Any], ...]:
        """What a decoder takes as `cache`; its layers are called in order."""
        return (self._store,) * len(self._before)

    def _store(self, keys: tf.Tensor, values: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        before = self._before[len(self._after)]
        new = zip(before, (keys, values), strict=True)
        stored_keys, stored_values = (self._writer(old, one, self._places) for old, one in new)
        self._after.append((stored_keys, stored_values))
        return stored_keys, stored_values

    def cache(self) -> Cache:
        """Every layer's keys and values, the new ones included, once all layers were called."""
        return tuple(self._after)


def cleared(cache: Cache, known: tf.Tensor) -> Cache:
    """The cache with zeros in the places that `known`, boolean [B, C], denies."""
    return mapped(lambda stored: tf.where(known[:, None, :, None], stored, 0), cache)


def padded(cache: Cache, size: tf.Tensor) -> Cache:
    """The cache with room for `size` places, zeros in the new ones."""

    def one(stored: tf.Tensor) -> tf.Tensor:
        return tf.pad(stored, [[0, 0], [0, 0], [0, size - tf.shape(stored)[2]], [0, 0]])

    return mapped(one, cache)


def grown(cache: Cache, places: tf.Tensor) -> Cache:
    """The cache with room for `places` places, and for some more where it had to grow."""
    room = tf.shape(cache[0][0])[2]
    return tf.cond(places > room, lambda: padded(cache, places - 1 + GROWTH), lambda: cache)


def mapped(function: Callable[..., Any], *caches: Cache) -> Cache:
    """`function` of every keys tensor and every values tensor of caches of the same layers."""
    return tuple(
        (function(*(keys for keys, _ in layers)), function(*(values for _, values in layers)))
        for layers in zip(*caches, strict=True)
    )


def specs(decoder: Any, dtype: tf.DType) -> Cache:
    """TensorSpecs of a cache for any number of rows and places."""
    shape = [None, decoder.num_key_value_heads, None, decoder.head_dim]
    return tuple(
        (tf.TensorSpec(shape, dtype, f"keys_{i}"), tf.TensorSpec(shape, dtype, f"values_{i}"))
        for i in range(decoder.num_layers)
    )
