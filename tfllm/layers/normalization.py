"""Normalization layers."""

from __future__ import annotations

from typing import Literal

import keras
from keras import ops

from tfllm.layers.types import Tensor

Normalization = Literal["layer", "rms"]


@keras.saving.register_keras_serializable(package="tfllm")
class RMSNormalization(keras.layers.RMSNormalization):
    """Root-mean-square normalization (Zhang and Sennrich 2019) that survives weight rounding.

    `keras.layers.RMSNormalization` with the operations in another order:
    (x * scale) * rsqrt(mean(x**2) + epsilon). TensorFlow Lite's converter folds a constant factor
    that ends a layer into the weights of the next one. In Keras' order the scale comes last; where
    some columns of it are hundreds of times larger than others, the next layer's weights lose
    precision when they are quantized. Here no constant comes last. Variables, their names and the
    precision (at least float32 for any input) are Keras'.
    """

    def call(self, x: Tensor) -> Tensor:
        wide = ops.cast(x, keras.backend.result_type(x.dtype, "float32"))
        mean = ops.mean(ops.square(wide), axis=self.axis, keepdims=True)
        scaled = ops.multiply(wide, ops.cast(self.scale, wide.dtype))
        normalized = ops.multiply(scaled, ops.rsqrt(ops.add(mean, self.epsilon)))
        return ops.cast(normalized, x.dtype)


def normalization_layer(
    kind: str, name: str, epsilon: float, policy: keras.DTypePolicy | str | None = None
) -> keras.layers.Layer:
    """Create a normalization layer; both kinds compute in float32.

    Args:
        kind: "layer" (Ba et al. 2016) or "rms" (Zhang and Sennrich 2019).
        name: The layer's name.
        epsilon: Added to the variance, or to the mean square.
        policy: The layer's dtype policy; None is Keras' current one.
    """
    if kind == "rms":
        return RMSNormalization(epsilon=epsilon, dtype=policy, name=name)
    return keras.layers.LayerNormalization(epsilon=epsilon, dtype=policy, name=name)
