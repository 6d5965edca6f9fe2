"""Dense projections and their initializers, as encoders and decoders use them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import keras

from tfllm.layers.types import Tensor

InitializerRange = float | Literal["glorot", "fan_in"]
"""How kernels are initialized: a standard deviation, or by their shape: "glorot" (Glorot and Bengio
2010), or "fan_in", a variance of 1 / inputs (LeCun et al. 1998)."""


def truncated_normal(stddev: float) -> keras.initializers.Initializer:
    """Create a truncated normal initializer.

    A new one for each layer: layers that share an unseeded Keras initializer get equal weights.
    """
    return keras.initializers.TruncatedNormal(stddev=stddev)


def kernel_initializer(
    initializer_range: InitializerRange, gain: float = 1.0
) -> keras.initializers.Initializer:
    """Create the initializer of a kernel.

    Args:
        initializer_range: A standard deviation, "glorot" or "fan_in".
        gain: Factor of the variance; not used for "glorot".
    """
    if initializer_range == "glorot":
        return keras.initializers.GlorotUniform()
    if initializer_range == "fan_in":
        return keras.initializers.VarianceScaling(gain, "fan_in", "truncated_normal")
    assert not isinstance(initializer_range, str)
    return truncated_normal(initializer_range * gain**0.5)


def dense(
    name: str,
    units: int,
    bias: bool,
    initializer_range: InitializerRange,
    policy: keras.DTypePolicy,
    activation: Callable[[Tensor], Tensor] | None = None,
    gain: float = 1.0,
) -> keras.layers.Dense:
    """Create a dense projection.

    Args:
        name: The layer's name.
        units: Width of the output.
        bias: Whether there is a bias.
        initializer_range: Of the kernel; see `kernel_initializer`.
        policy: The layer's dtype policy.
        activation: Applied to the output.
        gain: See `kernel_initializer`.
    """
    return keras.layers.Dense(
        units,
        activation=activation,
        use_bias=bias,
        kernel_initializer=kernel_initializer(initializer_range, gain),
        dtype=policy,
        name=name,
    )
