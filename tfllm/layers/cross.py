"""Attention of a decoder to what an encoder made of the source, and the block that has it.

Keys and values of the source are a layer of their own, so that they are computed once for each
source and not again for each token.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from tfllm.layers.attention import scaled_dot_product_attention
from tfllm.layers.causal import Cache, CausalBlock, KeysAndValues
from tfllm.layers.projections import Spread, dense, normalization_layer


@keras.saving.register_keras_serializable(package="tfllm")
class CrossKeysAndValues(keras.layers.Layer):
    """What one decoder layer looks at: encoded (B, S, D) to keys and values (B, H, S, head_dim)."""

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        bias: bool = True,
        initializer_range: Spread = 0.02,
        **options: Any,
    ):
        super().__init__(**options)
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.bias = bias
        self.initializer_range = initializer_range

    def build(self, encoded_shape: tuple[int | None, ...]) -> None:
        for name in ("key", "value"):
            width = self.num_heads * self.head_dim
            layer = dense(name, width, self.bias, self.initializer_range, self.dtype_policy)
            layer.build(encoded_shape)
            setattr(self, name, layer)

    def call(self, encoded: Any) -> KeysAndValues:
        return self._heads(self.key(encoded)), self._heads(self.value(encoded))

    def _heads(self, x: Any) -> Any:
        batch, length = ops.shape(x)[:2]
        x = ops.reshape(x, (batch, length, self.num_heads, self.head_dim))
        return ops.transpose(x, (0, 2, 1, 3))

    def compute_output_spec(self, encoded: Any) -> KeysAndValues:
        shape = (encoded.shape[0], self.num_heads, encoded.shape[1], self.head_dim)
        keys, values = (keras.KerasTensor(shape, self.compute_dtype) for _ in range(2))
        return keys, values

    def get_config(self) -> dict[str, Any]:
        names = ("num_heads", "head_dim", "bias", "initializer_range")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


@keras.saving.register_keras_serializable(package="tfllm")
class CrossAttention(keras.layers.Layer):
    """A decoder's attention to the source. Softmax is float32 in every precision."""

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        dropout: float = 0.0,
        bias: bool = True,
        initializer_range: Spread = 0.02,
        residual_range: Spread = 0.02,
        scaled: bool = True,
        **options: Any,
    ):
        """`scaled`: as CausalAttention."""
        super().__init__(**options)
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.dropout = dropout
        self.bias = bias
        self.initializer_range = initializer_range
        self.residual_range = residual_range
        self.scaled = scaled

    def build(self, x_shape: tuple[int | None, ...], *_: Any, **__: Any) -> None:
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
        self.dropped = keras.layers.Dropout(self.dropout, dtype=policy, name="dropout")

    def call(
        self, x: Any, cross_kv: KeysAndValues, seen: Any, training: bool | None = None
    ) -> tuple[Any, Any]:
        """(R, T, D) to (R, T, D), and the attention weights (R, H, T, S).

        `cross_kv`: keys and values (B, H, S, head_dim); `seen`: boolean (B, 1, S). R is B, or a
        multiple of it: as many rows for each source, one after another, such as beams.
        """
        keys, values = cross_kv
        batch, _, source_length, _ = ops.shape(keys)
        rows, length, _ = ops.shape(x)
        query = ops.reshape(self.query(x), (batch, -1, self.num_heads, self.head_dim))
        query = ops.transpose(query, (0, 2, 1, 3))  # (B, H, R / B * T, head_dim)
        mixed, weights = scaled_dot_product_attention(
            query, keys, values, seen, self.dropped, self.scaled, training=training
        )
        mixed = ops.reshape(mixed, (rows, length, self.num_heads * self.head_dim))
        weights = ops.reshape(ops.transpose(weights, (0, 2, 1, 3)),
                              (rows, length, self.num_heads, source_length))  # fmt: skip
        return self.attention_output(mixed), ops.transpose(weights, (0, 2, 1, 3))

    def compute_output_spec(
        self, x: Any, cross_kv: KeysAndValues, seen: Any, training: Any = None
    ) -> tuple[Any, Any]:
        return keras.KerasTensor(x.shape, self.compute_dtype), weights_spec(self, x, cross_kv)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **{name: getattr(self, name) for name in CROSS}}


CROSS = (
    "num_heads", "head_dim", "dropout", "bias", "initializer_range", "residual_range", "scaled",
)  # fmt: skip


@keras.saving.register_keras_serializable(package="tfllm")
class CrossBlock(CausalBlock):
    """A decoder block with attention to the source between its two parts (Vaswani et al. 2017).

    `attention` holds the arguments of CausalAttention; those of the attention to the source follow
    from them.
    """

    def build(self, x_shape: tuple[int | None, ...], *_: Any, **__: Any) -> None:
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
        self.cross_dropped = keras.layers.Dropout(self.dropout, dtype=policy, name="cross_dropout")

    def call(  # type: ignore[override]
        self,
        x: Any,
        allowed: Any,
        positions: Any,
        cross_kv: KeysAndValues,
        seen: Any,
        cache: Cache | None = None,
        position_bias: Any = None,
        training: bool | None = None,
    ) -> tuple[Any, KeysAndValues, Any]:
        """As CausalBlock, and the weights of the attention to the source: see CrossAttention."""
        x, new = self.attended(x, allowed, positions, cache, position_bias, training)
        inner = self.cross_norm(x) if self.pre_norm else x
        part, weights = self.cross_attention(inner, cross_kv, seen, training=training)
        x = self.added(x, self.cross_dropped(part, training=training), self.cross_norm)
        return self.fed(x, training), new, weights

    def compute_output_spec(  # type: ignore[override]
        self,
        x: Any,
        allowed: Any,
        positions: Any,
        cross_kv: KeysAndValues,
        seen: Any,
        cache: Any = None,
        position_bias: Any = None,
        training: Any = None,
    ) -> tuple[Any, KeysAndValues, Any]:
        x, new = super().compute_output_spec(x, allowed, positions, cache, position_bias, training)
        return x, new, weights_spec(self, x, cross_kv)


def weights_spec(layer: keras.layers.Layer, x: Any, cross_kv: KeysAndValues) -> Any:
    """Attention weights (R, H, T, S) of x (R, T, D)."""
    _, heads, source_length, _ = cross_kv[0].shape
    shape = (x.shape[0], heads, x.shape[1], source_length)
    return keras.KerasTensor(shape, layer.compute_dtype)
