"""A model of single texts applied to pairs of texts, so that a pair is one row of a dataset."""

from __future__ import annotations

import keras
from keras import ops

from tfllm.layers.types import Tensor


@keras.saving.register_keras_serializable(package="tfllm")
class SplitPairs(keras.layers.Layer):
    """Reshape rows of pairs (B, 2, T) to rows of texts (2B, T), first texts before second ones."""

    def call(self, rows: Tensor) -> Tensor:
        return ops.reshape(rows, (-1, ops.shape(rows)[-1]))

    def compute_output_spec(self, rows: keras.KerasTensor) -> keras.KerasTensor:
        batch, _, length = rows.shape
        return keras.KerasTensor((None if batch is None else 2 * batch, length), rows.dtype)


@keras.saving.register_keras_serializable(package="tfllm")
class JoinPairs(keras.layers.Layer):
    """Reshape embeddings of texts (2B, D) to embeddings of pairs (B, 2, D)."""

    def call(self, embeddings: Tensor) -> Tensor:
        return ops.reshape(embeddings, (-1, 2, embeddings.shape[-1]))

    def compute_output_spec(self, embeddings: keras.KerasTensor) -> keras.KerasTensor:
        batch, width = embeddings.shape
        pairs = None if batch is None else batch // 2
        return keras.KerasTensor((pairs, 2, width), embeddings.dtype)


def apply_to_pairs(model: keras.Model) -> keras.Model:
    """Build the model of pairs that shares a text model's layers and weights.

    Args:
        model: Inputs int32 (B, T), output embeddings (B, D).

    Returns:
        A model with inputs int32 (B, 2, T) of the same names, and outputs (B, 2, D).
    """
    rows = {name: keras.Input((2, None), dtype="int32", name=name) for name in model.input}
    texts = {name: SplitPairs(name=f"{name}_unpaired")(row) for name, row in rows.items()}
    # The graph itself, not the model as one layer: its layers stay this model's own.
    embeddings = model.call(texts)
    return keras.Model(rows, JoinPairs(name="paired", dtype="float32")(embeddings), name=model.name)
