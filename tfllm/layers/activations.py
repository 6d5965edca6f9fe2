"""Activations by the names that Hugging Face configurations use."""

from __future__ import annotations

import math
from collections.abc import Callable

import keras
from keras import ops

from tfllm.errors import SettingError
from tfllm.layers.types import Tensor

SQRT_HALF = math.sqrt(0.5)


@keras.saving.register_keras_serializable(package="tfllm")
def exact_gelu(x: Tensor) -> Tensor:
    """Compute GELU with the error function (Hendrycks and Gimpel 2016), as BERT does.

    Written out in float32: TensorFlow's own uses the complementary error function, which is not
    vectorized on CPUs (4 times slower, 8 times in bfloat16). LiteRT's converter fuses exactly this
    order of factors into its GELU operation.
    """
    wide = ops.cast(x, "float32")
    return ops.cast(0.5 * wide * (1.0 + ops.erf(wide * SQRT_HALF)), x.dtype)


@keras.saving.register_keras_serializable(package="tfllm")
def tanh_gelu(x: Tensor) -> Tensor:
    """Compute GELU with its tanh approximation, as GPT-2 and the first BERT code do."""
    return keras.activations.gelu(x, approximate=True)


@keras.saving.register_keras_serializable(package="tfllm")
def quick_gelu(x: Tensor) -> Tensor:
    """Compute GELU with its sigmoid approximation (Hendrycks and Gimpel 2016, section 2)."""
    return x * ops.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": exact_gelu,
    "gelu_python": exact_gelu,
    "gelu_new": tanh_gelu,
    "gelu_fast": tanh_gelu,
    "gelu_accurate": tanh_gelu,
    "gelu_python_tanh": tanh_gelu,
    "gelu_pytorch_tanh": tanh_gelu,
    "quick_gelu": quick_gelu,
    "relu": keras.activations.relu,
    "silu": keras.activations.silu,
    "swish": keras.activations.silu,
    "sigmoid": keras.activations.sigmoid,
    "tanh": keras.activations.tanh,
}


def get_activation(name: str) -> Callable[[Tensor], Tensor]:
    """Return an activation by its Hugging Face name.

    Raises:
        SettingError: There is no such activation; the message names the known ones.
    """
    if name not in ACTIVATIONS:
        # All of them: the one with the nearest name may be another function.
        known = ", ".join(sorted(ACTIVATIONS))
        raise SettingError(f"There is no activation '{name}'. Known: {known}.")
    return ACTIVATIONS[name]
