"""The encoder block; `causal` has the decoder block."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from tfllm.layers.activations import get_activation
from tfllm.layers.attention import EXACT_MASK, BiasedAttention, MultiHeadAttention
from tfllm.layers.projections import truncated_normal
from tfllm.layers.types import Shape, Tensor


@keras.saving.register_keras_serializable(package="tfllm")
class EncoderBlock(keras.layers.Layer):
    """Post-norm encoder block (Vaswani et al. 2017; BERT, Devlin et al. 2019).

    Self-attention and a two-layer feed-forward network, each with a residual connection that is
    followed by a layer normalization: (B, T, D) to (B, T, D).

    Args:
        num_heads: Attention heads; they divide D.
        intermediate_dim: Width inside the feed-forward network.
        activation: Of the feed-forward network; see `activations.ACTIVATIONS`.
        layer_norm_epsilon: Added to the variance.
        dropout: Rate, on the output of both parts.
        attention_dropout: Rate, on the attention weights.
        initializer_range: Standard deviation of new kernels.
        mask_constant: See `attention.MultiHeadAttention`.
        biased: Whether a bias is added to the scores of the attention, an input of the block.
        options: Of `keras.layers.Layer`.
    """

    def __init__(
        self,
        num_heads: int,
        intermediate_dim: int,
        activation: str = "gelu",
        layer_norm_epsilon: float = 1e-12,
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
        initializer_range: float = 0.02,
        mask_constant: float = EXACT_MASK,
        biased: bool = False,
        **options: Any,
    ):
        super().__init__(**options)
        self.num_heads = num_heads
        self.intermediate_dim = intermediate_dim
        self.activation = activation
        self.layer_norm_epsilon = layer_norm_epsilon
        self.dropout = dropout
        self.attention_dropout = attention_dropout
        self.initializer_range = initializer_range
        self.mask_constant = mask_constant
        self.biased = biased

    def build(
        self,
        x_shape: Shape,
        attention_mask_shape: Shape | None = None,
        position_bias_shape: Shape | None = None,
    ) -> None:
        hidden_dim = x_shape[-1]
        assert hidden_dim is not None
        policy = self.dtype_policy
        kind = BiasedAttention if self.biased else MultiHeadAttention
        self.attention = kind(
            self.num_heads,
            key_dim=hidden_dim // self.num_heads,
            dropout=self.attention_dropout,
            kernel_initializer=truncated_normal(self.initializer_range),
            mask_constant=self.mask_constant,
            dtype=policy,
            name="attention",
        )
        self.attention.build(x_shape, x_shape)
        self.attention_norm = keras.layers.LayerNormalization(
            epsilon=self.layer_norm_epsilon, dtype=policy, name="attention_norm"
        )
        self.attention_norm.build(x_shape)
        self.up = keras.layers.Dense(
            self.intermediate_dim,
            activation=get_activation(self.activation),
            kernel_initializer=truncated_normal(self.initializer_range),
            dtype=policy,
            name="up",
        )
        self.up.build(x_shape)
        self.down = keras.layers.Dense(
            hidden_dim,
            kernel_initializer=truncated_normal(self.initializer_range),
            dtype=policy,
            name="down",
        )
        self.down.build((*x_shape[:-1], self.intermediate_dim))
        self.feedforward_norm = keras.layers.LayerNormalization(
            epsilon=self.layer_norm_epsilon, dtype=policy, name="feedforward_norm"
        )
        self.feedforward_norm.build(x_shape)
        self.attention_output_dropout = keras.layers.Dropout(
            self.dropout, dtype=policy, name="attention_dropout"
        )
        self.feedforward_dropout = keras.layers.Dropout(
            self.dropout, dtype=policy, name="feedforward_dropout"
        )

    def call(
        self,
        x: Tensor,
        attention_mask: Tensor | None = None,
        position_bias: Tensor | None = None,
        training: bool | None = None,
    ) -> Tensor:
        """Run the block.

        Args:
            x: (B, T, D).
            attention_mask: Boolean (B, 1 or T, T), false where a position is not attended to.
            position_bias: (B or 1, num_heads, T, T), added to the scores of a `biased` block.
            training: Whether dropout is active.

        Returns:
            (B, T, D).
        """
        bias = {"position_bias": position_bias} if self.biased else {}
        attended = self.attention(x, x, attention_mask=attention_mask, training=training, **bias)
        attended = self.attention_output_dropout(attended, training=training)
        x = self.attention_norm(ops.add(x, attended))
        output = self.feedforward_dropout(self.down(self.up(x)), training=training)
        return self.feedforward_norm(ops.add(x, output))

    def get_config(self) -> dict[str, Any]:
        names = (
            "num_heads intermediate_dim activation layer_norm_epsilon dropout attention_dropout "
            "initializer_range mask_constant biased"
        )
        return {**super().get_config(), **{name: getattr(self, name) for name in names.split()}}
