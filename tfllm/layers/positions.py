"""Positions that are added to embeddings: learned ones and waves."""

from __future__ import annotations

import functools
from typing import Any

import keras
import numpy as np
from keras import ops


@keras.saving.register_keras_serializable(package="tfllm")
class PositionEmbedding(keras.layers.Layer):
    """Adds a learned row to every position: (B, T, D) to (B, T, D), T up to `max_sequence_length`.

    `offset` rows before those of the first position are never used (RoBERTa). The rows are cut
    inside the layer, because a functional graph does not know T.
    """

    def __init__(
        self,
        max_sequence_length: int,
        initializer_range: float = 0.02,
        offset: int = 0,
        **options: Any,
    ):
        super().__init__(**options)
        self.max_sequence_length = max_sequence_length
        self.initializer_range = initializer_range
        self.offset = offset

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self.embeddings = self.add_weight(
            shape=(self.offset + self.max_sequence_length, input_shape[-1]),
            initializer=keras.initializers.TruncatedNormal(stddev=self.initializer_range),
            name="embeddings",
        )

    def call(self, x: Any) -> Any:
        table = ops.convert_to_tensor(self.embeddings)
        rows = table[self.offset : self.offset + ops.shape(x)[1]]  # (T, D)
        return ops.add(x, ops.cast(rows, x.dtype))

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return input_shape  # said, because JAX cannot tell it from a slice of unknown length

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "max_sequence_length": self.max_sequence_length,
            "initializer_range": self.initializer_range,
            "offset": self.offset,
        }


@keras.saving.register_keras_serializable(package="tfllm")
class SinusoidalPositionEmbedding(keras.layers.Layer):
    """Positions int32 (B, T) to fixed rows (B, T, width) of waves (Vaswani et al. 2017, 3.5).

    All sines stand before all cosines, as tensor2tensor and Marian lay them out; the paper's are
    the same columns in another order. No weights.
    """

    def __init__(self, max_sequence_length: int, width: int, **options: Any):
        super().__init__(**options)
        self.max_sequence_length = max_sequence_length
        self.width = width

    def call(self, positions: Any) -> Any:
        table = ops.cast(ops.convert_to_tensor(waves(self.max_sequence_length, self.width)),
                         self.compute_dtype)  # fmt: skip
        return ops.take(table, positions, axis=0)

    def compute_output_spec(self, positions: Any) -> keras.KerasTensor:
        return keras.KerasTensor((*positions.shape, self.width), self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "max_sequence_length": self.max_sequence_length,
            "width": self.width,
        }


@functools.cache
def waves(length: int, width: int) -> np.ndarray:
    """The rows of the first `length` positions: float32 (length, width)."""
    places = np.arange(length, dtype=np.float64)[:, None]
    sines = places / 10000 ** (np.arange(0, width, 2, dtype=np.float64) / width)
    return np.concatenate([np.sin(sines), np.cos(sines[:, : width // 2])], 1).astype(np.float32)
