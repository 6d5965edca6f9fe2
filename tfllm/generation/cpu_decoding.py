"""Decoders whose weight products are laid out for one new token at a time on a CPU.

With one to some dozen rows the time of a product is that of reading its weights, so their layout
counts: oneDNN reads bfloat16 fastest as (outputs, inputs), and a float32 embedding table as the
left factor. benchmarks/generation.md has the measurements.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, overload

import keras
import tensorflow as tf

from tfllm.errors import SettingError
from tfllm.generation.cache import Cache
from tfllm.layers.heads import bound_logits
from tfllm.models.decoder import Decoder
from tfllm.models.encoder_decoder import CrossAttendingDecoder, EncoderDecoder

PRECISIONS = ("float32", "bfloat16")
BLOCKS = r"((encoder_)?layer|cross)_\d+"

L = TypeVar("L", bound=keras.layers.Layer)


@dataclass(frozen=True)
class _TiedLogits:
    """Logits of tied embeddings as one product. A mixin before a class of models."""

    head: tf.Variable | None = field(default=None, kw_only=True)
    """A copy (D, V) of tied embeddings for the logits, the fastest layout of all."""

    def logits(self, hidden: tf.Tensor) -> tf.Tensor:
        """Compute logits of the next token: (B, D) to float32 (B, vocabulary_size)."""
        config: Any = self.config  # type: ignore[attr-defined]
        layers: Any = self.layers  # type: ignore[attr-defined]
        if not config.tie_embeddings:
            return super().logits(hidden)  # type: ignore[misc]
        if (scale := getattr(config, "logits_scale", 1.0)) != 1.0:
            hidden = hidden * tf.cast(scale, hidden.dtype)
        if self.head is not None:
            logits = tf.matmul(tf.cast(hidden, self.head.dtype), self.head)
        else:
            table = tf.convert_to_tensor(layers["token_embedding"].embeddings)
            logits = tf.matmul(table, tf.cast(hidden, table.dtype), transpose_b=True)
            logits = tf.transpose(logits)
        logits = tf.cast(logits, tf.float32)
        if getattr(config, "logits_bias", False):
            logits += tf.convert_to_tensor(layers["token_bias"].bias)
        return bound_logits(logits, getattr(config, "logits_softcap", 0.0))


@dataclass(frozen=True)
class CpuDecoder(_TiedLogits, Decoder):
    """The same decoder for TensorFlow alone: LiteRT has no fast kernel for this layout."""


@dataclass(frozen=True)
class CpuCrossAttendingDecoder(_TiedLogits, CrossAttendingDecoder):
    """The same decoder with its sources."""


@dataclass(frozen=True)
class CpuEncoderDecoder(_TiedLogits, EncoderDecoder):
    """The same encoder-decoder."""

    def with_encoder_output(self, cross_kv: Cache, source_padding_mask: tf.Tensor) -> Decoder:
        """Return the decoder that attends to these keys and values."""
        return CpuCrossAttendingDecoder(
            self.family, self.config, self.layers, cross_kv, source_padding_mask, head=self.head
        )


def optimize_for_cpu(
    model: Decoder | EncoderDecoder, precision: str = "float32"
) -> CpuDecoder | CpuEncoderDecoder:
    """Return the fastest decoder, or encoder-decoder, with the weights of a model.

    The model does not change. Its weights must not change any more while the result is used: tied
    embeddings are copied for the logits, kernels are for "bfloat16".

    Args:
        model: A float32 model, or one of another dtype for precision "float32".
        precision: Of the products in the blocks: "float32" (the model's own) or "bfloat16".

    Raises:
        SettingError: The precision is unknown, or the model is not float32.
    """
    if precision not in PRECISIONS:
        raise SettingError(f"--precision {precision}: choose one of {', '.join(PRECISIONS)}.")
    optimized = use_bfloat16(model) if precision == "bfloat16" else use_cpu_layout(model)
    if not model.config.tie_embeddings:
        return optimized
    table = tf.convert_to_tensor(model.layers["token_embedding"].embeddings)
    return replace(optimized, head=tf.Variable(tf.transpose(table), trainable=False))


@overload
def use_cpu_layout(model: Decoder) -> CpuDecoder: ...
@overload
def use_cpu_layout(model: EncoderDecoder) -> CpuEncoderDecoder: ...
def use_cpu_layout(model: Decoder | EncoderDecoder) -> CpuDecoder | CpuEncoderDecoder:
    """Return the decoder, or encoder-decoder, on the same weights; only rounding differs."""
    if isinstance(model, EncoderDecoder):
        return CpuEncoderDecoder(model.family, model.config, model.layers)
    return CpuDecoder(model.family, model.config, model.layers)


def use_bfloat16(model: Decoder | EncoderDecoder) -> CpuDecoder | CpuEncoderDecoder:
    """Return the model with bfloat16 copies of the kernels in its blocks.

    All other weights are the model's own. Embeddings, logits, norms, biases and softmax stay
    float32; products are summed in float32 and rounded to bfloat16.

    Raises:
        SettingError: The model is not float32.
    """
    if model.dtype != "float32":
        raise SettingError(
            f"--precision bfloat16: this model is {model.dtype} already. Leave the option out."
        )
    layers: Mapping[str, Any] = {
        name: _with_bfloat16_kernels(layer) if re.fullmatch(BLOCKS, name) else layer
        for name, layer in model.layers.items()
    }
    return use_cpu_layout(replace(model, layers=layers))


def _with_bfloat16_kernels(layer: L) -> L:
    """A view of a layer, on the same variables, whose Dense layers are Bfloat16Dense.

    The view is for calling alone: it shares all of the layer's attributes but the replaced ones, so
    that only kernels are copied and the layer itself does not change.
    """
    view = object.__new__(type(layer))
    view.__dict__.update(layer.__dict__)
    for name, value in layer.__dict__.items():
        if isinstance(value, keras.layers.Dense):
            view.__dict__[name] = Bfloat16Dense(value)
        elif isinstance(value, keras.layers.Layer):
            view.__dict__[name] = _with_bfloat16_kernels(value)
    return view


class Bfloat16Dense:
    """The product of a Dense layer with a bfloat16 copy (outputs, inputs) of its kernel."""

    def __init__(self, layer: keras.layers.Dense):
        kernel = tf.cast(tf.transpose(tf.convert_to_tensor(layer.kernel)), tf.bfloat16)
        self.kernel = tf.Variable(kernel, trainable=False)
        self.bias, self.activation = layer.bias, layer.activation

    def __call__(self, x: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        outputs, inputs = self.kernel.shape
        rows = tf.cast(tf.reshape(x, [-1, inputs]), tf.bfloat16)
        product = tf.cast(tf.matmul(rows, self.kernel, transpose_b=True), tf.float32)
        if self.bias is not None:
            product += tf.convert_to_tensor(self.bias)
        y = tf.reshape(product, tf.concat([tf.shape(x)[:-1], [outputs]], axis=0))
        return y if self.activation is None else self.activation(y)
