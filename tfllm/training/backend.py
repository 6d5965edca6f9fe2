"""Keras' backend must be chosen before Keras is imported: here, by a recipe's strategy."""

from __future__ import annotations

import os
from pathlib import Path

from tfllm.config import apply_overrides, read_yaml

BACKEND = "KERAS_BACKEND"
# On TensorFlow keras.distribution does nothing.
JAX_STRATEGIES = ("data_parallel", "model_parallel")


def choose_backend(recipe: Path, overrides: list[str]) -> None:
    """Choose JAX for a recipe with one of its strategies, unless KERAS_BACKEND is set.

    Args:
        recipe: Path of the recipe.
        overrides: `key=value` texts.
    """
    data = apply_overrides(read_yaml(recipe)[0], overrides)
    train = data.get("train")
    if isinstance(train, dict) and train.get("strategy") in JAX_STRATEGIES:
        os.environ.setdefault(BACKEND, "jax")
