"""T5's relative position bias: a learned number per head for each bucket of distances."""

from __future__ import annotations

import functools
import math
from typing import Any

import keras
import numpy as np
from keras import ops

from tfllm.errors import SettingError
from tfllm.layers.types import Tensor


@keras.saving.register_keras_serializable(package="tfllm")
class RelativePositionBias(keras.layers.Layer):
    """Bias of attention scores by the distance of two tokens (Raffel et al. 2020, section 2.1).

    Near distances have a bucket each, farther ones share logarithmically wider buckets, and all
    from `max_distance` on share the last.

    Args:
        num_heads: Attention heads.
        num_buckets: Learned numbers per head.
        max_distance: In tokens.
        bidirectional: Whether keys may come after queries (encoders).
        initializer_range: Standard deviation of new numbers.
        options: Of `keras.layers.Layer`.

    Raises:
        SettingError: `num_buckets` and `max_distance` do not go together.
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

    def call(self, positions: Tensor, key_positions: Tensor) -> Tensor:
        """Return the bias float32 (B, num_heads, T, K) of positions int32 (B, T) and (B, K)."""
        far = self.max_distance
        distance = ops.subtract(ops.expand_dims(key_positions, 1), ops.expand_dims(positions, 2))
        # A row for every distance, so that the graph has a look-up in place of logarithms.
        by_distance = ops.take(
            ops.cast(self.embeddings, "float32"),
            distance_buckets(self.num_buckets, far, self.bidirectional),
            axis=0,
        )
        bias = ops.take(by_distance, ops.add(ops.clip(distance, -far, far), far), axis=0)
        return ops.transpose(bias, (0, 3, 1, 2))

    def compute_output_spec(
        self, positions: keras.KerasTensor, key_positions: keras.KerasTensor
    ) -> keras.KerasTensor:
        shape = (positions.shape[0], self.num_heads, positions.shape[1], key_positions.shape[1])
        return keras.KerasTensor(shape, "float32")

    def get_config(self) -> dict[str, Any]:
        names = ("num_heads", "num_buckets", "max_distance", "bidirectional", "initializer_range")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


@functools.cache
def distance_buckets(number: int, max_distance: int, bidirectional: bool) -> np.ndarray:
    """Return the bucket of every distance from -max_distance to max_distance.

    A distance is the key's position minus the query's. Computed in float32 as in transformers'
    `T5Attention._relative_position_bucket`, which decides distances on a bucket's border.

    Args:
        number: Of buckets.
        max_distance: In tokens.
        bidirectional: Whether keys after the query have half of the buckets.

    Returns:
        int32 (2 * max_distance + 1).
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
    bucket = np.where(distance < exact, distance, np.minimum(far, number - 1))
    return (first + bucket).astype(np.int32)
