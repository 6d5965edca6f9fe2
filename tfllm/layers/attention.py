"""Keras' multi-head attention with one thing more: the number that masks a position is settable.

And what attention that goes on from cached keys and values has in the middle.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from tfllm.keras_internals import MultiHeadAttentionBase, all_layers

# Added to the scores of masked positions. exp() of it is exactly zero in float32 and bfloat16.
EXACT_MASK = -1e9
# The largest that float16 holds with room for the scores themselves.
FLOAT16_MASK = -3e4


@keras.saving.register_keras_serializable(package="tfllm")
class MultiHeadAttention(MultiHeadAttentionBase):
    """`keras.layers.MultiHeadAttention` whose mask is an addition of `mask_constant`.

    A full-int8 model needs a small constant (about -20 to -100): the scores share one scale with
    it, so that -1e9 would round all of them to zero. Everything else is Keras' own layer, its
    variables and their names included.
    """

    def __init__(self, *arguments: Any, mask_constant: float = EXACT_MASK, **options: Any):
        super().__init__(*arguments, **options)
        self.mask_constant = mask_constant

    def attend(
        self, query: Any, key: Any, value: Any, attention_mask: Any, training: bool | None
    ) -> tuple[Any, Any]:
        """Attend from scaled queries (B, T, N, H) to keys (B, S, N, H).

        Args:
            query: Queries, times the inverse root of their width.
            key: Keys.
            value: Values (B, S, N, H).
            attention_mask: Boolean (B, T or 1, S), true where a key may be attended to; or None.
            training: Whether weights are dropped.

        Returns:
            Outputs (B, T, N, H) and attention weights (B, N, T, S).
        """
        scores = ops.einsum("bsnh,btnh->bnts", key, query)
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


def set_mask_constant(model: keras.Model, constant: float) -> None:
    """Sets the mask constant of every attention layer in `model`, for graphs traced from now on."""
    for layer in all_layers(model):
        if isinstance(layer, MultiHeadAttention):
            layer.mask_constant = constant
    # Functions that Keras traced before still hold the old constant.
    model.predict_function = None
    model.test_function = None
    model.train_function = None


def scaled_dot_product_attention(
    query: Any,
    keys: Any,
    values: Any,
    allowed: Any,
    dropped: keras.layers.Dropout,
    scaled: bool = True,
    position_bias: Any = None,
    training: bool | None = None,
) -> tuple[Any, Any]:
    """Values by attention: queries (B, H, S, d), keys and values (B, N, K, d) to (B, S, H, d), and
    the weights (B, H, S, K) in the values' precision.

    Queries that share a key's head stand in one matrix; all tensors have four axes, which every
    phone's runtime has kernels for.
    """
    batch, heads, length, width = ops.shape(query)
    groups, seen = ops.shape(keys)[1:3]
    rows = length * (heads // groups)
    if scaled:
        query = ops.multiply(query, ops.cast(width**-0.5, query.dtype))
    query = ops.reshape(query, (batch, groups, rows, width))
    scores = ops.matmul(query, ops.transpose(keys, (0, 1, 3, 2)))
    scores = ops.cast(ops.reshape(scores, (batch, heads, length, seen)), "float32")
    if position_bias is not None:
        scores = ops.add(scores, ops.cast(position_bias, "float32"))
    bias = ops.multiply(ops.cast(ops.logical_not(allowed), "float32"), EXACT_MASK)
    scores = ops.add(scores, ops.expand_dims(bias, 1))
    # Keras warns of a softmax over one number, which is always 1.
    one = isinstance(seen, int) and seen == 1
    weights = ops.ones_like(scores) if one else ops.softmax(scores, axis=-1)
    weights = dropped(ops.cast(weights, values.dtype), training=training)
    mixed = ops.matmul(ops.reshape(weights, (batch, groups, rows, seen)), values)
    return ops.transpose(ops.reshape(mixed, (batch, heads, length, width)), (0, 2, 1, 3)), weights
