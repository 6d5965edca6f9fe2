"""Normalization layers."""

from __future__ import annotations

from typing import Literal

import keras
from keras import ops

from tfllm.layers.types import Shape, Tensor

Normalization = Literal["layer", "layer_scale", "rms", "rms_offset"]


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
        scaled = ops.multiply(wide, self.gain(wide.dtype))
        normalized = ops.multiply(scaled, ops.rsqrt(ops.add(mean, self.epsilon)))
        return ops.cast(normalized, x.dtype)

    def gain(self, dtype: str) -> Tensor:
        """Return what inputs are multiplied by, in `dtype`."""
        return ops.cast(self.scale, dtype)


@keras.saving.register_keras_serializable(package="tfllm")
class OffsetRMSNormalization(RMSNormalization):
    """Root-mean-square normalization whose gain is 1 + scale (Gemma, Team 2024).

    The variable is the difference from 1, as Hugging Face's files have it: weight decay pulls
    towards the identity, and weights go back unchanged.
    """

    def build(self, input_shape: Shape) -> None:
        super().build(input_shape)
        self.scale.assign(ops.zeros_like(self.scale))

    def gain(self, dtype: str) -> Tensor:
        """Return the factor of each feature: the stored scale plus 1."""
        return ops.add(ops.cast(self.scale, dtype), 1.0)


RMS = {"rms": RMSNormalization, "rms_offset": OffsetRMSNormalization}


def normalization_layer(
    kind: str, name: str, epsilon: float, policy: keras.DTypePolicy | str | None = None
) -> keras.layers.Layer:
    """Create a normalization layer; all kinds compute in float32.

    Args:
        kind: "layer" (Ba et al. 2016), "layer_scale", the same without a bias (ModernBERT), "rms"
            (Zhang and Sennrich 2019), or "rms_offset", whose gain is 1 + scale (Gemma).
        name: The layer's name.
        epsilon: Added to the variance, or to the mean square.
        policy: The layer's dtype policy; None is Keras' current one.
    """
    if kind in RMS:
        return RMS[kind](epsilon=epsilon, dtype=policy, name=name)
    return keras.layers.LayerNormalization(
        epsilon=epsilon, center=kind == "layer", dtype=policy, name=name
    )
