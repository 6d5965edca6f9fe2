"""Relative positions as T5 has them: a number for each head, by how far apart two tokens are."""

from __future__ import annotations

import functools
import math
from typing import Any

import keras
import numpy as np
from keras import ops

from tfllm.errors import SettingError


@keras.saving.register_keras_serializable(package="tfllm")
class RelativePositionBias(keras.layers.Layer):
    """What is added to attention scores (Raffel et al. 2020, 2.1): positions of queries (B, T) and
    of keys (B, K), int32, to float32 (B, num_heads, T, K).

    Near distances have a number each, far ones share one, wider the further, and all from
    `max_distance` on share the last. In a decoder (not `bidirectional`) keys lie behind.
    """

    def __init__(
        self,
        num_heads: int,
        num_buckets: int = 32,
        max_distance: int = 128,
        bidirectional: bool = True,
        initializer_range: float = 0.02,
        **options: Any,
    ):
        super().__init__(**options)
        exact = num_buckets // (4 if bidirectional else 2)
        if not 1 <= exact < max_distance:
            raise SettingError(
                f"num_buckets {num_buckets} and max_distance {max_distance} do not go together: "
                f"there must be 4 buckets or more, and max_distance above {max(exact, 1)}."
            )
        self.num_heads = num_heads
        self.num_buckets = num_buckets
        self.max_distance = max_distance
        self.bidirectional = bidirectional
        self.initializer_range = initializer_range

    def build(self, *_: Any, **__: Any) -> None:
        self.embeddings = self.add_weight(
            shape=(self.num_buckets, self.num_heads),
            initializer=keras.initializers.TruncatedNormal(stddev=self.initializer_range),
            name="embeddings",
        )

    def call(self, positions: Any, key_positions: Any) -> Any:
        far = self.max_distance
        distance = ops.subtract(ops.expand_dims(key_positions, 1), ops.expand_dims(positions, 2))
        # A row for every distance, so that the graph has a look-up in place of logarithms.
        by_distance = ops.take(
            ops.cast(self.embeddings, "float32"),
            buckets(self.num_buckets, far, self.bidirectional),
            axis=0,
        )
        bias = ops.take(by_distance, ops.add(ops.clip(distance, -far, far), far), axis=0)
        return ops.transpose(bias, (0, 3, 1, 2))

    def compute_output_spec(self, positions: Any, key_positions: Any) -> keras.KerasTensor:
        shape = (positions.shape[0], self.num_heads, positions.shape[1], key_positions.shape[1])
        return keras.KerasTensor(shape, "float32")

    def get_config(self) -> dict[str, Any]:
        names = ("num_heads", "num_buckets", "max_distance", "bidirectional", "initializer_range")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


@functools.cache
def buckets(number: int, max_distance: int, bidirectional: bool) -> np.ndarray:
    """The bucket of every distance from -max_distance to max_distance: int32. A distance is the
    key's position less the query's.

    In float32 as transformers computes it, which decides distances on a border.
    """
    distance = np.arange(-max_distance, max_distance + 1)
    if bidirectional:
        number //= 2
        first = np.where(distance > 0, number, 0)
        distance = np.abs(distance)
    else:
        first = np.zeros_like(distance)
        distance = np.maximum(-distance, 0)
    exact = number // 2
    with np.errstate(divide="ignore"):
        logs = np.log(distance.astype(np.float32) / np.float32(exact))
    shares = logs / np.float32(math.log(max_distance / exact)) * np.float32(number - exact)
    far = exact + np.maximum(shares, 0).astype(np.int64)
    found = np.where(distance < exact, distance, np.minimum(far, number - 1))
    return (first + found).astype(np.int32)
