"""A decoder whose weight products are laid out for one new token at a time on a CPU.

At one to some dozen rows a product's time is that of reading its weights, so their order counts:
oneDNN reads bfloat16 fastest as (outputs, inputs), and a float32 table of embeddings as the left
factor. docs/generation.md has the measurements.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import keras
import tensorflow as tf

from tfllm.errors import SettingError
from tfllm.models.decoding import Decoder

PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class LaidOut(Decoder):
    """The same decoder, for TensorFlow alone: LiteRT has no fast kernel for this order."""

    head: tf.Variable | None = None
    """A copy (D, V) of tied embeddings for the logits, the fastest order of all."""

    def logits(self, hidden: Any) -> Any:
        """Scores of the next token: (B, D) to float32 (B, vocabulary_size)."""
        if not self.config.tie_embeddings:
            return super().logits(hidden)
        if self.head is not None:
            return tf.cast(tf.matmul(tf.cast(hidden, self.head.dtype), self.head), tf.float32)
        table = tf.convert_to_tensor(self.layers["token_embedding"].embeddings)
        scores = tf.matmul(table, tf.cast(hidden, table.dtype), transpose_b=True)
        return tf.cast(tf.transpose(scores), tf.float32)


def prepared(decoder: Decoder, precision: str = "float32") -> LaidOut:
    """The fastest decoder on the same weights, which must not change any more.

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


def laid_out(decoder: Decoder) -> LaidOut:
    """The decoder on the same weights; only rounding differs."""
    return LaidOut(**{field.name: getattr(decoder, field.name) for field in fields(Decoder)})


def in_bfloat16(decoder: Decoder) -> LaidOut:
    """The decoder with bfloat16 kernels in its blocks, half of their memory.

    The Dense layers of the blocks are changed: they cannot be trained or saved any more.
    Embeddings, logits, norms, biases and softmax stay float32; products are summed in float32 and
    rounded to bfloat16. Raises SettingError for a model that is not float32.
    """
    if decoder.dtype != "float32":
        raise SettingError(
            f"--precision bfloat16: this model is {decoder.dtype} already. Leave the option out."
        )
    for number in range(decoder.num_layers):
        for layer in _dense(decoder.layers[f"layer_{number}"]):
            _round(layer)
    return laid_out(decoder)


def _dense(layer: Any) -> Iterator[Any]:
    for inner in layer._flatten_layers(include_self=False):
        if isinstance(inner, keras.layers.Dense):
            yield inner


def _round(layer: Any) -> None:
    """Lets a Dense layer multiply by a bfloat16 copy of its kernel, which it gives up."""
    if layer._kernel is None:
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

    layer._untrack_variable(layer._kernel)
    layer._kernel = None
    layer.call = call
