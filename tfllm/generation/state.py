"""Rows of text that grow together: their state, how it begins and how one token is added.

This is the only place where a model is stepped. The engine, the loop of a SavedModel and the loop
of a LiteRT file all call `begin` and `advance`, so they write the same tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import tensorflow as tf

from tfllm.generation import cache as caches
from tfllm.generation import source as sources
from tfllm.generation.config import BatchedConfig, GraphFlags
from tfllm.generation.penalties import penalised
from tfllm.generation.sampling import choose

if TYPE_CHECKING:
    from tfllm.models.decoder import Decoder

RUNNING, STOPPED, FULL = 0, 1, 2
REASONS = {STOPPED: "stop", FULL: "length"}


class State(NamedTuple):
    """B rows with room for C tokens each. The last token of a row is chosen but not yet fed."""

    ids: tf.Tensor
    """int32 [B, C]: prompt and text, then zeros"""
    log_probabilities: tf.Tensor
    """float32 [B, C]: of each new token under the model, before settings change the logits"""
    lengths: tf.Tensor
    """int32 [B]: tokens of prompt and text; a stop id counts"""
    prompt_lengths: tf.Tensor
    """int32 [B]"""
    finished: tf.Tensor
    """int32 [B]: RUNNING, STOPPED or FULL"""
    cache: caches.Cache
    """Keys and values of the tokens before the last one"""
    source: sources.AnySource = sources.NOTHING
    """What each row writes after, where the model reads sources"""


def begin(
    decoder: Decoder,
    token_ids: tf.Tensor,
    lengths: tf.Tensor,
    rows: BatchedConfig,
    features: GraphFlags,
    size: tf.Tensor | int,
    repeats: tf.Tensor | None = None,
    source: sources.AnySource = sources.NOTHING,
) -> State:
    """Reads prompts and chooses the first new token of each row.

    `token_ids` int32 [U, P] are U prompts filled up on the right, of `lengths` int32 [U], each at
    least 1. `size` is the room C of a row, more than every length. `repeats` int32 [B] names the
    prompt of each row where rows share prompts; without it rows are prompts. `source` holds the
    source of each prompt.
    """
    longest = _shape(token_ids)[1]
    logits, cache = read(sources.after(decoder, source), token_ids, lengths, size)
    ids = tf.where(tf.range(longest)[None] < lengths[:, None], token_ids, 0)
    if repeats is not None:
        logits, ids, lengths = (tf.gather(one, repeats) for one in (logits, ids, lengths))
        cache, source = tf.nest.map_structure(lambda one: tf.gather(one, repeats), (cache, source))
    ids = tf.pad(ids, [[0, 0], [0, size - longest]])
    state = State(
        ids=ids,
        log_probabilities=tf.zeros_like(ids, tf.float32),
        lengths=lengths,
        prompt_lengths=lengths,
        finished=tf.zeros_like(lengths),
        cache=cache,
        source=source,
    )
    return _with_next(state, logits, rows, features)


def read(
    decoder: Decoder, token_ids: tf.Tensor, lengths: tf.Tensor, size: tf.Tensor | int
) -> tuple[tf.Tensor, caches.Cache]:
    """(logits float32 [B, V] after the last token of each prompt, cache with room for `size`).

    `token_ids` int32 [B, P] filled up on the right, of `lengths` int32 [B].
    """
    batch, longest = _shape(token_ids)
    place = tf.range(longest)
    positions = tf.broadcast_to(place[None], [batch, longest])
    known = place[None] < lengths[:, None]
    allowed = tf.logical_and((place[None] <= place[:, None])[None], known[:, None])
    allowed = decoder.layer_masks(allowed, positions, positions)
    hidden, cache = decoder(token_ids, positions, allowed)
    logits = decoder.logits(tf.gather(hidden, lengths - 1, batch_dims=1))
    return logits, caches.padded(caches.cleared(cache, known), size)


def advance(
    decoder: Decoder, state: State, rows: BatchedConfig, features: GraphFlags, writer: caches.Writer
) -> State:
    """Feeds the last token of each row and chooses the next. Finished rows stay as they are."""
    place = state.lengths - 1
    decoder = sources.after(decoder, state.source)
    logits, cache = step(decoder, last_ids(state), place, state.cache, writer)
    return _with_next(state._replace(cache=cache), logits, rows, features)


def step(
    decoder: Decoder,
    token_ids: tf.Tensor,
    places: tf.Tensor,
    cache: caches.Cache,
    writer: caches.Writer,
) -> tuple[tf.Tensor, caches.Cache]:
    """(logits float32 [B, V], cache with the token) after `token_ids` int32 [B] at `places` [B]."""
    here = places[:, None]
    stored = tf.range(_shape(cache[0][0])[2])[None] + tf.zeros_like(here)
    allowed = decoder.layer_masks((stored <= here)[:, None], here, stored)
    written = caches.Written(cache, places, writer)
    hidden, _ = decoder(token_ids[:, None], here, allowed, written.layers())
    return decoder.logits(hidden[:, 0]), written.cache()


def last_ids(state: State) -> tf.Tensor:
    """The last token of each row: int32 [B]."""
    return tf.gather(state.ids, state.lengths - 1, batch_dims=1)


def _with_next(state: State, logits: tf.Tensor, rows: BatchedConfig, features: GraphFlags) -> State:
    """The state with one more token in every row that is running."""
    changed = penalised(logits, state.ids, state.lengths, state.prompt_lengths, rows, features)
    token = choose(changed, rows, state.lengths - state.prompt_lengths, features)
    running = tf.equal(state.finished, RUNNING)
    place = tf.range(_shape(state.ids)[1])[None]
    here = tf.logical_and(tf.equal(place, state.lengths[:, None]), running[:, None])
    log_probabilities = state.log_probabilities
    if features.log_probabilities:
        chosen = tf.gather(logits, token, batch_dims=1) - tf.reduce_logsumexp(logits, axis=-1)
        log_probabilities = tf.where(here, chosen[:, None], log_probabilities)
    lengths = state.lengths + tf.cast(running, tf.int32)
    stopped = tf.reduce_any(tf.equal(rows.eos_token_id, token[:, None]), axis=1)
    reason = tf.where(stopped, STOPPED, tf.where(lengths >= rows.max_length, FULL, RUNNING))
    return state._replace(
        ids=tf.where(here, token[:, None], state.ids),
        log_probabilities=log_probabilities,
        lengths=lengths,
        finished=tf.where(running, reason, state.finished),
    )


def _shape(tensor: tf.Tensor) -> list[Any]:
    """Sizes as numbers where the graph knows them: a LiteRT file must not compute shapes."""
    known, found = tensor.shape.as_list(), tf.shape(tensor)
    return [found[i] if size is None else size for i, size in enumerate(known)]


def specs(decoder: Decoder, dtype: tf.DType) -> State:
    """TensorSpecs of a state for any number of rows and any capacity."""
    return State(
        ids=tf.TensorSpec([None, None], tf.int32, "ids"),
        log_probabilities=tf.TensorSpec([None, None], tf.float32, "log_probabilities"),
        lengths=tf.TensorSpec([None], tf.int32, "lengths"),
        prompt_lengths=tf.TensorSpec([None], tf.int32, "prompt_lengths"),
        finished=tf.TensorSpec([None], tf.int32, "finished"),
        cache=caches.specs(decoder, dtype),
        source=sources.specs(decoder, dtype),
    )


def joined(first: State, second: State) -> State:
    """The rows of both; both must have the same capacity."""
    source = sources.joined(first.source, second.source)
    pair = (one._replace(source=sources.NOTHING) for one in (first, second))
    both = tf.nest.map_structure(lambda a, b: tf.concat([a, b], axis=0), *pair)
    return both._replace(source=source)


def kept(state: State, rows: tf.Tensor) -> State:
    """The rows that int32 `rows` names, in that order."""
    return tf.nest.map_structure(lambda one: tf.gather(one, rows), state)


def resized(state: State, size: int) -> State:
    """The state with room for `size` tokens a row, which must hold the longest."""
    room = size - state.ids.shape[1]
    if room <= 0:
        cut = caches.mapped(lambda stored: stored[:, :, :size], state.cache)
        ids, scores = state.ids[:, :size], state.log_probabilities[:, :size]
        return state._replace(ids=ids, log_probabilities=scores, cache=cut)
    return state._replace(
        ids=tf.pad(state.ids, [[0, 0], [0, room]]),
        log_probabilities=tf.pad(state.log_probabilities, [[0, 0], [0, room]]),
        cache=caches.padded(state.cache, tf.constant(size)),
    )
