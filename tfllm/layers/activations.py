"""Activations by the names that Hugging Face configurations use."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from tfllm.errors import SettingError

SQRT_HALF = math.sqrt(0.5)


@keras.saving.register_keras_serializable(package="tfllm")
def exact_gelu(x: Any) -> Any:
    """GELU by the error function (Hendrycks and Gimpel 2016), BERT's own.

    Written out, in float32: TensorFlow's own takes the complementary error function, which no
    vector instruction serves on CPUs (four times slower, in bfloat16 eight times). The order of
    the factors is the one that LiteRT's converter makes its GELU of.
    """
    wide = ops.cast(x, "float32")
    return ops.cast(0.5 * wide * (1.0 + ops.erf(wide * SQRT_HALF)), x.dtype)


@keras.saving.register_keras_serializable(package="tfllm")
def tanh_gelu(x: Any) -> Any:
    """GELU by its tanh approximation, as GPT-2 and the first BERT code wrote it."""
    return keras.activations.gelu(x, approximate=True)


@keras.saving.register_keras_serializable(package="tfllm")
def quick_gelu(x: Any) -> Any:
    """GELU by a sigmoid (Hendrycks and Gimpel 2016, section 2)."""
    return x * ops.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
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


def activation(name: str) -> Callable[[Any], Any]:
    """The function called `name`. Raises SettingError naming the known ones."""
    if name not in ACTIVATIONS:
        known = ", ".join(sorted(ACTIVATIONS))  # the nearest name may be another function
        raise SettingError(f"There is no activation '{name}'. Known: {known}.")
    return ACTIVATIONS[name]
