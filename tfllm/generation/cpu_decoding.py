"""A decoder whose weight products are laid out for one new token at a time on a CPU.

At one to some dozen rows a product's time is that of reading its weights, so their order counts:
oneDNN reads bfloat16 fastest as (outputs, inputs), and a float32 table of embeddings as the left
factor. benchmarks/generation.md has the measurements.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import keras
import tensorflow as tf

from tfllm.errors import SettingError
from tfllm.keras_internals import all_layers, override_call, release_kernel, stored_matrix
from tfllm.models.decoder import Decoder
from tfllm.models.encoder_decoder import CrossAttendingDecoder, EncoderDecoder

PRECISIONS = ("float32", "bfloat16")
BLOCKS = r"((encoder_)?layer|cross)_\d+"


@dataclass(frozen=True)
class _Scores:
    """Logits of tied embeddings as one product. Mixed in before a class of models."""

    head: tf.Variable | None = field(default=None, kw_only=True)
    """A copy (D, V) of tied embeddings for the logits, the fastest order of all."""

    def logits(self, hidden: Any) -> Any:
        """Scores of the next token: (B, D) to float32 (B, vocabulary_size)."""
        config: Any = self.config  # type: ignore[attr-defined]
        layers: Any = self.layers  # type: ignore[attr-defined]
        if not config.tie_embeddings:
            return super().logits(hidden)  # type: ignore[misc]
        if (scale := getattr(config, "logits_scale", 1.0)) != 1.0:
            hidden = hidden * tf.cast(scale, hidden.dtype)
        if self.head is not None:
            scores = tf.matmul(tf.cast(hidden, self.head.dtype), self.head)
        else:
            table = tf.convert_to_tensor(layers["token_embedding"].embeddings)
            scores = tf.matmul(table, tf.cast(hidden, table.dtype), transpose_b=True)
            scores = tf.transpose(scores)
        scores = tf.cast(scores, tf.float32)
        if getattr(config, "logits_bias", False):
            scores += tf.convert_to_tensor(layers["token_bias"].bias)
        return scores


@dataclass(frozen=True)
class LaidOut(_Scores, Decoder):
    """The same decoder, for TensorFlow alone: LiteRT has no fast kernel for this order."""


@dataclass(frozen=True)
class LaidOutCrossed(_Scores, CrossAttendingDecoder):
    """The same decoder after its sources."""


@dataclass(frozen=True)
class LaidOutPair(_Scores, EncoderDecoder):
    """The same encoder-decoder."""

    def with_encoder_output(self, cross_kv: Any, source_padding_mask: Any) -> Decoder:
        return LaidOutCrossed(
            self.family, self.config, self.layers, cross_kv, source_padding_mask, head=self.head
        )


def prepared(decoder: Any, precision: str = "float32") -> Any:
    """The fastest decoder, or encoder-decoder, on the same weights, which must not change any more.

    Tied embeddings are copied for the logits. For "bfloat16" see `in_bfloat16`. Raises
    SettingError for any other precision.
    """
    if precision not in PRECISIONS:
        raise SettingError(f"--precision {precision}: choose one of {', '.join(PRECISIONS)}.")
    made = in_bfloat16(decoder) if precision == "bfloat16" else laid_out(decoder)
    if not decoder.config.tie_embeddings:
        return made
    table = tf.convert_to_tensor(decoder.layers["token_embedding"].embeddings)
    return replace(made, head=tf.Variable(tf.transpose(table), trainable=False))


def laid_out(decoder: Any) -> Any:
    """The decoder, or encoder-decoder, on the same weights; only rounding differs."""
    kind = LaidOutPair if isinstance(decoder, EncoderDecoder) else LaidOut
    return kind(decoder.family, decoder.config, decoder.layers)


def in_bfloat16(decoder: Any) -> Any:
    """The decoder with bfloat16 kernels in its blocks, half of their memory.

    The Dense layers of the blocks are changed: they cannot be trained or saved any more.
    Embeddings, logits, norms, biases and softmax stay float32; products are summed in float32 and
    rounded to bfloat16. Raises SettingError for a model that is not float32.
    """
    if decoder.dtype != "float32":
        raise SettingError(
            f"--precision bfloat16: this model is {decoder.dtype} already. Leave the option out."
        )
    for name, block in decoder.layers.items():
        if re.fullmatch(BLOCKS, name):
            for layer in _dense(block):
                _round(layer)
    return laid_out(decoder)


def _dense(layer: Any) -> Iterator[Any]:
    for inner in all_layers(layer, include_self=False):
        if isinstance(inner, keras.layers.Dense):
            yield inner


def _round(layer: Any) -> None:
    """Lets a Dense layer multiply by a bfloat16 copy of its kernel, which it gives up."""
    if stored_matrix(layer, "kernel") is None:
        return  # by an earlier call
    rounded = tf.cast(tf.transpose(layer.kernel.value), tf.bfloat16)
    kernel = tf.Variable(rounded, trainable=False)
    outputs, inputs = kernel.shape

    def call(x: Any, training: bool | None = None) -> Any:
        rows = tf.cast(tf.reshape(x, [-1, inputs]), tf.bfloat16)
        product = tf.cast(tf.matmul(rows, kernel, transpose_b=True), tf.float32)
        if layer.bias is not None:
            product += tf.convert_to_tensor(layer.bias)
        y = tf.reshape(product, tf.concat([tf.shape(x)[:-1], [outputs]], axis=0))
        return y if layer.activation is None else layer.activation(y)

    release_kernel(layer)
    override_call(layer, call)
