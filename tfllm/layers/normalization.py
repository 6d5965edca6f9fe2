"""Normalisations."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="tfllm")
class RMSNormalization(keras.layers.RMSNormalization):
    """`keras.layers.RMSNormalization` in another order: (x * scale) * rsqrt(mean(x**2) + epsilon).

    Zhang and Sennrich 2019. TensorFlow's converter multiplies a constant that stands right before a
    product into its weights. Keras' own order ends in the scale, and a file that has it in the next
    layer's weights loses them when they are rounded: some columns are hundreds of times larger than
    the others. Here what stands last is no constant. Variables, their names and the precision, at
    least float32 whatever comes in, are Keras'.
    """

    def call(self, x: Any) -> Any:
        wide = ops.cast(x, keras.backend.result_type(x.dtype, "float32"))
        mean = ops.mean(ops.square(wide), axis=self.axis, keepdims=True)
        scaled = ops.multiply(wide, ops.cast(self.scale, wide.dtype))
        normalized = ops.multiply(scaled, ops.rsqrt(ops.add(mean, self.epsilon)))
        return ops.cast(normalized, x.dtype)
