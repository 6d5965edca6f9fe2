"""The whole loop as one graph: for SavedModels, for LiteRT, and for the engine when nobody listens.

No XLA operation and no operation that LiteRT lacks. `run` is what all three share.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import tensorflow as tf

from tfllm.generation import cache as caches
from tfllm.generation import source as sources
from tfllm.generation import state as states
from tfllm.generation.config import BatchedConfig, GraphFlags
from tfllm.generation.state import RUNNING, STOPPED, State

if TYPE_CHECKING:
    from tfllm.models.decoder import Decoder


class Texts(NamedTuple):
    """What a whole loop gives for B rows with at most N new tokens."""

    ids: tf.Tensor
    """int32 [B, N]: the new tokens without the stop id, then zeros"""
    counts: tf.Tensor
    """int32 [B]: how many tokens of a row count"""
    log_probabilities: tf.Tensor
    """float32 [B, N]"""
    finished: tf.Tensor
    """int32 [B]: state.STOPPED or state.FULL"""


def run(
    decoder: Decoder,
    state: State,
    rows: BatchedConfig,
    features: GraphFlags,
    steps: tf.Tensor | int,
    writer: caches.Writer = caches.scatter,
) -> State:
    """The state after `steps` more tokens in each row, or after all rows have finished.

    The capacity of the state must have room for them.
    """
    source = state.source  # no part of the loop's variables: it stays as it is

    def unfinished(count: tf.Tensor, now: State) -> tf.Tensor:
        running = tf.reduce_any(tf.equal(now.finished, RUNNING))
        return tf.logical_and(count < steps, running)

    def body(count: tf.Tensor, now: State) -> tuple[tf.Tensor, State]:
        now = states.advance(decoder, now._replace(source=source), rows, features, writer)
        return count + 1, now._replace(source=sources.NOTHING)

    state = state._replace(source=sources.NOTHING)
    shapes = tf.nest.map_structure(lambda one: one.shape, state)
    _, state = tf.while_loop(
        unfinished,
        body,
        (tf.constant(0), state),
        shape_invariants=(tf.TensorShape([]), shapes),
        parallel_iterations=1,
    )
    return state._replace(source=source)


def generate(
    decoder: Decoder,
    token_ids: tf.Tensor,
    lengths: tf.Tensor,
    rows: BatchedConfig,
    features: GraphFlags,
    most_new: tf.Tensor | int,
    writer: caches.Writer = caches.scatter,
    source: sources.AnySource = sources.NOTHING,
) -> Texts:
    """Prompts to new tokens in one graph.

    `token_ids` int32 [B, P] filled up on the right, `lengths` int32 [B], at least 1 each.
    `most_new` is N, the room for new tokens of the longest row; `rows.max_length` says where each
    row ends and must not be above P + N. With P and N Python numbers and B known, all shapes are
    static.
    """
    longest = token_ids.shape[1]
    longest = tf.shape(token_ids)[1] if longest is None else longest
    size = longest + most_new
    state = states.begin(decoder, token_ids, lengths, rows, features, size, source=source)
    state = run(decoder, state, rows, features, most_new - 1, writer)
    return texts(state, most_new)


def texts(state: State, most_new: tf.Tensor | int) -> Texts:
    """The new tokens of a state, each row from the first column."""
    counts = state.lengths - state.prompt_lengths
    counts = counts - tf.cast(tf.equal(state.finished, STOPPED), tf.int32)
    column = tf.range(most_new)[None]
    size = state.ids.shape[1] or tf.shape(state.ids)[1]
    place = tf.minimum(state.prompt_lengths[:, None] + column, size - 1)
    inside = column < counts[:, None]
    return Texts(
        ids=tf.where(inside, tf.gather(state.ids, place, batch_dims=1), 0),
        counts=counts,
        log_probabilities=tf.where(
            inside, tf.gather(state.log_probabilities, place, batch_dims=1), 0.0
        ),
        finished=state.finished,
    )
