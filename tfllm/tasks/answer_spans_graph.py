"""The best answer span of scores as TensorFlow ops, as `answer_spans` finds it."""

from __future__ import annotations

import tensorflow as tf

NEVER = -1e30  # the score of a span that is not allowed


def best_spans(
    raw: tf.Tensor, inside: tf.Tensor, longest: int
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Find the best span of each window, as `answer_spans.best_spans` does.

    Args:
        raw: Logits float [R, T, 2].
        inside: Which tokens are of the context: bool [R, T].
        longest: Most tokens of a span.

    Returns:
        Score [R], NEVER where a window has no context, and first and last token int32 [R].
    """
    width = tf.shape(raw)[1]
    ends = tf.range(width)[:, None] + tf.range(longest)[None]  # [T, L]
    reachable = ends < width
    ends = tf.minimum(ends, width - 1)
    allowed = inside[:, :, None] & tf.gather(inside, ends, axis=1) & reachable
    sums = raw[:, :, :1] + tf.gather(raw[:, :, 1], ends, axis=1)  # [R, T, L]
    sums = tf.reshape(tf.where(allowed, sums, NEVER), [-1, width * longest])
    position = tf.argmax(sums, axis=-1, output_type=tf.int32)
    first = position // longest
    return tf.reduce_max(sums, axis=-1), first, tf.minimum(first + position % longest, width - 1)


def best_rows(scores: tf.Tensor, example: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Find each example's first window with the highest score.

    Args:
        scores: The best score of each window: [R].
        example: The example of each window, ascending: int [R].

    Returns:
        The window int32 [B], and its score [B].
    """
    highest = tf.math.segment_max(scores, example)
    number = tf.range(tf.size(scores))
    mine = scores >= tf.gather(highest, example)
    return tf.math.segment_min(tf.where(mine, number, tf.size(scores)), example), highest


def log_normalizer(raw: tf.Tensor, inside: tf.Tensor, example: tf.Tensor) -> tf.Tensor:
    """Compute `answer_spans.log_normalizer` of each example: float [B].

    Args:
        raw: Logits float [R, T, 2].
        inside: Which tokens are of the context: bool [R, T].
        example: The example of each window, ascending: int [R].
    """
    start = tf.range(tf.shape(raw)[1])[None] == 0  # [CLS]
    allowed = (inside | start)[:, :, None]
    top = tf.math.segment_max(tf.reduce_max(tf.where(allowed, raw, NEVER), axis=1), example)
    powers = tf.where(allowed, tf.exp(raw - tf.gather(top, example)[:, None]), 0.0)
    total = tf.math.segment_sum(tf.reduce_sum(powers, axis=1), example)  # [B, 2]
    return tf.reduce_sum(top + tf.math.log(total), axis=-1)
