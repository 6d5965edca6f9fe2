"""Logits processors: logits changed by the tokens so far, before a token is chosen.

Each function maps logits float32 [B, V] to logits float32 [B, V] and is written so that LiteRT's
built-in operations suffice. `ids` int32 [B, T] hold prompt and text; the first `lengths` int32 [B]
of each row count.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from tfllm.generation.config import NO_ID, BatchedConfig, GraphFlags

# As good as minus infinity, but finite: if every token is masked, one can still be chosen.
MASKED = -1e30


def apply_penalties(
    logits: tf.Tensor,
    ids: tf.Tensor,
    lengths: tf.Tensor,
    prompt_lengths: tf.Tensor,
    config: BatchedConfig,
    flags: GraphFlags,
) -> tf.Tensor:
    """Apply all processors in the order of transformers, then mask ids without a token.

    Args:
        logits: float32 [B, V].
        ids: int32 [B, T], prompt and text.
        lengths: int32 [B], tokens of prompt and text.
        prompt_lengths: int32 [B].
        config: The settings of each row.
        flags: Which processors the graph has.

    Returns:
        float32 [B, V].
    """
    vocabulary_size = logits.shape[-1]
    if flags.penalties:
        seen = token_counts(ids, tf.zeros_like(lengths), lengths, vocabulary_size) > 0
        logits = penalize_repetition(logits, seen, config.repetition_penalty)
        counts = token_counts(ids, prompt_lengths, lengths, vocabulary_size)
        logits = penalize_presence_and_frequency(
            logits, counts, config.presence_penalty, config.frequency_penalty
        )
    if flags.max_ngram_size:
        logits = mask_repeated_ngrams(
            logits, ids, lengths, config.no_repeat_ngram_size, flags.max_ngram_size
        )
    if flags.max_bad_word_length:
        logits = mask_bad_words(
            logits, ids, lengths, config.bad_words_ids, flags.max_bad_word_length
        )
    new_tokens = lengths - prompt_lengths
    if flags.min_new_tokens:
        too_short = (new_tokens < config.min_new_tokens)[:, None]
        match = tf.logical_and(config.eos_token_id >= 0, too_short)
        logits = _mask_ids(logits, tf.maximum(config.eos_token_id, 0), match)
    if flags.token_ranges:
        logits = keep_token_ranges(logits, flags.token_ranges)
    if flags.forced_tokens:
        is_last = tf.equal(lengths + 1, config.max_length)
        logits = force_token(logits, config.forced_bos_token_id, tf.equal(new_tokens, 0))
        logits = force_token(logits, config.forced_eos_token_id, is_last)
    return logits


def token_counts(
    ids: tf.Tensor, start: tf.Tensor, end: tf.Tensor, vocabulary_size: int
) -> tf.Tensor:
    """Count how often each token occurs in a part of its row: int32 [B, V].

    Args:
        ids: int32 [B, T].
        start: First position of the part: int32 [B].
        end: Position after its last: int32 [B].
        vocabulary_size: V.
    """
    position = tf.range(tf.shape(ids)[1])[None]
    inside = tf.logical_and(position >= start[:, None], position < end[:, None])
    return _scatter_sum(ids, tf.cast(inside, tf.int32), vocabulary_size)


def penalize_repetition(logits: tf.Tensor, seen: tf.Tensor, penalty: tf.Tensor) -> tf.Tensor:
    """Apply the repetition penalty of Keskar et al. 2019 (CTRL).

    Negative logits are multiplied by the penalty and others divided, as in transformers.

    Args:
        logits: float32 [B, V].
        seen: bool [B, V], the tokens that occur in prompt or text.
        penalty: float32 [B]; 1 is none.
    """
    penalty = penalty[:, None]
    penalized = tf.where(logits < 0, logits * penalty, logits / penalty)
    return tf.where(seen, penalized, logits)


def penalize_presence_and_frequency(
    logits: tf.Tensor, counts: tf.Tensor, presence: tf.Tensor, frequency: tf.Tensor
) -> tf.Tensor:
    """Apply the two penalties of OpenAI's API, over the text without the prompt.

    Args:
        logits: float32 [B, V].
        counts: int32 [B, V], how often the text contains each token.
        presence: float32 [B].
        frequency: float32 [B].
    """
    counts = tf.cast(counts, tf.float32)
    return logits - frequency[:, None] * counts - presence[:, None] * tf.minimum(counts, 1.0)


def mask_repeated_ngrams(
    logits: tf.Tensor, ids: tf.Tensor, lengths: tf.Tensor, sizes: tf.Tensor, max_size: int
) -> tf.Tensor:
    """Mask every token that would complete an n-gram of the row a second time.

    A token at position j is masked when the n - 1 tokens before it are the last n - 1 tokens of the
    row.

    Args:
        logits: float32 [B, V].
        ids: int32 [B, T].
        lengths: int32 [B].
        sizes: int32 [B], the n of each row; 0 masks nothing.
        max_size: The largest of `sizes`.
    """
    total = tf.shape(ids)[1]
    position = tf.range(total)[None]
    sizes = sizes[:, None]
    match = tf.logical_and(
        position < lengths[:, None], tf.logical_and(position >= sizes - 1, sizes > 0)
    )
    for back in range(max_size - 1):
        before = tf.pad(ids, [[0, 0], [back + 1, 0]], constant_values=NO_ID)[:, :total]
        same = tf.equal(before, _from_end(ids, lengths, back)[:, None])
        match = tf.logical_and(match, tf.logical_or(same, sizes - 1 <= back))
    return _mask_ids(logits, ids, match)


def mask_bad_words(
    logits: tf.Tensor, ids: tf.Tensor, lengths: tf.Tensor, words: tf.Tensor, max_length: int
) -> tf.Tensor:
    """Mask the last token of a bad word whose other tokens are the last ones of the row.

    Args:
        logits: float32 [B, V].
        ids: int32 [B, T].
        lengths: int32 [B].
        words: int32 [B, W, N], padded on the left with NO_ID.
        max_length: N.
    """
    last = words[:, :, max_length - 1]
    match = last >= 0
    for back in range(max_length - 1):
        expected = words[:, :, max_length - 2 - back]
        same = tf.equal(expected, _from_end(ids, lengths, back)[:, None])
        match = tf.logical_and(match, tf.logical_or(expected < 0, same))
    return _mask_ids(logits, tf.maximum(last, 0), match)


def keep_token_ranges(logits: tf.Tensor, ranges: Sequence[tuple[int, int]]) -> tf.Tensor:
    """Mask the ids outside of ranges: the padding of an embedding table.

    It works by slices, so that an exported file contains no table of ids for it.

    Args:
        logits: float32 [B, V].
        ranges: Half-open ranges of ids, ascending.
    """
    size, begin = logits.shape[-1], 0
    parts: list[tf.Tensor] = []
    for start, stop in [*ranges, (size, size)]:
        if start > begin:
            parts.append(tf.zeros_like(logits[:, begin:start]) + MASKED)
        if stop > start:
            parts.append(logits[:, start:stop])
        begin = stop
    return tf.concat(parts, axis=1)


def force_token(logits: tf.Tensor, ids: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    """Mask all tokens but one, which gets logit 0.

    Args:
        logits: float32 [B, V].
        ids: int32 [B], the token of each row; NO_ID forces none.
        rows: bool [B], the rows in which it is forced.
    """
    rows = tf.logical_and(rows, ids >= 0)[:, None]
    is_forced = tf.equal(tf.range(logits.shape[-1])[None], ids[:, None])
    return tf.where(rows, tf.where(is_forced, 0.0, MASKED), logits)


def _from_end(ids: tf.Tensor, lengths: tf.Tensor, back: int) -> tf.Tensor:
    """The token `back` before the last of each row [B]; NO_ID - 1, which equals none, before it."""
    position = lengths - 1 - back
    token = tf.gather(ids, tf.maximum(position, 0), batch_dims=1)
    return tf.where(position >= 0, token, NO_ID - 1)


def _mask_ids(logits: tf.Tensor, ids: tf.Tensor, match: tf.Tensor) -> tf.Tensor:
    hits = _scatter_sum(ids, tf.cast(match, tf.int32), logits.shape[-1])
    return tf.where(hits > 0, MASKED, logits)


def _scatter_sum(ids: tf.Tensor, values: tf.Tensor, vocabulary_size: int) -> tf.Tensor:
    """Sums of `values` int32 [B, N] at the tokens `ids` [B, N] of each row: int32 [B, V]."""
    batch = tf.shape(ids)[0]
    row = tf.broadcast_to(tf.range(batch)[:, None], tf.shape(ids))
    # An id beyond the vocabulary, which a caller may name as a bad word, counts for nothing.
    valid = tf.cast(ids < vocabulary_size, tf.int32)
    indices = tf.stack([row, ids * valid], axis=-1)
    return tf.scatter_nd(indices, values * valid, [batch, vocabulary_size])
