"""Activations by name: the formulas behind Hugging Face's names, and that Keras can save them."""

import math

import keras
import numpy as np
import pytest

from tfllm.layers.activations import ACTIVATIONS, get_activation

X = np.linspace(-4, 4, 33).astype(np.float32)
ERF = np.array([math.erf(x / math.sqrt(2)) for x in X])
EXACT = 0.5 * X * (1 + ERF)
TANH = 0.5 * X * (1 + np.tanh(math.sqrt(2 / math.pi) * (X + 0.044715 * X**3)))
ROUNDING = 1e-6  # float32, values up to 4

FORMULAS = {
    "gelu": EXACT,
    "gelu_python": EXACT,
    "gelu_new": TANH,
    "gelu_fast": TANH,
    "gelu_accurate": TANH,
    "gelu_python_tanh": TANH,
    "gelu_pytorch_tanh": TANH,
    "quick_gelu": X / (1 + np.exp(-1.702 * X)),
    "relu": np.maximum(X, 0),
    "silu": X / (1 + np.exp(-X)),
    "swish": X / (1 + np.exp(-X)),
    "sigmoid": 1 / (1 + np.exp(-X)),
    "tanh": np.tanh(X),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_name_stands_for_its_formula(name):
    np.testing.assert_allclose(
        get_activation(name)(keras.ops.array(X)), FORMULAS[name], atol=ROUNDING
    )


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_keras_can_save_and_load_it(name):
    layer = keras.layers.Dense(3, activation=get_activation(name))
    again = keras.layers.Dense.from_config(layer.get_config())
    assert again.activation is layer.activation
