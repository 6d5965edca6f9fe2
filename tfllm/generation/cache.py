"""Stored keys and values: a tuple over layers of (keys, values), each float [B, H, C, hd].

Place p of a row holds its token p. No layer writes a cache; the loop does, by one of `WRITERS`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

Cache = tuple[tuple[tf.Tensor, tf.Tensor], ...]
Writer = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]

BUCKET = 64  # places


def capacity(places: int) -> int:
    """The capacity that `places` tokens are given: 64, 128, 192, …"""
    return -(-places // BUCKET) * BUCKET


def scatter(stored: tf.Tensor, new: tf.Tensor, places: tf.Tensor) -> tf.Tensor:
    """`stored` [B, H, C, hd] with `new` [B, H, 1, hd] at `places` int32 [B] of each row."""
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
    return tf.tensor_scatter_nd_update(stored, indices, new[:, :, 0])


def select(stored: tf.Tensor, new: tf.Tensor, places: tf.Tensor) -> tf.Tensor:
    """The same as `scatter`, without an operation that LiteRT would have to spell out."""
    here = tf.equal(tf.range(tf.shape(stored)[2])[None], places[:, None])
    return tf.where(here[:, None, :, None], new, stored)


WRITERS: dict[str, Writer] = {"scatter": scatter, "select": select}


def written(cache: Cache, new: Cache, places: tf.Tensor, writer: Writer) -> Cache:
    """The cache with every layer's new keys and values at `places` int32 [B]."""
    return mapped(lambda stored, fresh: writer(stored, fresh, places), cache, new)


def padded(cache: Cache, size: tf.Tensor) -> Cache:
    """The cache with room for `size` places, zeros in the new ones."""

    def one(stored: tf.Tensor) -> tf.Tensor:
        return tf.pad(stored, [[0, 0], [0, 0], [0, size - tf.shape(stored)[2]], [0, 0]])

    return mapped(one, cache)


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
