"""Token embeddings that are multiplied by a constant."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from tfllm.layers.types import Tensor


@keras.saving.register_keras_serializable(package="tfllm")
class ScaledEmbedding(keras.layers.ReversibleEmbedding):
    """Embed tokens, multiplied by `scale` on the way in and as stored on the way out (the logits).

    The factor is rounded to the dtype of the computation, as in transformers (Gemma, Granite).

    Args:
        input_dim: Tokens of the vocabulary.
        output_dim: Width.
        scale: The factor; 1 leaves the embeddings as they are.
        options: Of `keras.layers.ReversibleEmbedding`.
    """

    def __init__(self, input_dim: int, output_dim: int, scale: float = 1.0, **options: Any):
        super().__init__(input_dim, output_dim, **options)
        self.scale = scale

    def call(self, inputs: Tensor, reverse: bool = False) -> Tensor:
        outputs = super().call(inputs, reverse=reverse)
        if reverse or self.scale == 1.0:
            return outputs
        return ops.multiply(outputs, ops.cast(self.scale, outputs.dtype))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "scale": self.scale}
