"""Sources of encoder-decoders: read once, and attended to by every row that writes after them.

A decoder alone has none: its source is NOTHING, an empty nest, and every function here leaves it
as it is.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import tensorflow as tf

from tfllm.generation import cache as caches


class Source(NamedTuple):
    """What the decoder needs of B sources of at most S tokens."""

    mask: tf.Tensor
    """int32 [B, S]: 0 on padding"""
    crossed: caches.Cache
    """Keys and values float [B, H, S, hd] of every decoder layer"""


NOTHING: tuple[()] = ()
AnySource = Source | tuple[()]


def needed(decoder: Any) -> bool:
    """Whether it writes after sources: an EncoderDecoder, not a Decoder."""
    return hasattr(decoder, "encode")


def read(decoder: Any, source_ids: tf.Tensor, lengths: tf.Tensor) -> Source:
    """Sources int32 [B, S], filled up on the right, of `lengths` int32 [B], each at least 1."""
    places = source_ids.shape[1] or tf.shape(source_ids)[1]
    mask = tf.cast(tf.range(places)[None] < lengths[:, None], tf.int32)
    return Source(mask, decoder.cross_kv(decoder.encode(source_ids * mask, mask)))


def after(decoder: Any, source: AnySource, alignments: list[Any] | None = None) -> Any:
    """The Decoder that writes after these sources. `alignments` takes the weights of every layer's
    attention to the source, float [R, H, T, S], at each call."""
    if not isinstance(source, Source):
        return decoder
    made = decoder.with_encoder_output(source.crossed, source.mask)
    return made if alignments is None else replace(made, alignments=alignments)


def specs(decoder: Any, dtype: tf.DType) -> AnySource:
    """TensorSpecs for any number of sources of any length."""
    if not needed(decoder):
        return NOTHING
    return Source(tf.TensorSpec([None, None], tf.int32, "source"), caches.specs(decoder, dtype))


def id_specs(decoder: Any) -> tuple[tf.TensorSpec, ...]:
    """TensorSpecs of what `read` takes."""
    if not needed(decoder):
        return NOTHING
    return (
        tf.TensorSpec([None, None], tf.int32, "source_ids"),
        tf.TensorSpec([None], tf.int32, "source_lengths"),
    )


def widened(source: AnySource, places: Any) -> AnySource:
    """The source with room for `places` tokens, zeros in the new ones."""
    if not isinstance(source, Source):
        return source
    room = places - tf.shape(source.mask)[1]
    return Source(tf.pad(source.mask, [[0, 0], [0, room]]), caches.padded(source.crossed, places))


def joined(first: AnySource, second: AnySource) -> AnySource:
    """The rows of both."""
    if not (isinstance(first, Source) and isinstance(second, Source)):
        return first
    places = tf.maximum(tf.shape(first.mask)[1], tf.shape(second.mask)[1])
    both = (widened(first, places), widened(second, places))
    return tf.nest.map_structure(lambda a, b: tf.concat([a, b], axis=0), *both)


def mean_alignment(alignments: list[Any]) -> tf.Tensor:
    """Float32 [R, T, S]: the last layer's weights on the source, averaged over heads."""
    return tf.reduce_mean(tf.cast(alignments[-1], tf.float32), axis=1)
