"""The decoder block, and self-attention that continues from cached keys and values.

Encoders of encoder-decoders stack the same blocks, with a mask that lets every token attend to
every other. No layer writes a cache: attention reads the keys and values of earlier tokens, attends
to [cached | new], and returns the new ones alone; the caller's loop stores them as suits its
runtime. Both layers always return two results, as a layer that two functional graphs share must.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from tfllm.layers import rotary
from tfllm.layers.activations import get_activation
from tfllm.layers.attention import EXACT_MASK, scaled_dot_product_attention
from tfllm.layers.normalization import normalization_layer
from tfllm.layers.projections import InitializerRange, dense
from tfllm.layers.types import Cache, KeysAndValues, Shape, Tensor


@keras.saving.register_keras_serializable(package="tfllm")
class CausalAttention(keras.layers.Layer):
    """Self-attention with grouped heads (Ainslie et al. 2023) and rotary positions.

    Softmax is float32 in every precision.

    Args:
        num_heads: Heads of queries.
        num_key_value_heads: Heads of keys and values; they divide `num_heads`.
        head_dim: Width of one head.
        dropout: Rate, on the attention weights.
        qkv_bias: Whether the projections of queries, keys and values have biases.
        output_bias: Whether the output projection has a bias.
        norm_epsilon: Above 0, queries and keys are normalized (Henry et al. 2020; Qwen3).
        rope_theta: Base of the wavelengths of rotary positions; 0: no rotary positions.
        rope_scaling: Hugging Face's table; see `rotary.frequencies`.
        max_sequence_length: Tokens; some scalings of rotary positions depend on it.
        initializer_range: Of new kernels.
        residual_range: Of the output projection's new kernel.
        scaled: Whether scores are divided by the square root of `head_dim`. If not, the initial
            queries are smaller by that factor instead (T5, Raffel et al. 2020).
        query_scale: Multiplies queries in place of the inverse root of `head_dim`; 0: that root.
        softcap: Above 0, scores are bounded to it (Gemma 2).
        norm: Of queries and keys: "rms" or "rms_offset".
        norm_whole: Whether all heads of a token are normalized as one vector (OLMo 2).
        rotary_dim: How many values of a head are rotated, from the first; 0: all.
        options: Of `keras.layers.Layer`.
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
        initializer_range: InitializerRange = 0.02,
        residual_range: InitializerRange = 0.02,
        scaled: bool = True,
        query_scale: float = 0.0,
        softcap: float = 0.0,
        norm: str = "rms",
        norm_whole: bool = False,
        rotary_dim: int = 0,
        **options: Any,
    ):
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
        self.query_scale = query_scale
        self.softcap = softcap
        self.norm = norm
        self.norm_whole = norm_whole
        self.rotary_dim = rotary_dim
        self.mask_constant = EXACT_MASK
        self.rope_frequencies = (
            rotary.frequencies(
                rotary_dim or head_dim, rope_theta, rope_scaling, max_sequence_length
            )
            if rope_theta
            else None
        )

    def build(self, x_shape: Shape, *_: Any, **__: Any) -> None:
        heads, groups = self.num_heads, self.num_key_value_heads
        initializer_range, policy = self.initializer_range, self.dtype_policy
        projections = {"query": heads, "key": groups, "value": groups}
        for name, count in projections.items():
            gain = 1.0 if self.scaled or name != "query" else 1.0 / self.head_dim
            layer = dense(
                name, count * self.head_dim, self.qkv_bias, initializer_range, policy, gain=gain
            )
            layer.build(x_shape)
            setattr(self, name, layer)
        width = x_shape[-1]
        assert width is not None
        self.attention_output = dense(
            "attention_output", width, self.output_bias, self.residual_range, policy
        )
        self.attention_output.build((*x_shape[:-1], heads * self.head_dim))
        if self.norm_epsilon:
            for name, count in (("query_norm", heads), ("key_norm", groups)):
                norm = normalization_layer(self.norm, name, self.norm_epsilon, policy)
                norm_width = count * self.head_dim if self.norm_whole else self.head_dim
                norm.build((None, None, norm_width))
                setattr(self, name, norm)
        self.weights_dropout = keras.layers.Dropout(self.dropout, dtype=policy, name="dropout")

    def call(
        self,
        x: Tensor,
        attention_mask: Tensor,
        positions: Tensor,
        cache: Cache | None = None,
        position_bias: Tensor | None = None,
        training: bool | None = None,
    ) -> tuple[Tensor, KeysAndValues]:
        """Attend to cached and new tokens.

        Args:
            x: (B, S, D).
            attention_mask: Boolean (B, S, C + S), C cached tokens first. With a function as
                `cache`, (B, S, K) for the K keys that it returns.
            positions: int32 (B, S).
            cache: Keys and values of C earlier tokens; see `types.Cache`.
            position_bias: (B or 1, H, S, C + S), added to the scores.
            training: Whether dropout is active.

        Returns:
            (B, S, D), and the new keys and values, each (B, num_key_value_heads, S, head_dim).
        """
        query, key = self.query(x), self.key(x)
        if self.norm_epsilon and self.norm_whole:
            query, key = self.query_norm(query), self.key_norm(key)
        query = self._split_heads(query, self.num_heads)
        key = self._split_heads(key, self.num_key_value_heads)
        value = self._split_heads(self.value(x), self.num_key_value_heads)
        if self.norm_epsilon and not self.norm_whole:
            query, key = self.query_norm(query), self.key_norm(key)
        if self.rope_frequencies is not None:
            cos, sin = rotary.cos_sin(positions, *self.rope_frequencies)
            query, key = rotary.rotate(query, cos, sin), rotary.rotate(key, cos, sin)
        if self.query_scale:
            query = ops.multiply(query, ops.cast(self.query_scale, query.dtype))
        query, key, value = (ops.transpose(heads, (0, 2, 1, 3)) for heads in (query, key, value))
        keys, values = key, value
        if callable(cache):
            keys, values = cache(key, value)
        elif cache is not None:
            keys = ops.concatenate([ops.cast(cache[0], key.dtype), key], axis=2)
            values = ops.concatenate([ops.cast(cache[1], value.dtype), value], axis=2)
        outputs, _ = scaled_dot_product_attention(
            query,
            keys,
            values,
            attention_mask,
            self.weights_dropout,
            self.scaled and not self.query_scale,
            position_bias,
            training,
            self.softcap,
            self.mask_constant,
        )
        batch, length = ops.shape(x)[:2]
        outputs = ops.reshape(outputs, (batch, length, self.num_heads * self.head_dim))
        return self.attention_output(outputs), (key, value)

    def _split_heads(self, x: Tensor, count: int) -> Tensor:
        """(B, S, count * head_dim) to (B, S, count, head_dim)."""
        batch, length = ops.shape(x)[:2]
        return ops.reshape(x, (batch, length, count, self.head_dim))

    def compute_output_spec(
        self,
        x: keras.KerasTensor,
        attention_mask: keras.KerasTensor,
        positions: keras.KerasTensor,
        cache: Cache | None = None,
        position_bias: keras.KerasTensor | None = None,
        training: bool | None = None,
    ) -> tuple[keras.KerasTensor, KeysAndValues]:
        batch, length = x.shape[:2]
        shape = (batch, self.num_key_value_heads, length, self.head_dim)
        new = keras.KerasTensor(shape, self.compute_dtype)
        return keras.KerasTensor(x.shape, self.compute_dtype), (
            new,
            keras.KerasTensor(shape, self.compute_dtype),
        )

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            **{name: getattr(self, name) for name in ATTENTION_ARGUMENTS},
        }


ATTENTION_ARGUMENTS = (
    "num_heads", "num_key_value_heads", "head_dim", "dropout", "qkv_bias", "output_bias",
    "norm_epsilon", "rope_theta", "rope_scaling", "max_sequence_length", "initializer_range",
    "residual_range", "scaled", "query_scale", "softcap", "norm", "norm_whole",
    "rotary_dim",
)  # fmt: skip


@keras.saving.register_keras_serializable(package="tfllm")
class CausalBlock(keras.layers.Layer):
    """Decoder block: self-attention, then a feed-forward network, each with a residual connection.

    Args:
        attention: Arguments of `CausalAttention`.
        intermediate_dim: Width inside the feed-forward network.
        activation: Of the feed-forward network; see `activations.ACTIVATIONS`.
        norm: "layer" (GPT-2, Radford et al. 2019) or "rms" (Llama, Touvron et al. 2023).
        norm_epsilon: Of the normalizations.
        gated: Whether the activated projection is multiplied by a linear one (GLU, Shazeer 2020).
        bias: Whether the feed-forward projections have biases.
        dropout: Rate, on the output of both parts.
        pre_norm: Whether the input of each part is normalized; if not, the sum of input and output.
        inner_dropout: Rate, inside the feed-forward network, after the activation.
        output_norms: Whether the output of each part is normalized too, before the sum (Gemma 2).
        input_norms: Whether a pre-norm block normalizes the input of each part (OLMo 2 does not).
        residual_scale: Multiplies the output of each part before the sum (Granite).
        parallel_residual: Whether both parts of a pre-norm block read its input, and their outputs
            are added to it at once (GPT-NeoX, Black et al. 2022).
        attention_input_norm: Whether the input of the attention is among `input_norms`
            (ModernBERT's first block has it not).
        attention_output_rate: Of dropout, on the attention's output; None: `dropout`.
        options: Of `keras.layers.Layer`.
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
        output_norms: bool = False,
        input_norms: bool = True,
        residual_scale: float = 1.0,
        parallel_residual: bool = False,
        attention_input_norm: bool = True,
        attention_output_rate: float | None = None,
        **options: Any,
    ):
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
        self.output_norms = output_norms
        self.input_norms = input_norms
        self.residual_scale = residual_scale
        self.parallel_residual = parallel_residual
        self.attention_input_norm = attention_input_norm and input_norms
        self.attention_output_rate = attention_output_rate

    def build(self, x_shape: Shape, *_: Any, **__: Any) -> None:
        policy = self.dtype_policy
        if self.attention_input_norm:
            self._add_norm("attention_norm", x_shape)
        self.attention = CausalAttention(**self.attention_options, dtype=policy, name="attention")
        self.attention.build(x_shape)
        if self.input_norms:
            self._add_norm("feedforward_norm", x_shape)
        if self.output_norms:
            self._add_norm("attention_output_norm", x_shape)
            self._add_norm("feedforward_output_norm", x_shape)

        inner_range, output_range = self.attention.initializer_range, self.attention.residual_range
        function = get_activation(self.activation)
        if self.gated:
            self.gate = dense(
                "gate", self.intermediate_dim, self.bias, inner_range, policy, function
            )
            self.gate.build(x_shape)
        self.up = dense(
            "up",
            self.intermediate_dim,
            self.bias,
            inner_range,
            policy,
            None if self.gated else function,
        )
        self.up.build(x_shape)
        width = x_shape[-1]
        assert width is not None
        self.down = dense("down", width, self.bias, output_range, policy)
        self.down.build((*x_shape[:-1], self.intermediate_dim))
        after_attention = self.attention_output_rate
        rates = {
            "attention": self.dropout if after_attention is None else after_attention,
            "inner": self.inner_dropout,
            "feedforward": self.dropout,
        }
        self.attention_output_dropout, self.intermediate_dropout, self.feedforward_dropout = (
            keras.layers.Dropout(rate, dtype=policy, name=f"{name}_dropout")
            for name, rate in rates.items()
        )

    def _add_norm(self, name: str, shape: Shape) -> None:
        layer = normalization_layer(self.norm, name, self.norm_epsilon, self.dtype_policy)
        layer.build(shape)
        setattr(self, name, layer)

    def call(
        self,
        x: Tensor,
        attention_mask: Tensor,
        positions: Tensor,
        cache: Cache | None = None,
        position_bias: Tensor | None = None,
        training: bool | None = None,
    ) -> tuple[Tensor, KeysAndValues]:
        """Run the block; arguments and results are those of `CausalAttention.call`."""
        if self.parallel_residual:
            attended, new = self._attention_part(
                x, attention_mask, positions, cache, position_bias, training
            )
            output = ops.add(self._feedforward_part(x, training), attended)
            return self.add_residual(x, output, "feedforward_norm"), new
        x, new = self.attend(x, attention_mask, positions, cache, position_bias, training)
        return self.feed_forward(x, training), new

    def attend(
        self,
        x: Tensor,
        attention_mask: Tensor,
        positions: Tensor,
        cache: Cache | None,
        position_bias: Tensor | None,
        training: bool | None,
    ) -> tuple[Tensor, KeysAndValues]:
        """Run the first part of the block, self-attention; see `CausalAttention.call`."""
        output, new = self._attention_part(
            x, attention_mask, positions, cache, position_bias, training
        )
        return self.add_residual(x, output, "attention_norm"), new

    def _attention_part(
        self,
        x: Tensor,
        attention_mask: Tensor,
        positions: Tensor,
        cache: Cache | None,
        position_bias: Tensor | None,
        training: bool | None,
    ) -> tuple[Tensor, KeysAndValues]:
        """The output of self-attention, without the residual connection."""
        inner = self.attention_norm(x) if self.pre_norm and self.attention_input_norm else x
        output, new = self.attention(
            inner,
            attention_mask,
            positions,
            cache=cache,
            position_bias=position_bias,
            training=training,
        )
        if self.output_norms:
            output = self.attention_output_norm(output)
        return self.attention_output_dropout(output, training=training), new

    def feed_forward(self, x: Tensor, training: bool | None) -> Tensor:
        """Run the last part of the block: (B, S, D) to (B, S, D)."""
        return self.add_residual(x, self._feedforward_part(x, training), "feedforward_norm")

    def _feedforward_part(self, x: Tensor, training: bool | None) -> Tensor:
        """The output of the feed-forward network, without the residual connection."""
        inner = self.feedforward_norm(x) if self.pre_norm and self.input_norms else x
        inner = ops.multiply(self.gate(inner), self.up(inner)) if self.gated else self.up(inner)
        output = self.down(self.intermediate_dropout(inner, training=training))
        if self.output_norms:
            output = self.feedforward_output_norm(output)
        return self.feedforward_dropout(output, training=training)

    def add_residual(self, x: Tensor, output: Tensor, norm: str) -> Tensor:
        """Add a part's output to its input, and normalize the sum in a post-norm block."""
        if self.residual_scale != 1.0:
            output = ops.multiply(output, ops.cast(self.residual_scale, output.dtype))
        x = ops.add(x, output)
        return x if self.pre_norm else getattr(self, norm)(x)

    def compute_output_spec(
        self,
        x: keras.KerasTensor,
        attention_mask: keras.KerasTensor,
        positions: keras.KerasTensor,
        cache: Cache | None = None,
        position_bias: keras.KerasTensor | None = None,
        training: bool | None = None,
    ) -> tuple[keras.KerasTensor, KeysAndValues]:
        options = self.attention_options
        shape = (x.shape[0], options["num_key_value_heads"], x.shape[1], options["head_dim"])
        first, second = (keras.KerasTensor(shape, self.compute_dtype) for _ in range(2))
        return keras.KerasTensor(x.shape, self.compute_dtype), (first, second)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "attention": self.attention_options,
            **{name: getattr(self, name) for name in BLOCK_ARGUMENTS},
        }


BLOCK_ARGUMENTS = (
    "intermediate_dim", "activation", "norm", "norm_epsilon", "gated", "bias", "dropout",
    "pre_norm", "inner_dropout", "output_norms", "input_norms", "residual_scale",
    "parallel_residual",
    "attention_input_norm", "attention_output_rate",
)  # fmt: skip


def run_blocks(
    layers: Mapping[str, keras.layers.Layer],
    num_layers: int,
    x: Tensor,
    positions: Tensor,
    attention_mask: Tensor | tuple[Tensor, ...],
    cache: tuple[Cache, ...] | None = None,
    position_bias: Tensor | None = None,
    prefix: str = "",
) -> tuple[Tensor, tuple[KeysAndValues, ...]]:
    """Run the blocks `layer_0`, `layer_1`, ... one after another.

    Args:
        layers: Layers by name.
        num_layers: How many blocks.
        x: (B, S, D).
        positions: int32 (B, S).
        attention_mask: Boolean (B, S, C + S), or a tuple of one per layer.
        cache: Of each layer; None: there are no earlier tokens.
        position_bias: (B or 1, H, S, C + S), added to the scores of every layer.
        prefix: Comes before the names of the blocks.

    Returns:
        Hidden states (B, S, D), and the new keys and values of each layer.
    """
    new = []
    for i in range(num_layers):
        mask = attention_mask[i] if isinstance(attention_mask, tuple) else attention_mask
        past = cache[i] if cache else None
        block = layers[f"{prefix}layer_{i}"]
        x, added = block(x, mask, positions, cache=past, position_bias=position_bias)
        new.append(added)
    return x, tuple(new)
