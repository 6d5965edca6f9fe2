"""The whole generation loop as one graph: for SavedModels, LiteRT files and the engine.

It has no XLA operation and no operation that LiteRT lacks.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from tfllm.generation import cache as caches
from tfllm.generation import decode_state as states
from tfllm.generation import encoder_output as encoder_outputs
from tfllm.generation.config import BatchedConfig, GraphFlags
from tfllm.generation.decode_state import RUNNING, STOPPED, DecodeState
from tfllm.models.decoder import Decoder
from tfllm.models.encoder_decoder import EncoderDecoder


class GeneratedBatch(NamedTuple):
    """The generated tokens of B rows, at most N each. LiteRT files name their outputs so."""

    ids: tf.Tensor
    """int32 [B, N]: the new tokens without the end-of-sequence token, then zeros"""
    counts: tf.Tensor
    """int32 [B]: how many tokens of a row count"""
    log_probabilities: tf.Tensor
    """float32 [B, N]"""
    finished: tf.Tensor
    """int32 [B]: decode_state.STOPPED or decode_state.FULL"""


def run(
    decoder: Decoder | EncoderDecoder,
    state: DecodeState,
    config: BatchedConfig,
    flags: GraphFlags,
    steps: tf.Tensor | int,
    write: caches.WriteFunction = caches.scatter,
) -> DecodeState:
    """Generate until each row has more tokens or all rows have finished.

    Args:
        decoder: The model.
        state: The rows, whose capacity must have room for `steps` more tokens.
        config: The settings of each row.
        flags: What the graph has to support.
        steps: How many tokens each row gets at most.
        write: How the cache is written.

    Returns:
        The new state.
    """
    source = state.source  # not a variable of the loop: it does not change

    def unfinished(count: tf.Tensor, state: DecodeState) -> tf.Tensor:
        running = tf.reduce_any(tf.equal(state.finished, RUNNING))
        return tf.logical_and(count < steps, running)

    def body(count: tf.Tensor, state: DecodeState) -> tuple[tf.Tensor, DecodeState]:
        state = states.decode_step(decoder, state._replace(source=source), config, flags, write)
        return count + 1, state._replace(source=encoder_outputs.NO_SOURCE)

    state = state._replace(source=encoder_outputs.NO_SOURCE)
    shapes = tf.nest.map_structure(lambda tensor: tensor.shape, state)
    _, state = tf.while_loop(
        unfinished,
        body,
        (tf.constant(0), state),
        shape_invariants=(tf.TensorShape([]), shapes),
        parallel_iterations=1,
    )
    return state._replace(source=source)


def generate(
    decoder: Decoder | EncoderDecoder,
    token_ids: tf.Tensor,
    lengths: tf.Tensor,
    config: BatchedConfig,
    flags: GraphFlags,
    max_new_tokens: tf.Tensor | int,
    write: caches.WriteFunction = caches.scatter,
    source: encoder_outputs.MaybeEncoderOutput = encoder_outputs.NO_SOURCE,
) -> GeneratedBatch:
    """Generate after prompts, in one graph.

    With P and N Python numbers and B known, all shapes are static.

    Args:
        decoder: The model.
        token_ids: int32 [B, P], padded on the right.
        lengths: int32 [B], at least 1 each.
        config: The settings of each row; `max_length` must not be above P + N.
        flags: What the graph has to support.
        max_new_tokens: N, the room for new tokens.
        write: How the cache is written.
        source: The encoder output of each prompt.
    """
    width = token_ids.shape[1]
    width = tf.shape(token_ids)[1] if width is None else width
    size = width + max_new_tokens
    state = states.prefill(decoder, token_ids, lengths, config, flags, size, source=source)
    state = run(decoder, state, config, flags, max_new_tokens - 1, write)
    return generated_tokens(state, max_new_tokens)


def generated_tokens(state: DecodeState, max_new_tokens: tf.Tensor | int) -> GeneratedBatch:
    """Return the new tokens of a state.

    Args:
        state: The rows.
        max_new_tokens: N, the width of the result.

    Returns:
        Ids and log-probabilities [B, N], each row's from the first column on.
    """
    counts = state.lengths - state.prompt_lengths
    counts = counts - tf.cast(tf.equal(state.finished, STOPPED), tf.int32)
    column = tf.range(max_new_tokens)[None]
    size = state.ids.shape[1] or tf.shape(state.ids)[1]
    position = tf.minimum(state.prompt_lengths[:, None] + column, size - 1)
    is_new = column < counts[:, None]
    log_probabilities = tf.gather(state.log_probabilities, position, batch_dims=1)
    return GeneratedBatch(
        ids=tf.where(is_new, tf.gather(state.ids, position, batch_dims=1), 0),
        counts=counts,
        log_probabilities=tf.where(is_new, log_probabilities, 0.0),
        finished=state.finished,
    )
