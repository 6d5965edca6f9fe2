"""Attention: Keras' multi-head layer with a settable mask constant, and the scaled dot product."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from tfllm.keras_internals import MultiHeadAttentionBase, all_layers
from tfllm.layers.types import Tensor

EXACT_MASK = -1e9
"""Added to the scores of masked positions. exp() of it is exactly zero in float32 and bfloat16."""
FLOAT16_MASK = -3e4
"""The same in float16: the largest magnitude that leaves room for the scores themselves."""


@keras.saving.register_keras_serializable(package="tfllm")
class MultiHeadAttention(MultiHeadAttentionBase):
    """`keras.layers.MultiHeadAttention` that masks by adding `mask_constant` to the scores.

    A full-int8 model needs a small constant (about -20 to -100): the scores share one quantization
    scale with it, so that -1e9 would round all of them to zero. Everything else is Keras' own
    layer, its variables and their names included.

    Args:
        arguments: Positional arguments of `keras.layers.MultiHeadAttention`.
        mask_constant: Added to the scores of masked positions.
        options: Keyword arguments of `keras.layers.MultiHeadAttention`.
    """

    def __init__(self, *arguments: Any, mask_constant: float = EXACT_MASK, **options: Any):
        super().__init__(*arguments, **options)
        self.mask_constant = mask_constant

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        training: bool | None,
        position_bias: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Attend from scaled queries (B, T, N, H) to keys (B, S, N, H).

        Args:
            query: Queries, times the inverse root of their width.
            key: Keys.
            value: Values (B, S, N, H).
            attention_mask: Boolean (B, T or 1, S), true where a key may be attended to; or None.
            training: Whether weights are dropped.
            position_bias: (B or 1, N, T, S), added to the scores; or None.

        Returns:
            Outputs (B, T, N, H) and attention weights (B, N, T, S).
        """
        scores = ops.einsum("bsnh,btnh->bnts", key, query)
        if position_bias is not None:
            scores = ops.add(scores, ops.cast(position_bias, scores.dtype))
        if attention_mask is not None:
            constant = self.mask_constant
            if keras.backend.standardize_dtype(scores.dtype) == "float16":
                constant = max(constant, FLOAT16_MASK)
            masked = ops.cast(ops.logical_not(ops.expand_dims(attention_mask, 1)), scores.dtype)
            scores = ops.add(scores, ops.multiply(masked, ops.cast(constant, scores.dtype)))
        weights = ops.softmax(scores, axis=-1)
        weights = self.drop_weights(weights, training)
        return ops.einsum("bnts,bsnh->btnh", weights, value), weights

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "mask_constant": self.mask_constant}


@keras.saving.register_keras_serializable(package="tfllm")
class BiasedAttention(MultiHeadAttention):
    """Self-attention with a bias of the scores, such as one by the distance of two tokens.

    Arguments and variables are those of `MultiHeadAttention`.
    """

    def call(
        self,
        query: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        position_bias: Tensor | None = None,
        training: bool | None = None,
    ) -> Tensor:
        """Attend from tokens to tokens.

        Args:
            query: (B, T, D).
            value: (B, S, D), of which keys are made too.
            attention_mask: Boolean (B, T or 1, S), true where a key may be attended to; or None.
            position_bias: (B or 1, N, T, S), added to the scores; or None.
            training: Whether weights are dropped.

        Returns:
            (B, T, D).
        """
        queries = self.scale_query(self.query_dense(query))
        keys, values = self.key_dense(value), self.value_dense(value)
        outputs, _ = self.attend(queries, keys, values, attention_mask, training, position_bias)
        return self.output_dense(outputs)


def set_mask_constant(model: keras.Model, constant: float) -> None:
    """Set the mask constant of every attention layer in a model, for graphs traced from now on.

    Args:
        model: Its compiled predict, test and train functions are dropped: they hold the old one.
        constant: Added to the scores of masked positions.
    """
    for layer in all_layers(model):
        if hasattr(layer, "mask_constant"):
            layer.mask_constant = constant
    model.predict_function = None
    model.test_function = None
    model.train_function = None


def scaled_dot_product_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    attention_mask: Tensor,
    dropout: keras.layers.Dropout,
    scaled: bool = True,
    position_bias: Tensor | None = None,
    training: bool | None = None,
    softcap: float = 0.0,
    mask_constant: float = EXACT_MASK,
) -> tuple[Tensor, Tensor]:
    """Attend from queries to keys (Vaswani et al. 2017), with grouped heads (Ainslie et al. 2023).

    The queries of a group of heads that share keys are stacked into one matrix. All tensors have
    four axes, which every LiteRT delegate has kernels for. Softmax is float32 in every precision.

    Args:
        query: (B, H, S, d).
        keys: (B, N, K, d); N divides H.
        values: (B, N, K, d).
        attention_mask: Boolean (B, S or 1, K), true where a key is attended to.
        dropout: Applied to the attention weights.
        scaled: Whether scores are divided by the square root of d.
        position_bias: (B or 1, H, S, K), added to the scores; or None.
        training: Whether weights are dropped.
        softcap: Above 0, scores are bounded to it before masking (Gemma 2).
        mask_constant: Added to the scores of masked keys.

    Returns:
        Outputs (B, S, H, d), and attention weights (B, H, S, K) in the dtype of the values.
    """
    batch, heads, length, width = ops.shape(query)
    groups, key_length = ops.shape(keys)[1:3]
    rows = length * (heads // groups)
    if scaled:
        query = ops.multiply(query, ops.cast(width**-0.5, query.dtype))
    query = ops.reshape(query, (batch, groups, rows, width))
    scores = ops.matmul(query, ops.transpose(keys, (0, 1, 3, 2)))
    scores = ops.cast(ops.reshape(scores, (batch, heads, length, key_length)), "float32")
    if softcap:
        scores = ops.multiply(ops.tanh(ops.divide(scores, softcap)), softcap)
    if position_bias is not None:
        scores = ops.add(scores, ops.cast(position_bias, "float32"))
    bias = ops.multiply(ops.cast(ops.logical_not(attention_mask), "float32"), mask_constant)
    scores = ops.add(scores, ops.expand_dims(bias, 1))
    # Keras warns of a softmax over one number, which is always 1.
    single_key = isinstance(key_length, int) and key_length == 1
    weights = ops.ones_like(scores) if single_key else ops.softmax(scores, axis=-1)
    weights = dropout(ops.cast(weights, values.dtype), training=training)
    outputs = ops.matmul(ops.reshape(weights, (batch, groups, rows, key_length)), values)
    outputs = ops.reshape(outputs, (batch, heads, length, width))
    return ops.transpose(outputs, (0, 2, 1, 3)), weights
