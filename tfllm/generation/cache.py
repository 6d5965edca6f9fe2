"""The key-value cache: a tuple over layers of (keys, values), each float [B, H, C, head_dim].

Position p of a row holds the keys and values of its token p, and zeros before there is one. No
layer writes to a cache; the generation loop does, by `scatter` or `select`.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from tfllm.models.decoder import Decoder
from tfllm.models.encoder_decoder import EncoderDecoder

Cache = tuple[tuple[tf.Tensor, tf.Tensor], ...]
WriteFunction = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]
"""(stored [B, H, C, head_dim], new [B, H, 1, head_dim], positions int32 [B]) -> stored with new."""

BUCKET = 64  # capacities are multiples of it
GROWTH = 16  # positions added at once where every step copies the whole cache, as in beam search


def capacity(length: int) -> int:
    """Return the capacity of a cache for rows of up to `length` tokens: 64, 128, 192, ..."""
    return -(-length // BUCKET) * BUCKET


def scatter(stored: tf.Tensor, new: tf.Tensor, positions: tf.Tensor) -> tf.Tensor:
    """Write new keys or values at one position of each row, in place.

    Args:
        stored: float [B, H, C, head_dim].
        new: float [B, H, 1, head_dim].
        positions: int32 [B]. Each must hold zeros or, where a row has finished, `new` itself; else
            the result is rounded: the difference is added, because that operation works in place
            and tensor_scatter_nd_update does not.

    Returns:
        float [B, H, C, head_dim].
    """
    shape = tf.shape(new)
    batch, heads = shape[0], new.shape[1]
    grid = [batch, heads]
    indices = tf.stack(
        [
            tf.broadcast_to(tf.range(batch)[:, None], grid),
            tf.broadcast_to(tf.range(heads)[None], grid),
            tf.broadcast_to(positions[:, None], grid),
        ],
        axis=-1,
    )
    change = new[:, :, 0] - tf.gather_nd(stored, indices)
    return tf.raw_ops.ScatterNdNonAliasingAdd(input=stored, indices=indices, updates=change)


def select(stored: tf.Tensor, new: tf.Tensor, positions: tf.Tensor) -> tf.Tensor:
    """Write keys or values into a cache, as `scatter`, with operations that LiteRT has built in.

    Args:
        stored: [B, H, C, D].
        new: [B, H, 1, D].
        positions: Position of each row's new ones: int32 [B].
    """
    is_position = tf.equal(tf.range(tf.shape(stored)[2])[None], positions[:, None])
    return tf.where(is_position[:, None, :, None], new, stored)


class CacheUpdate:
    """A cache that stores the new keys and values of each layer as the layer computes them.

    The layer then attends to what is stored. Nothing else reads the tensors from before, so that
    `scatter` can write into them.

    Args:
        cache: The cache of the earlier tokens.
        positions: int32 [B], where each row's new token is stored.
        write: `scatter` or `select`.
    """

    def __init__(self, cache: Cache, positions: tf.Tensor, write: WriteFunction):
        self._before = cache
        self._positions = positions
        self._write = write
        self._after: list[tuple[tf.Tensor, tf.Tensor]] = []

    def layers(self) -> tuple[Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]], ...]:
        """Return what a decoder takes as `cache`; its layers must be called in order."""
        return (self._store,) * len(self._before)

    def _store(self, keys: tf.Tensor, values: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        stored_keys, stored_values = self._before[len(self._after)]
        updated = (
            self._write(stored_keys, keys, self._positions),
            self._write(stored_values, values, self._positions),
        )
        self._after.append(updated)
        return updated

    def cache(self) -> Cache:
        """Return the updated cache, once all layers have been called."""
        return tuple(self._after)


def clear_padding(cache: Cache, is_token: tf.Tensor) -> Cache:
    """Set a cache to zero where there is no token.

    Args:
        cache: Keys and values [B, H, C, D] of each layer.
        is_token: bool [B, C].
    """
    return map_cache(lambda stored: tf.where(is_token[:, None, :, None], stored, 0), cache)


def pad_cache(cache: Cache, size: tf.Tensor) -> Cache:
    """Add positions of zeros up to the capacity `size`."""

    def pad(stored: tf.Tensor) -> tf.Tensor:
        return tf.pad(stored, [[0, 0], [0, 0], [0, size - tf.shape(stored)[2]], [0, 0]])

    return map_cache(pad, cache)


def grow_cache(cache: Cache, length: tf.Tensor) -> Cache:
    """Make room for `length` tokens, and for some more where the cache has to grow."""
    room = tf.shape(cache[0][0])[2]
    return tf.cond(length > room, lambda: pad_cache(cache, length - 1 + GROWTH), lambda: cache)


def map_cache(function: Callable[[tf.Tensor], tf.Tensor], cache: Cache) -> Cache:
    """Apply `function` to every keys tensor and every values tensor."""
    return tuple((function(keys), function(values)) for keys, values in cache)


def cache_specs(decoder: Decoder | EncoderDecoder, dtype: tf.DType) -> Cache:
    """Return the TensorSpecs of a cache for any number of rows and any capacity."""
    shape = [None, decoder.num_key_value_heads, None, decoder.head_dim]
    return tuple(
        (tf.TensorSpec(shape, dtype, f"keys_{i}"), tf.TensorSpec(shape, dtype, f"values_{i}"))
        for i in range(decoder.num_layers)
    )
