"""Choose one token from logits: greedy, temperature, top-k, top-p and min-p, each row by its own
settings.

The order is transformers': temperature, top-k, top-p, min-p. All three filters are one threshold
that a row's logits have to reach, so tokens that tie with the last one that is kept are kept too
(as top-k does in transformers; its top-p cuts among equals by their order in a sort).

The draw turns probabilities into integers and walks the vocabulary in its own order. No sum of
floats decides, so the order in which a runtime adds does not change the text.
"""

from __future__ import annotations

import tensorflow as tf

from tfllm.generation import random
from tfllm.generation.config import BatchedConfig, GraphFlags

# So many tokens are sorted at first. Only where a row's top-k or nucleus does not end among them,
# the whole vocabulary is.
FRONT = 256

LOWEST = -3.0e38  # a threshold that every logit reaches
MIN_TEMPERATURE = 1e-6  # the division would overflow below
WEIGHTS = 2**29  # integers that the probabilities of a row share


def choose_token(
    logits: tf.Tensor, config: BatchedConfig, position: tf.Tensor, flags: GraphFlags
) -> tf.Tensor:
    """Choose the next token of each row.

    Args:
        logits: float32 [B, V].
        config: The settings of each row.
        position: int32 [B], how many tokens of the text precede this one.
        flags: What the graph has to support.

    Returns:
        Token ids int32 [B].
    """
    greedy = tf.argmax(logits, axis=-1, output_type=tf.int32)
    if not flags.sampling:
        return greedy

    def sample() -> tf.Tensor:
        number = random.uniform(config.seed, config.sequence_index, position)
        sampled = draw_token(filtered_probabilities(logits, config, flags), number)
        return tf.where(config.temperature > 0, sampled, greedy)

    return tf.cond(tf.reduce_any(config.temperature > 0), sample, lambda: greedy)


def filtered_probabilities(
    logits: tf.Tensor, config: BatchedConfig, flags: GraphFlags
) -> tf.Tensor:
    """Compute probabilities after temperature, top-k, top-p and min-p, not normalized.

    Args:
        logits: float32 [B, V].
        config: The settings of each row.
        flags: What the graph has to support.

    Returns:
        float32 [B, V], 1 for the most likely token and 0 for those that are filtered out.
    """
    largest = tf.reduce_max(logits, axis=-1, keepdims=True)
    scaled = (logits - largest) / tf.maximum(config.temperature, MIN_TEMPERATURE)[:, None]
    probabilities = tf.exp(scaled)
    if not flags.filters:
        return probabilities
    return tf.where(scaled >= filter_threshold(scaled, config)[:, None], probabilities, 0.0)


def draw_token(probabilities: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
    """Draw the token that a random number points at.

    Args:
        probabilities: float32 [B, V], not normalized. A token below 2^-29 of the sum is never
            drawn.
        number: int32 [B], of `random.uniform`.

    Returns:
        Token ids int32 [B].
    """
    share = probabilities * (WEIGHTS / tf.reduce_sum(probabilities, axis=-1, keepdims=True))
    ends = tf.cumsum(tf.cast(tf.floor(share), tf.int32), axis=-1)
    target = random.below(number, ends[:, -1])
    return tf.reduce_sum(tf.cast(ends <= target[:, None], tf.int32), axis=-1)


def filter_threshold(scaled: tf.Tensor, config: BatchedConfig) -> tf.Tensor:
    """Compute the logit that a token must reach to be kept, float32 [B].

    Args:
        scaled: Logits over temperature, float32 [B, V], 0 for the most likely token of a row.
        config: The settings of each row.
    """
    vocabulary_size = scaled.shape[-1]
    front = min(FRONT, vocabulary_size)
    threshold, complete = _top_threshold(tf.math.top_k(scaled, front).values, scaled, config)
    if front < vocabulary_size:
        threshold = tf.cond(
            tf.reduce_all(complete),
            lambda: threshold,
            lambda: _top_threshold(tf.math.top_k(scaled, vocabulary_size).values, scaled, config)[
                0
            ],
        )
    min_p = tf.where(config.min_p > 0, tf.math.log(tf.maximum(config.min_p, 1e-30)), LOWEST)
    return tf.maximum(threshold, min_p)


def _top_threshold(
    best: tf.Tensor, scaled: tf.Tensor, config: BatchedConfig
) -> tuple[tf.Tensor, tf.Tensor]:
    """(threshold of top-k and top-p float32 [B], whether `best` suffices to know it bool [B]).

    `best` float32 [B, K]: the largest of `scaled` [B, V] in falling order.
    """
    size, vocabulary_size = best.shape[-1], scaled.shape[-1]
    has_top_k = tf.logical_and(config.top_k > 0, config.top_k < vocabulary_size)
    last = tf.clip_by_value(config.top_k - 1, 0, size - 1)
    threshold = tf.where(has_top_k, tf.gather(best, last, batch_dims=1), LOWEST)

    is_kept = scaled >= threshold[:, None]
    total = tf.reduce_sum(tf.where(is_kept, tf.exp(scaled), 0.0), axis=-1, keepdims=True)
    probabilities = tf.where(best >= threshold[:, None], tf.exp(best), 0.0) / total
    before = tf.cumsum(probabilities, axis=-1, exclusive=True)
    inside = tf.logical_and(before < config.top_p[:, None], best >= threshold[:, None])
    count = tf.reduce_sum(tf.cast(inside, tf.int32), axis=-1)
    nucleus = tf.gather(best, tf.maximum(count - 1, 0), batch_dims=1)
    threshold = tf.where(config.top_p < 1, tf.maximum(threshold, nucleus), threshold)

    within = config.top_k <= size
    top_k_known = tf.logical_or(tf.logical_not(has_top_k), within)
    ended = tf.logical_or(tf.logical_and(has_top_k, within), count < size)
    top_p_known = tf.logical_or(config.top_p >= 1, ended)
    return threshold, tf.logical_and(top_k_known, top_p_known)
