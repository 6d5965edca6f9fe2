"""One token from logits: greedy, temperature, top-k, top-p and min-p, each row by its own settings.

The order is transformers': temperature, top-k, top-p, min-p. All three filters are one threshold
that a row's logits have to reach, so tokens that tie with the last kept one are kept too (as top-k
does in transformers; its top-p cuts among equals by their place in a sort).

The draw turns probabilities into integers and walks the vocabulary in its own order. No sum of
floats decides, so that the order in which a runtime adds does not change the text.
"""

from __future__ import annotations

import tensorflow as tf

from tfllm.generation import random
from tfllm.generation.config import BatchedConfig, GraphFlags

# So many tokens are sorted at first. Only where a row's top-k or nucleus does not end among them,
# the whole vocabulary is.
FRONT = 256

LOWEST = -3.0e38  # a threshold that every logit reaches
COLDEST = 1e-6  # temperature below which the division would overflow
WEIGHTS = 2**29  # integers that the probabilities of a row share


def choose(
    logits: tf.Tensor, rows: BatchedConfig, position: tf.Tensor, features: GraphFlags
) -> tf.Tensor:
    """Token ids int32 [B] of logits float32 [B, V]; `position` int32 [B] counts new tokens."""
    greedy = tf.argmax(logits, axis=-1, output_type=tf.int32)
    if not features.sampling:
        return greedy

    def drawn() -> tf.Tensor:
        number = random.uniform(rows.seed, rows.sequence_index, position)
        sampled = draw(filtered(logits, rows, features), number)
        return tf.where(rows.temperature > 0, sampled, greedy)

    return tf.cond(tf.reduce_any(rows.temperature > 0), drawn, lambda: greedy)


def filtered(logits: tf.Tensor, rows: BatchedConfig, features: GraphFlags) -> tf.Tensor:
    """Probabilities float32 [B, V], not yet divided by their sum; 0 for tokens cut off.

    The most likely token has 1.
    """
    largest = tf.reduce_max(logits, axis=-1, keepdims=True)
    scaled = (logits - largest) / tf.maximum(rows.temperature, COLDEST)[:, None]
    likely = tf.exp(scaled)
    if not features.filters:
        return likely
    return tf.where(scaled >= threshold(scaled, rows)[:, None], likely, 0.0)


def draw(likely: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
    """The token that `number`, an int32 [B] of `random.uniform`, points at: int32 [B].

    `likely` float32 [B, V] is proportional to the probabilities. A token below 2^-29 of the whole
    is never drawn.
    """
    share = likely * (WEIGHTS / tf.reduce_sum(likely, axis=-1, keepdims=True))
    ends = tf.cumsum(tf.cast(tf.floor(share), tf.int32), axis=-1)
    target = random.below(number, ends[:, -1])
    return tf.reduce_sum(tf.cast(ends <= target[:, None], tf.int32), axis=-1)


def threshold(scaled: tf.Tensor, rows: BatchedConfig) -> tf.Tensor:
    """The logit that a token needs to be kept, float32 [B].

    `scaled` float32 [B, V]: logits over temperature, 0 for the most likely token of a row.
    """
    vocabulary_size = scaled.shape[-1]
    front = min(FRONT, vocabulary_size)
    edge, closed = _edge(tf.math.top_k(scaled, front).values, scaled, rows)
    if front < vocabulary_size:
        edge = tf.cond(
            tf.reduce_all(closed),
            lambda: edge,
            lambda: _edge(tf.math.top_k(scaled, vocabulary_size).values, scaled, rows)[0],
        )
    share = tf.where(rows.min_p > 0, tf.math.log(tf.maximum(rows.min_p, 1e-30)), LOWEST)
    return tf.maximum(edge, share)


def _edge(best: tf.Tensor, scaled: tf.Tensor, rows: BatchedConfig) -> tuple[tf.Tensor, tf.Tensor]:
    """(threshold of top-k and top-p float32 [B], whether `best` suffices to know it bool [B]).

    `best` float32 [B, K]: the largest of `scaled` [B, V] in falling order.
    """
    size, vocabulary_size = best.shape[-1], scaled.shape[-1]
    cut = tf.logical_and(rows.top_k > 0, rows.top_k < vocabulary_size)
    last = tf.clip_by_value(rows.top_k - 1, 0, size - 1)
    edge = tf.where(cut, tf.gather(best, last, batch_dims=1), LOWEST)

    kept = scaled >= edge[:, None]
    whole = tf.reduce_sum(tf.where(kept, tf.exp(scaled), 0.0), axis=-1, keepdims=True)
    likely = tf.where(best >= edge[:, None], tf.exp(best), 0.0) / whole
    before = tf.cumsum(likely, axis=-1, exclusive=True)
    inside = tf.logical_and(before < rows.top_p[:, None], best >= edge[:, None])
    count = tf.reduce_sum(tf.cast(inside, tf.int32), axis=-1)
    nucleus = tf.gather(best, tf.maximum(count - 1, 0), batch_dims=1)
    edge = tf.where(rows.top_p < 1, tf.maximum(edge, nucleus), edge)

    known_k = tf.logical_or(tf.logical_not(cut), rows.top_k <= size)
    ended = tf.logical_or(tf.logical_and(cut, rows.top_k <= size), count < size)
    known_p = tf.logical_or(rows.top_p >= 1, ended)
    return edge, tf.logical_and(known_k, known_p)
