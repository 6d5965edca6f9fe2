"""What decoding needs of an encoder's output: computed once, attended to by every row.

A decoder-only model reads no source: its encoder output is NO_SOURCE, an empty nest, which every
function here leaves as it is.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple, TypeGuard, cast

import tensorflow as tf

from tfllm.generation import cache as caches
from tfllm.models.decoder import Decoder
from tfllm.models.encoder_decoder import CrossAttendingDecoder, EncoderDecoder


class EncoderOutput(NamedTuple):
    """The encoder's output for B sources of at most S tokens, as cross-attention reads it."""

    padding_mask: tf.Tensor
    """int32 [B, S]: 0 on padding"""
    cross_kv: caches.Cache
    """Keys and values float [B, H, S, head_dim] of every decoder layer's cross-attention"""


NO_SOURCE: tuple[()] = ()
MaybeEncoderOutput = EncoderOutput | tuple[()]


def reads_source(decoder: Decoder | EncoderDecoder) -> TypeGuard[EncoderDecoder]:
    """Return whether the model reads a source: an EncoderDecoder, not a Decoder."""
    return isinstance(decoder, EncoderDecoder)


def encode(model: EncoderDecoder, source_ids: tf.Tensor, lengths: tf.Tensor) -> EncoderOutput:
    """Run the encoder.

    Args:
        model: The encoder-decoder.
        source_ids: int32 [B, S], padded on the right.
        lengths: int32 [B], each at least 1.
    """
    positions = tf.range(source_ids.shape[1] or tf.shape(source_ids)[1])[None]
    mask = tf.cast(positions < lengths[:, None], tf.int32)
    return EncoderOutput(mask, model.cross_kv(model.encode(source_ids * mask, mask)))


def encode_if_any(
    model: Decoder | EncoderDecoder, source: tuple[tf.Tensor, ...]
) -> MaybeEncoderOutput:
    """Run the encoder where there are sources.

    Args:
        model: The model.
        source: Ids int32 [B, S] and lengths int32 [B], or ().

    Returns:
        Its output, NO_SOURCE for ().
    """
    if not source:
        return NO_SOURCE
    assert reads_source(model)
    return encode(model, *source)


def with_encoder_output(
    model: Decoder | EncoderDecoder,
    source: MaybeEncoderOutput,
    alignments: list[tf.Tensor] | None = None,
) -> Decoder:
    """Return the decoder that attends to these sources; a decoder-only model itself.

    Args:
        model: An EncoderDecoder, or a Decoder with NO_SOURCE.
        source: The sources.
        alignments: A list to which every call of the decoder appends the cross-attention weights of
            each layer, float [R, H, T, S].
    """
    if not isinstance(source, EncoderOutput):
        return cast(Decoder, model)
    assert reads_source(model)
    decoder = model.with_encoder_output(source.cross_kv, source.padding_mask)
    if alignments is None:
        return decoder
    assert isinstance(decoder, CrossAttendingDecoder)
    return replace(decoder, alignments=alignments)


def encoder_output_specs(model: Decoder | EncoderDecoder, dtype: tf.DType) -> MaybeEncoderOutput:
    """Return the TensorSpecs of an encoder output for any number of sources of any length."""
    if not reads_source(model):
        return NO_SOURCE
    mask = tf.TensorSpec([None, None], tf.int32, "source")
    return EncoderOutput(mask, caches.cache_specs(model, dtype))


def source_specs(model: Decoder | EncoderDecoder) -> tuple[tf.TensorSpec, ...]:
    """Return the TensorSpecs of the ids and lengths that `encode` takes."""
    if not reads_source(model):
        return NO_SOURCE
    return (
        tf.TensorSpec([None, None], tf.int32, "source_ids"),
        tf.TensorSpec([None], tf.int32, "source_lengths"),
    )


def concat_rows(first: MaybeEncoderOutput, second: MaybeEncoderOutput) -> MaybeEncoderOutput:
    """Concatenate the rows of both, padded to the longer sources."""
    if not (isinstance(first, EncoderOutput) and isinstance(second, EncoderOutput)):
        return first
    length = tf.maximum(tf.shape(first.padding_mask)[1], tf.shape(second.padding_mask)[1])
    pair = (_pad(first, length), _pad(second, length))
    return tf.nest.map_structure(lambda a, b: tf.concat([a, b], axis=0), *pair)


def mean_alignment(alignments: list[tf.Tensor]) -> tf.Tensor:
    """Average the last layer's cross-attention weights over heads: float32 [R, T, S]."""
    return tf.reduce_mean(tf.cast(alignments[-1], tf.float32), axis=1)


def _pad(source: EncoderOutput, length: tf.Tensor) -> EncoderOutput:
    room = length - tf.shape(source.padding_mask)[1]
    mask = tf.pad(source.padding_mask, [[0, 0], [0, room]])
    return EncoderOutput(mask, caches.pad_cache(source.cross_kv, length))
