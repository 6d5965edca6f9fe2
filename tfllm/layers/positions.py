"""Learned and sinusoidal position embeddings."""

from __future__ import annotations

import functools
from typing import Any

import keras
import numpy as np
from keras import ops

from tfllm.layers.types import Shape, Tensor


@keras.saving.register_keras_serializable(package="tfllm")
class PositionEmbedding(keras.layers.Layer):
    """Add learned position embeddings: (B, T, D) to (B, T, D), T up to `max_sequence_length`.

    The table is cut to T inside the layer, because a functional graph does not know T.

    Args:
        max_sequence_length: Positions in the table.
        initializer_range: Standard deviation of new embeddings.
        offset: Unused rows before the first position's (RoBERTa).
        options: Of `keras.layers.Layer`.
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

    def build(self, input_shape: Shape) -> None:
        self.embeddings = self.add_weight(
            shape=(self.offset + self.max_sequence_length, input_shape[-1]),
            initializer=keras.initializers.TruncatedNormal(stddev=self.initializer_range),
            name="embeddings",
        )

    def call(self, x: Tensor) -> Tensor:
        table = ops.convert_to_tensor(self.embeddings)
        rows = table[self.offset : self.offset + ops.shape(x)[1]]  # (T, D)
        return ops.add(x, ops.cast(rows, x.dtype))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return input_shape  # JAX cannot infer it from a slice of unknown length

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "max_sequence_length": self.max_sequence_length,
            "initializer_range": self.initializer_range,
            "offset": self.offset,
        }


@keras.saving.register_keras_serializable(package="tfllm")
class SinusoidalPositionEmbedding(keras.layers.Layer):
    """Look up sinusoidal position embeddings: int32 (B, T) to (B, T, width); no weights.

    Args:
        max_sequence_length: Positions in the table.
        width: Of an embedding.
        options: Of `keras.layers.Layer`.
    """

    def __init__(self, max_sequence_length: int, width: int, **options: Any):
        super().__init__(**options)
        self.max_sequence_length = max_sequence_length
        self.width = width

    def call(self, positions: Tensor) -> Tensor:
        table = sinusoidal_positions(self.max_sequence_length, self.width)
        return ops.take(
            ops.cast(ops.convert_to_tensor(table), self.compute_dtype), positions, axis=0
        )

    def compute_output_spec(self, positions: keras.KerasTensor) -> keras.KerasTensor:
        return keras.KerasTensor((*positions.shape, self.width), self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "max_sequence_length": self.max_sequence_length,
            "width": self.width,
        }


@functools.cache
def sinusoidal_positions(length: int, width: int) -> np.ndarray:
    """Compute the sinusoidal embeddings of `length` positions (Vaswani et al. 2017, section 3.5).

    All sines come before all cosines, as in tensor2tensor and Marian; the paper interleaves them.

    Returns:
        float32 (length, width).
    """
    positions = np.arange(length, dtype=np.float64)[:, None]
    angles = positions / 10000 ** (np.arange(0, width, 2, dtype=np.float64) / width)
    return np.concatenate([np.sin(angles), np.cos(angles[:, : width // 2])], 1).astype(np.float32)
