"""Rows of tokens that grow together: the state of decoding, and how it advances by one token.

This is the only place where a model is stepped. The engine, the loop of a SavedModel and the loop
of a LiteRT file all call `prefill` and `decode_step`, so they generate the same tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from tfllm.generation import cache as caches
from tfllm.generation import encoder_output as encoder_outputs
from tfllm.generation.config import BatchedConfig, GraphFlags
from tfllm.generation.penalties import apply_penalties
from tfllm.generation.sampling import choose_token
from tfllm.models.decoder import Decoder
from tfllm.models.encoder_decoder import EncoderDecoder

RUNNING, STOPPED, FULL = 0, 1, 2
FINISH_REASONS = {STOPPED: "stop", FULL: "length"}


class DecodeState(NamedTuple):
    """B rows with room for C tokens each. The last token of a row is chosen but not yet fed."""

    ids: tf.Tensor
    """int32 [B, C]: prompt and generated tokens, then zeros"""
    log_probabilities: tf.Tensor
    """float32 [B, C]: of each generated token under the model, before settings change the logits"""
    lengths: tf.Tensor
    """int32 [B]: tokens of prompt and text; an end-of-sequence token counts"""
    prompt_lengths: tf.Tensor
    """int32 [B]"""
    finished: tf.Tensor
    """int32 [B]: RUNNING, STOPPED or FULL"""
    cache: caches.Cache
    """Keys and values of the tokens before the last one"""
    source: encoder_outputs.MaybeEncoderOutput = encoder_outputs.NO_SOURCE
    """The encoder output that each row attends to, where the model reads sources"""


def prefill(
    decoder: Decoder | EncoderDecoder,
    token_ids: tf.Tensor,
    lengths: tf.Tensor,
    config: BatchedConfig,
    flags: GraphFlags,
    size: tf.Tensor | int,
    prompt_of_row: tf.Tensor | None = None,
    source: encoder_outputs.MaybeEncoderOutput = encoder_outputs.NO_SOURCE,
) -> DecodeState:
    """Read the prompts and choose the first new token of each row.

    Args:
        decoder: The model.
        token_ids: U prompts, int32 [U, P], padded on the right.
        lengths: int32 [U], each at least 1.
        config: The settings of the B rows.
        flags: What the graph has to support.
        size: The capacity C of a row, more than every length.
        prompt_of_row: int32 [B], the prompt of each row where rows share prompts; None: row i has
            prompt i.
        source: The encoder output of each prompt.
    """
    width = _shape(token_ids)[1]
    model = encoder_outputs.with_encoder_output(decoder, source)
    logits, cache = prefill_cache(model, token_ids, lengths, size)
    ids = tf.where(tf.range(width)[None] < lengths[:, None], token_ids, 0)
    if prompt_of_row is not None:
        logits, ids, lengths, cache, source = tf.nest.map_structure(
            lambda tensor: tf.gather(tensor, prompt_of_row), (logits, ids, lengths, cache, source)
        )
    ids = tf.pad(ids, [[0, 0], [0, size - width]])
    state = DecodeState(
        ids=ids,
        log_probabilities=tf.zeros_like(ids, tf.float32),
        lengths=lengths,
        prompt_lengths=lengths,
        finished=tf.zeros_like(lengths),
        cache=cache,
        source=source,
    )
    return _append_token(state, logits, config, flags)


def prefill_cache(
    decoder: Decoder, token_ids: tf.Tensor, lengths: tf.Tensor, size: tf.Tensor | int
) -> tuple[tf.Tensor, caches.Cache]:
    """Read the prompts.

    Args:
        decoder: The model.
        token_ids: int32 [B, P], padded on the right.
        lengths: int32 [B], each at least 1.
        size: The capacity of the cache.

    Returns:
        The logits float32 [B, V] of the token after each prompt, and the cache.
    """
    batch, width = _shape(token_ids)
    position = tf.range(width)
    positions = tf.broadcast_to(position[None], [batch, width])
    is_token = position[None] < lengths[:, None]
    attention_mask = (position[None] <= position[:, None])[None]
    attention_mask = tf.logical_and(attention_mask, is_token[:, None])
    attention_mask = decoder.layer_masks(attention_mask, positions, positions)
    hidden, cache = decoder(token_ids, positions, attention_mask)
    logits = decoder.logits(tf.gather(hidden, lengths - 1, batch_dims=1))
    return logits, caches.pad_cache(caches.clear_padding(cache, is_token), size)


def decode_step(
    decoder: Decoder | EncoderDecoder,
    state: DecodeState,
    config: BatchedConfig,
    flags: GraphFlags,
    write: caches.WriteFunction,
) -> DecodeState:
    """Feed the last token of each row and choose the next one; finished rows do not change.

    Args:
        decoder: The model.
        state: The rows.
        config: The settings of each row.
        flags: What the graph has to support.
        write: How the cache is written.

    Returns:
        The state with one more token of each unfinished row.
    """
    decoder = encoder_outputs.with_encoder_output(decoder, state.source)
    logits, cache = next_logits(decoder, last_tokens(state), state.lengths - 1, state.cache, write)
    return _append_token(state._replace(cache=cache), logits, config, flags)


def next_logits(
    decoder: Decoder,
    token_ids: tf.Tensor,
    positions: tf.Tensor,
    cache: caches.Cache,
    write: caches.WriteFunction,
) -> tuple[tf.Tensor, caches.Cache]:
    """Feed one token of each row.

    Args:
        decoder: The model.
        token_ids: int32 [B].
        positions: int32 [B], the position of each token in its row.
        cache: The cache of the tokens before.
        write: How the cache is written.

    Returns:
        The logits float32 [B, V] of the token after it, and the cache with the token.
    """
    position = positions[:, None]
    key_positions = tf.range(_shape(cache[0][0])[2])[None] + tf.zeros_like(position)
    attention_mask = (key_positions <= position)[:, None]
    attention_mask = decoder.layer_masks(attention_mask, position, key_positions)
    update = caches.CacheUpdate(cache, positions, write)
    hidden, _ = decoder(token_ids[:, None], position, attention_mask, update.layers())
    return decoder.logits(hidden[:, 0]), update.cache()


def last_tokens(state: DecodeState) -> tf.Tensor:
    """Return the last token of each row: int32 [B]."""
    return tf.gather(state.ids, state.lengths - 1, batch_dims=1)


def _append_token(
    state: DecodeState, logits: tf.Tensor, config: BatchedConfig, flags: GraphFlags
) -> DecodeState:
    """Choose one more token in every row that is running."""
    processed = apply_penalties(
        logits, state.ids, state.lengths, state.prompt_lengths, config, flags
    )
    token = choose_token(processed, config, state.lengths - state.prompt_lengths, flags)
    running = tf.equal(state.finished, RUNNING)
    position = tf.range(_shape(state.ids)[1])[None]
    is_new = tf.logical_and(tf.equal(position, state.lengths[:, None]), running[:, None])
    log_probabilities = state.log_probabilities
    if flags.log_probabilities:
        chosen = tf.gather(logits, token, batch_dims=1) - tf.reduce_logsumexp(logits, axis=-1)
        log_probabilities = tf.where(is_new, chosen[:, None], log_probabilities)
    lengths = state.lengths + tf.cast(running, tf.int32)
    stopped = tf.reduce_any(tf.equal(config.eos_token_id, token[:, None]), axis=1)
    reason = tf.where(stopped, STOPPED, tf.where(lengths >= config.max_length, FULL, RUNNING))
    return state._replace(
        ids=tf.where(is_new, token[:, None], state.ids),
        log_probabilities=log_probabilities,
        lengths=lengths,
        finished=tf.where(running, reason, state.finished),
    )


def _shape(tensor: tf.Tensor) -> list[tf.Tensor | int]:
    """Sizes as numbers where the graph knows them: a LiteRT file must not compute shapes."""
    static, dynamic = tensor.shape.as_list(), tf.shape(tensor)
    return [dynamic[axis] if size is None else size for axis, size in enumerate(static)]


def state_specs(decoder: Decoder | EncoderDecoder, dtype: tf.DType) -> DecodeState:
    """Return the TensorSpecs of a state for any number of rows and any capacity."""
    return DecodeState(
        ids=tf.TensorSpec([None, None], tf.int32, "ids"),
        log_probabilities=tf.TensorSpec([None, None], tf.float32, "log_probabilities"),
        lengths=tf.TensorSpec([None], tf.int32, "lengths"),
        prompt_lengths=tf.TensorSpec([None], tf.int32, "prompt_lengths"),
        finished=tf.TensorSpec([None], tf.int32, "finished"),
        cache=caches.cache_specs(decoder, dtype),
        source=encoder_outputs.encoder_output_specs(decoder, dtype),
    )


def concat_rows(first: DecodeState, second: DecodeState) -> DecodeState:
    """Concatenate the rows of two states of the same capacity."""
    source = encoder_outputs.concat_rows(first.source, second.source)
    pair = (state._replace(source=encoder_outputs.NO_SOURCE) for state in (first, second))
    both = tf.nest.map_structure(lambda a, b: tf.concat([a, b], axis=0), *pair)
    return both._replace(source=source)


def gather_rows(state: DecodeState, rows: tf.Tensor) -> DecodeState:
    """Pick the rows with the indices `rows`, int32, in that order."""
    return tf.nest.map_structure(lambda tensor: tf.gather(tensor, rows), state)


def resize(state: DecodeState, size: int) -> DecodeState:
    """Change the capacity to `size` tokens a row, which must hold the longest."""
    room = size - state.ids.shape[1]
    if room <= 0:
        return state._replace(
            ids=state.ids[:, :size],
            log_probabilities=state.log_probabilities[:, :size],
            cache=caches.map_cache(lambda stored: stored[:, :, :size], state.cache),
        )
    return state._replace(
        ids=tf.pad(state.ids, [[0, 0], [0, room]]),
        log_probabilities=tf.pad(state.log_probabilities, [[0, 0], [0, room]]),
        cache=caches.pad_cache(state.cache, tf.constant(size)),
    )
