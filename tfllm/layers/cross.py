"""Cross-attention of a decoder to an encoder's output, and the decoder block that has it.

Keys and values of the source are computed by a layer of their own: once for each source, not again
for each token.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from tfllm.layers.attention import scaled_dot_product_attention
from tfllm.layers.causal import CausalBlock
from tfllm.layers.normalization import normalization_layer
from tfllm.layers.projections import InitializerRange, dense
from tfllm.layers.types import Cache, KeysAndValues, Shape, Tensor


@keras.saving.register_keras_serializable(package="tfllm")
class CrossKeysAndValues(keras.layers.Layer):
    """Project an encoder's output (B, S, D) to one decoder layer's keys and values.

    Both are (B, num_heads, S, head_dim).

    Args:
        num_heads: Heads.
        head_dim: Width of one head.
        bias: Whether the projections have biases.
        initializer_range: Of new kernels.
        options: Of `keras.layers.Layer`.
    """

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        bias: bool = True,
        initializer_range: InitializerRange = 0.02,
        **options: Any,
    ):
        super().__init__(**options)
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.bias = bias
        self.initializer_range = initializer_range

    def build(self, encoded_shape: Shape) -> None:
        for name in ("key", "value"):
            width = self.num_heads * self.head_dim
            layer = dense(name, width, self.bias, self.initializer_range, self.dtype_policy)
            layer.build(encoded_shape)
            setattr(self, name, layer)

    def call(self, encoded: Tensor) -> KeysAndValues:
        return self._split_heads(self.key(encoded)), self._split_heads(self.value(encoded))

    def _split_heads(self, x: Tensor) -> Tensor:
        batch, length = ops.shape(x)[:2]
        x = ops.reshape(x, (batch, length, self.num_heads, self.head_dim))
        return ops.transpose(x, (0, 2, 1, 3))

    def compute_output_spec(self, encoded: keras.KerasTensor) -> KeysAndValues:
        shape = (encoded.shape[0], self.num_heads, encoded.shape[1], self.head_dim)
        keys, values = (keras.KerasTensor(shape, self.compute_dtype) for _ in range(2))
        return keys, values

    def get_config(self) -> dict[str, Any]:
        names = ("num_heads", "head_dim", "bias", "initializer_range")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


@keras.saving.register_keras_serializable(package="tfllm")
class CrossAttention(keras.layers.Layer):
    """A decoder's attention to the source (Vaswani et al. 2017).

    Softmax is float32 in every precision.

    Args:
        num_heads: Heads.
        head_dim: Width of one head.
        dropout: Rate, on the attention weights.
        bias: Whether the projections have biases.
        initializer_range: Of the query projection's new kernel.
        residual_range: Of the output projection's new kernel.
        scaled: See `causal.CausalAttention`.
        options: Of `keras.layers.Layer`.
    """

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        dropout: float = 0.0,
        bias: bool = True,
        initializer_range: InitializerRange = 0.02,
        residual_range: InitializerRange = 0.02,
        scaled: bool = True,
        **options: Any,
    ):
        super().__init__(**options)
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.dropout = dropout
        self.bias = bias
        self.initializer_range = initializer_range
        self.residual_range = residual_range
        self.scaled = scaled

    def build(self, x_shape: Shape, *_: Any, **__: Any) -> None:
        policy, inner = self.dtype_policy, self.num_heads * self.head_dim
        gain = 1.0 if self.scaled else 1.0 / self.head_dim
        self.query = dense("query", inner, self.bias, self.initializer_range, policy, gain=gain)
        self.query.build(x_shape)
        width = x_shape[-1]
        assert width is not None
        self.attention_output = dense(
            "attention_output", width, self.bias, self.residual_range, policy
        )
        self.attention_output.build((*x_shape[:-1], inner))
        self.weights_dropout = keras.layers.Dropout(self.dropout, dtype=policy, name="dropout")

    def call(
        self,
        x: Tensor,
        cross_kv: KeysAndValues,
        source_mask: Tensor,
        training: bool | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Attend to the source.

        Args:
            x: (R, T, D). R is B, or a multiple of it: the rows of each source (its beams) follow
                one another.
            cross_kv: Keys and values of B sources, each (B, H, S, head_dim).
            source_mask: Boolean (B, 1, S), false on padding.
            training: Whether dropout is active.

        Returns:
            (R, T, D), and the attention weights (R, H, T, S).
        """
        keys, values = cross_kv
        batch, _, source_length, _ = ops.shape(keys)
        rows, length, _ = ops.shape(x)
        query = ops.reshape(self.query(x), (batch, -1, self.num_heads, self.head_dim))
        query = ops.transpose(query, (0, 2, 1, 3))  # (B, H, R / B * T, head_dim)
        outputs, weights = scaled_dot_product_attention(
            query, keys, values, source_mask, self.weights_dropout, self.scaled, training=training
        )
        outputs = ops.reshape(outputs, (rows, length, self.num_heads * self.head_dim))
        weights = ops.reshape(ops.transpose(weights, (0, 2, 1, 3)),
                              (rows, length, self.num_heads, source_length))  # fmt: skip
        return self.attention_output(outputs), ops.transpose(weights, (0, 2, 1, 3))

    def compute_output_spec(
        self,
        x: keras.KerasTensor,
        cross_kv: KeysAndValues,
        source_mask: keras.KerasTensor,
        training: bool | None = None,
    ) -> tuple[keras.KerasTensor, keras.KerasTensor]:
        return keras.KerasTensor(x.shape, self.compute_dtype), _weights_spec(self, x, cross_kv)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **{name: getattr(self, name) for name in CROSS_ARGUMENTS}}


CROSS_ARGUMENTS = (
    "num_heads", "head_dim", "dropout", "bias", "initializer_range", "residual_range", "scaled",
)  # fmt: skip


@keras.saving.register_keras_serializable(package="tfllm")
class CrossBlock(CausalBlock):
    """Decoder block with cross-attention between its two parts (Vaswani et al. 2017).

    Arguments are those of `CausalBlock`; the cross-attention's follow from `attention`.
    """

    def build(self, x_shape: Shape, *_: Any, **__: Any) -> None:
        super().build(x_shape)
        own, policy = self.attention, self.dtype_policy
        self.cross_norm = normalization_layer(self.norm, "cross_norm", self.norm_epsilon, policy)
        self.cross_norm.build(x_shape)
        self.cross_attention = CrossAttention(
            own.num_heads,
            own.head_dim,
            own.dropout,
            own.qkv_bias,
            own.initializer_range,
            own.residual_range,
            own.scaled,
            dtype=policy,
            name="cross_attention",
        )
        self.cross_attention.build(x_shape)
        self.cross_output_dropout = keras.layers.Dropout(
            self.dropout, dtype=policy, name="cross_dropout"
        )

    def call(  # type: ignore[override]
        self,
        x: Tensor,
        attention_mask: Tensor,
        positions: Tensor,
        cross_kv: KeysAndValues,
        source_mask: Tensor,
        cache: Cache | None = None,
        position_bias: Tensor | None = None,
        training: bool | None = None,
    ) -> tuple[Tensor, KeysAndValues, Tensor]:
        """Run the block.

        Args:
            x: (R, T, D).
            attention_mask: Boolean (R, T, C + T); see `CausalAttention.call`, as for the others.
            positions: int32 (R, T).
            cross_kv: Keys and values of B sources; see `CrossAttention.call`.
            source_mask: Boolean (B, 1, S), false on padding.
            cache: Of the self-attention.
            position_bias: Of the self-attention.
            training: Whether dropout is active.

        Returns:
            (R, T, D), the new keys and values of the self-attention, and the weights of the
            cross-attention (R, H, T, S).
        """
        x, new = self.attend(x, attention_mask, positions, cache, position_bias, training)
        inner = self.cross_norm(x) if self.pre_norm else x
        output, weights = self.cross_attention(inner, cross_kv, source_mask, training=training)
        output = self.cross_output_dropout(output, training=training)
        x = self.add_residual(x, output, "cross_norm")
        return self.feed_forward(x, training), new, weights

    def compute_output_spec(  # type: ignore[override]
        self,
        x: keras.KerasTensor,
        attention_mask: keras.KerasTensor,
        positions: keras.KerasTensor,
        cross_kv: KeysAndValues,
        source_mask: keras.KerasTensor,
        cache: Cache | None = None,
        position_bias: keras.KerasTensor | None = None,
        training: bool | None = None,
    ) -> tuple[keras.KerasTensor, KeysAndValues, keras.KerasTensor]:
        x, new = super().compute_output_spec(
            x, attention_mask, positions, cache, position_bias, training
        )
        return x, new, _weights_spec(self, x, cross_kv)


def _weights_spec(
    layer: keras.layers.Layer, x: keras.KerasTensor, cross_kv: KeysAndValues
) -> keras.KerasTensor:
    """Attention weights (R, H, T, S) of x (R, T, D)."""
    _, heads, source_length, _ = cross_kv[0].shape
    shape = (x.shape[0], heads, x.shape[1], source_length)
    return keras.KerasTensor(shape, layer.compute_dtype)
