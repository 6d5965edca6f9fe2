"""Dense layers, normalisations and the numbers they start with, as decoders and encoders use."""

from __future__ import annotations

from typing import Any, Literal

import keras

from tfllm.layers.blocks import normal
from tfllm.layers.normalization import RMSNormalization

Spread = float | Literal["glorot", "fan_in"]
"""The deviation that a kernel starts with: a number, or by its shape (Glorot and Bengio 2010; one
over the root of its inputs)."""


def initializer(spread: Spread, gain: float = 1.0) -> keras.initializers.Initializer:
    """A new initializer. `gain` multiplies the variance; Glorot's has none."""
    if spread == "glorot":
        return keras.initializers.GlorotUniform()
    if spread == "fan_in":
        return keras.initializers.VarianceScaling(gain, "fan_in", "truncated_normal")
    assert not isinstance(spread, str)
    return normal(spread * gain**0.5)


def dense(
    name: str,
    units: int,
    bias: bool,
    spread: Spread,
    policy: Any,
    activation: Any = None,
    gain: float = 1.0,
) -> keras.layers.Dense:
    """A projection whose kernel starts with the deviation `spread`."""
    return keras.layers.Dense(
        units,
        activation=activation,
        use_bias=bias,
        kernel_initializer=initializer(spread, gain),
        dtype=policy,
        name=name,
    )


def normalization_layer(
    kind: str, name: str, epsilon: float, policy: Any = None
) -> keras.layers.Layer:
    """A normalisation of the kind "layer" or "rms"; both compute in float32."""
    if kind == "rms":
        return RMSNormalization(epsilon=epsilon, dtype=policy, name=name)
    return keras.layers.LayerNormalization(epsilon=epsilon, dtype=policy, name=name)
