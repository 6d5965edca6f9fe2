"""What decoders stack: attention that can go on from cached keys and values, and its block.

The encoder of an encoder-decoder is a stack of the same blocks, where every token sees every other.
No layer writes a cache. Attention reads the keys and values of earlier tokens, attends to [cached |
new], and returns the new ones alone; whoever runs the loop stores them as its runtime does best.
Both layers always return two results, because a layer that two functional graphs share must.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
from keras import ops

from tfllm.layers import rotary
from tfllm.layers.activations import activation as activation_named
from tfllm.layers.attention import scaled_dot_product_attention
from tfllm.layers.projections import Spread, dense, normalization_layer

KeysAndValues = tuple[Any, Any]
"""Each (B, num_key_value_heads, length, head_dim); keys are rotated already."""
Cache = KeysAndValues | Callable[[Any, Any], KeysAndValues]
"""Those of earlier tokens, or a function from the new ones to all that are attended to, for a
runtime that stores them first."""


@keras.saving.register_keras_serializable(package="tfllm")
class CausalAttention(keras.layers.Layer):
    """Self-attention of a decoder, with grouped heads (Ainslie et al. 2023) and rotary positions.

    `rope_theta` 0 is without rotary positions. `residual_range` is the initial deviation of the
    output's kernel. Without `scaled`, scores are not divided by the root of `head_dim`; queries
    start that much smaller instead (T5, Raffel et al. 2020). Softmax is float32 in every precision.
    """

    def __init__(
        self,
        num_heads: int,
        num_key_value_heads: int,
        head_dim: int,
        dropout: float = 0.0,
        qkv_bias: bool = False,
        output_bias: bool = False,
        norm_epsilon: float = 0.0,
        rope_theta: float = 0.0,
        rope_scaling: Mapping[str, Any] | None = None,
        max_sequence_length: int = 0,
        initializer_range: Spread = 0.02,
        residual_range: Spread = 0.02,
        scaled: bool = True,
        **options: Any,
    ):
        """`norm_epsilon` above 0 normalises queries and keys (Henry et al. 2020; Qwen3)."""
        super().__init__(**options)
        self.num_heads = num_heads
        self.num_key_value_heads = num_key_value_heads
        self.head_dim = head_dim
        self.dropout = dropout
        self.qkv_bias = qkv_bias
        self.output_bias = output_bias
        self.norm_epsilon = norm_epsilon
        self.rope_theta = rope_theta
        self.rope_scaling = dict(rope_scaling or {})
        self.max_sequence_length = max_sequence_length
        self.initializer_range = initializer_range
        self.residual_range = residual_range
        self.scaled = scaled
        self.rotation = (
            rotary.frequencies(head_dim, rope_theta, rope_scaling, max_sequence_length)
            if rope_theta
            else None
        )

    def build(self, x_shape: tuple[int | None, ...], *_: Any, **__: Any) -> None:
        heads, groups = self.num_heads, self.num_key_value_heads
        spread, policy = self.initializer_range, self.dtype_policy
        projections = {"query": heads, "key": groups, "value": groups}
        for name, count in projections.items():
            gain = 1.0 if self.scaled or name != "query" else 1.0 / self.head_dim
            layer = dense(name, count * self.head_dim, self.qkv_bias, spread, policy, gain=gain)
            layer.build(x_shape)
            setattr(self, name, layer)
        width = x_shape[-1]
        assert width is not None
        self.attention_output = dense(
            "attention_output", width, self.output_bias, self.residual_range, policy
        )
        self.attention_output.build((*x_shape[:-1], heads * self.head_dim))
        if self.norm_epsilon:
            for name in ("query_norm", "key_norm"):
                norm = normalization_layer("rms", name, self.norm_epsilon, policy)
                norm.build((None, None, None, self.head_dim))
                setattr(self, name, norm)
        self.dropped = keras.layers.Dropout(self.dropout, dtype=policy, name="dropout")

    def call(
        self,
        x: Any,
        allowed: Any,
        positions: Any,
        cache: Cache | None = None,
        position_bias: Any = None,
        training: bool | None = None,
    ) -> tuple[Any, KeysAndValues]:
        """(B, S, D) to (B, S, D) and the new keys and values, each (B, N, S, head_dim).

        `allowed`: boolean (B, S, C + S), C cached tokens first; `positions`: int32 (B, S). With a
        function as `cache`, `allowed` is (B, S, K) for the K keys that it returns. `position_bias`
        (B or 1, H, S, C + S) is added to the scores.
        """
        query = self._heads(self.query(x), self.num_heads)
        key = self._heads(self.key(x), self.num_key_value_heads)
        value = self._heads(self.value(x), self.num_key_value_heads)
        if self.norm_epsilon:
            query, key = self.query_norm(query), self.key_norm(key)
        if self.rotation is not None:
            cos, sin = rotary.angles(positions, *self.rotation)
            query, key = rotary.rotated(query, cos, sin), rotary.rotated(key, cos, sin)
        query, key, value = (ops.transpose(part, (0, 2, 1, 3)) for part in (query, key, value))
        keys, values = key, value
        if callable(cache):
            keys, values = cache(key, value)
        elif cache is not None:
            keys = ops.concatenate([ops.cast(cache[0], key.dtype), key], axis=2)
            values = ops.concatenate([ops.cast(cache[1], value.dtype), value], axis=2)
        mixed, _ = scaled_dot_product_attention(
            query, keys, values, allowed, self.dropped, self.scaled, position_bias, training
        )
        batch, length = ops.shape(x)[:2]
        mixed = ops.reshape(mixed, (batch, length, self.num_heads * self.head_dim))
        return self.attention_output(mixed), (key, value)

    def _heads(self, x: Any, count: int) -> Any:
        """(B, S, count * head_dim) to (B, S, count, head_dim)."""
        batch, length = ops.shape(x)[:2]
        return ops.reshape(x, (batch, length, count, self.head_dim))

    def compute_output_spec(
        self,
        x: Any,
        allowed: Any,
        positions: Any,
        cache: Any = None,
        position_bias: Any = None,
        training: Any = None,
    ) -> tuple[Any, KeysAndValues]:
        batch, length = x.shape[:2]
        shape = (batch, self.num_key_value_heads, length, self.head_dim)
        new = keras.KerasTensor(shape, self.compute_dtype)
        return keras.KerasTensor(x.shape, self.compute_dtype), (
            new,
            keras.KerasTensor(shape, self.compute_dtype),
        )

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **{name: getattr(self, name) for name in ATTENTION}}


ATTENTION = (
    "num_heads", "num_key_value_heads", "head_dim", "dropout", "qkv_bias", "output_bias",
    "norm_epsilon", "rope_theta", "rope_scaling", "max_sequence_length", "initializer_range",
    "residual_range", "scaled",
)  # fmt: skip


@keras.saving.register_keras_serializable(package="tfllm")
class CausalBlock(keras.layers.Layer):
    """Decoder block: attention, then a feed-forward part, each added to its input.

    `pre_norm` normalises what goes into each part, its absence what comes out with the input added.
    `norm` is "layer" (GPT-2, Radford et al. 2019) or "rms" (Llama, Touvron et al. 2023); `gated`
    multiplies the activated half by a linear one (GLU, Shazeer 2020). `attention` holds the
    arguments of CausalAttention.
    """

    def __init__(
        self,
        attention: Mapping[str, Any],
        intermediate_dim: int,
        activation: str,
        norm: str,
        norm_epsilon: float,
        gated: bool = False,
        bias: bool = False,
        dropout: float = 0.0,
        pre_norm: bool = True,
        inner_dropout: float = 0.0,
        **options: Any,
    ):
        """`inner_dropout` falls on the feed-forward part's inside, `dropout` on what is added."""
        super().__init__(**options)
        self.attention_options = dict(attention)
        self.intermediate_dim = intermediate_dim
        self.activation = activation
        self.norm = norm
        self.norm_epsilon = norm_epsilon
        self.gated = gated
        self.bias = bias
        self.dropout = dropout
        self.pre_norm = pre_norm
        self.inner_dropout = inner_dropout

    def build(self, x_shape: tuple[int | None, ...], *_: Any, **__: Any) -> None:
        policy = self.dtype_policy
        self.attention_norm = normalization_layer(
            self.norm, "attention_norm", self.norm_epsilon, policy
        )
        self.attention_norm.build(x_shape)
        self.attention = CausalAttention(**self.attention_options, dtype=policy, name="attention")
        self.attention.build(x_shape)
        self.feedforward_norm = normalization_layer(
            self.norm, "feedforward_norm", self.norm_epsilon, policy
        )
        self.feedforward_norm.build(x_shape)

        spread, residual = self.attention.initializer_range, self.attention.residual_range
        function = activation_named(self.activation)
        if self.gated:
            self.gate = dense("gate", self.intermediate_dim, self.bias, spread, policy, function)
            self.gate.build(x_shape)
        self.up = dense(
            "up", self.intermediate_dim, self.bias, spread, policy, None if self.gated else function
        )
        self.up.build(x_shape)
        width = x_shape[-1]
        assert width is not None
        self.down = dense("down", width, self.bias, residual, policy)
        self.down.build((*x_shape[:-1], self.intermediate_dim))
        rates = {
            "attention": self.dropout,
            "inner": self.inner_dropout,
            "feedforward": self.dropout,
        }
        self.attention_dropped, self.inner_dropped, self.feedforward_dropped = (
            keras.layers.Dropout(rate, dtype=policy, name=f"{name}_dropout")
            for name, rate in rates.items()
        )

    def call(
        self,
        x: Any,
        allowed: Any,
        positions: Any,
        cache: Cache | None = None,
        position_bias: Any = None,
        training: bool | None = None,
    ) -> tuple[Any, KeysAndValues]:
        """As CausalAttention: (B, S, D) to (B, S, D) and the new keys and values."""
        x, new = self.attended(x, allowed, positions, cache, position_bias, training)
        return self.fed(x, training), new

    def attended(
        self,
        x: Any,
        allowed: Any,
        positions: Any,
        cache: Cache | None,
        position_bias: Any,
        training: bool | None,
    ) -> tuple[Any, KeysAndValues]:
        """The first part of the block."""
        inner = self.attention_norm(x) if self.pre_norm else x
        part, new = self.attention(
            inner, allowed, positions, cache=cache, position_bias=position_bias, training=training
        )
        part = self.attention_dropped(part, training=training)
        return self.added(x, part, self.attention_norm), new

    def fed(self, x: Any, training: bool | None) -> Any:
        """The last part of the block."""
        inner = self.feedforward_norm(x) if self.pre_norm else x
        inner = ops.multiply(self.gate(inner), self.up(inner)) if self.gated else self.up(inner)
        part = self.down(self.inner_dropped(inner, training=training))
        part = self.feedforward_dropped(part, training=training)
        return self.added(x, part, self.feedforward_norm)

    def added(self, x: Any, part: Any, norm: keras.layers.Layer) -> Any:
        x = ops.add(x, part)
        return x if self.pre_norm else norm(x)

    def compute_output_spec(
        self,
        x: Any,
        allowed: Any,
        positions: Any,
        cache: Any = None,
        position_bias: Any = None,
        training: Any = None,
    ) -> tuple[Any, KeysAndValues]:
        options = self.attention_options
        shape = (x.shape[0], options["num_key_value_heads"], x.shape[1], options["head_dim"])
        first, second = (keras.KerasTensor(shape, self.compute_dtype) for _ in range(2))
        return keras.KerasTensor(x.shape, self.compute_dtype), (first, second)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "attention": self.attention_options,
            **{name: getattr(self, name) for name in BLOCK},
        }


BLOCK = (
    "intermediate_dim", "activation", "norm", "norm_epsilon", "gated", "bias", "dropout",
    "pre_norm", "inner_dropout",
)  # fmt: skip


def run_blocks(
    layers: Mapping[str, keras.layers.Layer],
    num_layers: int,
    x: Any,
    positions: Any,
    allowed: Any,
    cache: tuple[Cache, ...] | None = None,
    position_bias: Any = None,
    prefix: str = "",
) -> tuple[Any, tuple[KeysAndValues, ...]]:
    """The blocks `layer_0`, `layer_1`, ... one after another: (B, S, D) to (B, S, D), and the new
    keys and values of each. `allowed`: boolean (B, S, C + S), or one per layer. `prefix` stands
    before the names."""
    new = []
    for i in range(num_layers):
        seen = allowed[i] if isinstance(allowed, tuple) else allowed
        past = cache[i] if cache else None
        block = layers[f"{prefix}layer_{i}"]
        x, added = block(x, seen, positions, cache=past, position_bias=position_bias)
        new.append(added)
    return x, tuple(new)
