"""Logits changed by what a text holds already, before a token is chosen.

Each function takes and gives logits float32 [B, V] and is written so that LiteRT's built-in
operations suffice. `ids` int32 [B, T] hold prompt and text, of which the first `lengths` [B] count.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from tfllm.generation.config import NO_ID, BatchedConfig, GraphFlags

# As good as minus infinity, but finite: if everything is barred, something can still be chosen.
BARRED = -1e30


def penalised(
    logits: tf.Tensor,
    ids: tf.Tensor,
    lengths: tf.Tensor,
    prompt_lengths: tf.Tensor,
    rows: BatchedConfig,
    features: GraphFlags,
) -> tf.Tensor:
    """All penalties in the order of transformers' logits processors, after which ids without a
    token are barred."""
    vocabulary_size = logits.shape[-1]
    if features.penalties:
        seen = counts(ids, tf.zeros_like(lengths), lengths, vocabulary_size) > 0
        logits = repetition(logits, seen, rows.repetition_penalty)
        times = counts(ids, prompt_lengths, lengths, vocabulary_size)
        logits = presence_and_frequency(
            logits, times, rows.presence_penalty, rows.frequency_penalty
        )
    if features.max_ngram_size:
        logits = no_repeat_ngram_size(
            logits, ids, lengths, rows.no_repeat_ngram_size, features.max_ngram_size
        )
    if features.max_bad_word_length:
        logits = bad_words_ids(
            logits, ids, lengths, rows.bad_words_ids, features.max_bad_word_length
        )
    written = lengths - prompt_lengths
    if features.min_new_tokens:
        early = tf.logical_and(rows.eos_token_id >= 0, (written < rows.min_new_tokens)[:, None])
        logits = _barred(logits, tf.maximum(rows.eos_token_id, 0), early)
    if features.token_ranges:
        logits = known(logits, features.token_ranges)
    if features.forced_tokens:
        logits = forced(logits, rows.forced_bos_token_id, tf.equal(written, 0))
        logits = forced(logits, rows.forced_eos_token_id, tf.equal(lengths + 1, rows.max_length))
    return logits


def counts(ids: tf.Tensor, start: tf.Tensor, end: tf.Tensor, vocabulary_size: int) -> tf.Tensor:
    """How often each token stands in ids[start:end] of its row: int32 [B, V]."""
    place = tf.range(tf.shape(ids)[1])[None]
    inside = tf.logical_and(place >= start[:, None], place < end[:, None])
    return _scattered(ids, tf.cast(inside, tf.int32), vocabulary_size)


def repetition(logits: tf.Tensor, seen: tf.Tensor, penalty: tf.Tensor) -> tf.Tensor:
    """Keskar et al. 2019 (CTRL), with transformers' rule for negative logits.

    `seen` bool [B, V]; `penalty` float32 [B], 1 for none.
    """
    penalty = penalty[:, None]
    less = tf.where(logits < 0, logits * penalty, logits / penalty)
    return tf.where(seen, less, logits)


def presence_and_frequency(
    logits: tf.Tensor, written: tf.Tensor, presence: tf.Tensor, frequency: tf.Tensor
) -> tf.Tensor:
    """The two penalties of OpenAI's API, over the text without the prompt.

    `written` int32 [B, V]: how often the text holds each token.
    """
    times = tf.cast(written, tf.float32)
    return logits - frequency[:, None] * times - presence[:, None] * tf.minimum(times, 1.0)


def no_repeat_ngram_size(
    logits: tf.Tensor, ids: tf.Tensor, lengths: tf.Tensor, sizes: tf.Tensor, largest: int
) -> tf.Tensor:
    """Bars every token that would write an n-gram of the row a second time.

    `sizes` int32 [B] are the n of each row, at most `largest`; 0 bars nothing. A token at place j
    is barred when the n - 1 tokens before it are the last n - 1 tokens of the row.
    """
    total = tf.shape(ids)[1]
    place = tf.range(total)[None]
    sizes = sizes[:, None]
    match = tf.logical_and(place < lengths[:, None], tf.logical_and(place >= sizes - 1, sizes > 0))
    for back in range(largest - 1):
        before = tf.pad(ids, [[0, 0], [back + 1, 0]], constant_values=NO_ID)[:, :total]
        same = tf.equal(before, _from_end(ids, lengths, back)[:, None])
        match = tf.logical_and(match, tf.logical_or(same, sizes - 1 <= back))
    return _barred(logits, ids, match)


def bad_words_ids(
    logits: tf.Tensor, ids: tf.Tensor, lengths: tf.Tensor, words: tf.Tensor, longest: int
) -> tf.Tensor:
    """Bars the last token of a bad word whose other tokens are the last ones of the row.

    `words` int32 [B, W, N] with N = `longest`, filled up with NO_ID from the left.
    """
    last = words[:, :, longest - 1]
    match = last >= 0
    for back in range(longest - 1):
        wanted = words[:, :, longest - 2 - back]
        same = tf.equal(wanted, _from_end(ids, lengths, back)[:, None])
        match = tf.logical_and(match, tf.logical_or(wanted < 0, same))
    return _barred(logits, tf.maximum(last, 0), match)


def known(logits: tf.Tensor, ranges: Sequence[tuple[int, int]]) -> tf.Tensor:
    """Bars the ids outside of half-open ranges, which rise: rows of a padded table of embeddings.

    By slices, so that a file holds no table of ids for it.
    """
    size, begin = logits.shape[-1], 0
    parts: list[tf.Tensor] = []
    for start, stop in [*ranges, (size, size)]:
        if start > begin:
            parts.append(tf.zeros_like(logits[:, begin:start]) + BARRED)
        if stop > start:
            parts.append(logits[:, start:stop])
        begin = stop
    return tf.concat(parts, axis=1)


def forced(logits: tf.Tensor, ids: tf.Tensor, now: tf.Tensor) -> tf.Tensor:
    """The token `ids` int32 [B] alone, with logit 0, in rows that `now` bool [B] names.

    NO_ID forces nothing.
    """
    now = tf.logical_and(now, ids >= 0)[:, None]
    right = tf.equal(tf.range(logits.shape[-1])[None], ids[:, None])
    return tf.where(now, tf.where(right, 0.0, BARRED), logits)


def _from_end(ids: tf.Tensor, lengths: tf.Tensor, back: int) -> tf.Tensor:
    """The token `back` before the last of each row [B]; NO_ID - 1, which equals none, before it."""
    place = lengths - 1 - back
    token = tf.gather(ids, tf.maximum(place, 0), batch_dims=1)
    return tf.where(place >= 0, token, NO_ID - 1)


def _barred(logits: tf.Tensor, ids: tf.Tensor, match: tf.Tensor) -> tf.Tensor:
    hits = _scattered(ids, tf.cast(match, tf.int32), logits.shape[-1])
    return tf.where(hits > 0, BARRED, logits)


def _scattered(ids: tf.Tensor, values: tf.Tensor, vocabulary_size: int) -> tf.Tensor:
    """Sums of `values` int32 [B, N] at the tokens `ids` [B, N] of each row: int32 [B, V]."""
    batch = tf.shape(ids)[0]
    row = tf.broadcast_to(tf.range(batch)[:, None], tf.shape(ids))
    # An id beyond the vocabulary, which a caller may name as a bad word, counts for nothing.
    known = tf.cast(ids < vocabulary_size, tf.int32)
    indices = tf.stack([row, ids * known], axis=-1)
    return tf.scatter_nd(indices, values * known, [batch, vocabulary_size])
