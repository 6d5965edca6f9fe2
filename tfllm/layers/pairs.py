"""A model of single texts over pairs of them, so that a pair is one row of a data set."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="tfllm")
class SplitPairs(keras.layers.Layer):
    """Rows of pairs (B, 2, T) to rows of texts (2B, T), each first text before its second."""

    def call(self, rows: Any) -> Any:
        return ops.reshape(rows, (-1, ops.shape(rows)[-1]))

    def compute_output_spec(self, rows: Any) -> keras.KerasTensor:
        batch, _, length = rows.shape
        return keras.KerasTensor((None if batch is None else 2 * batch, length), rows.dtype)


@keras.saving.register_keras_serializable(package="tfllm")
class JoinPairs(keras.layers.Layer):
    """Vectors of texts (2B, D) to vectors of pairs (B, 2, D)."""

    def call(self, vectors: Any) -> Any:
        return ops.reshape(vectors, (-1, 2, vectors.shape[-1]))

    def compute_output_spec(self, vectors: Any) -> keras.KerasTensor:
        batch, width = vectors.shape
        return keras.KerasTensor((None if batch is None else batch // 2, 2, width), vectors.dtype)


def apply_to_pairs(model: keras.Model) -> keras.Model:
    """The same layers and weights with inputs int32 (B, 2, T) and outputs (B, 2, D)."""
    rows = {name: keras.Input((2, None), dtype="int32", name=name) for name in model.input}
    texts = {name: SplitPairs(name=f"{name}_unpaired")(row) for name, row in rows.items()}
    # The graph itself, not the model as one layer: its layers stay this model's own.
    vectors = model.call(texts)
    return keras.Model(rows, JoinPairs(name="paired", dtype="float32")(vectors), name=model.name)
