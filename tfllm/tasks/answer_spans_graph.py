"""Serving signatures of question_answering: windows, the best span and its text in the graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import tensorflow as tf

from tfllm.tasks import serving_graph

if TYPE_CHECKING:
    import keras

    from tfllm.tasks.question_answering import QuestionAnswering
    from tfllm.tokenizers.graph.wordpiece import WordPieceGraph

NEVER = -1e30  # the score of a span that is not allowed


def signatures(
    task: QuestionAnswering, model: keras.Model, tokenizer: WordPieceGraph
) -> dict[str, Any]:
    """`serving_default`: question, context string[B] -> answer, start, end, score [B]; `tokens`.

    start and end are int32 characters (Unicode code points, not bytes) of the context, end
    exclusive; score as `QuestionAnswering.answers` has it. No answer: "", 0, 0. `tokens`: logits
    [B, T, 2].
    """

    @serving_graph.signature(serving_graph.text_inputs("question", "context"))
    def serve(question, context):
        context = serving_graph.replace_invalid_utf8(context)
        rows = tokenizer.windows(question, context, max_length=task.max_length, stride=task.stride)
        raw = serving_graph.run_model(model, rows)  # [R, T, 2]
        example, inside = rows["example"], rows["starts"] >= 0
        best, first, last = best_spans(raw, inside, task.max_answer_length)  # [R]
        row, score = best_rows(best, example)  # [B]
        none_score = tf.math.segment_min(tf.reduce_sum(raw[:, 0], axis=-1), example)
        nothing = score <= NEVER
        if task.no_answer:
            nothing |= none_score > score + task.no_answer_threshold
        span = [
            tf.gather_nd(rows[name], tf.stack([row, tf.gather(token, row)], 1))
            for name, token in (("starts", first), ("ends", last))
        ]
        start, end = (tf.where(nothing, 0, place) for place in span)
        logarithm = tf.where(nothing, none_score, score) - log_normalizer(raw, inside, example)
        return {
            "answer": tf.strings.substr(context, start, end - start, unit="UTF8_CHAR"),
            "start": start,
            "end": end,
            "score": tf.exp(logarithm),
        }

    return {"serving_default": serve, "tokens": serving_graph.tokens_signature(model)}


def best_spans(
    raw: tf.Tensor, inside: tf.Tensor, longest: int
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The best span of each window: score [R], first and last token int32 [R].

    `raw` float [R, T, 2], `inside` bool [R, T]; a score of NEVER where a window has no context.
    """
    width = tf.shape(raw)[1]
    ends = tf.range(width)[:, None] + tf.range(longest)[None]  # [T, L]
    reachable = ends < width
    ends = tf.minimum(ends, width - 1)
    allowed = inside[:, :, None] & tf.gather(inside, ends, axis=1) & reachable
    sums = raw[:, :, :1] + tf.gather(raw[:, :, 1], ends, axis=1)  # [R, T, L]
    sums = tf.reshape(tf.where(allowed, sums, NEVER), [-1, width * longest])
    place = tf.argmax(sums, axis=-1, output_type=tf.int32)
    first = place // longest
    return tf.reduce_max(sums, axis=-1), first, tf.minimum(first + place % longest, width - 1)


def best_rows(scores: tf.Tensor, example: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Each example's first window with the highest score: row int32 [B], score [B]."""
    highest = tf.math.segment_max(scores, example)
    number = tf.range(tf.size(scores))
    mine = scores >= tf.gather(highest, example)
    return tf.math.segment_min(tf.where(mine, number, tf.size(scores)), example), highest


def log_normalizer(raw: tf.Tensor, inside: tf.Tensor, example: tf.Tensor) -> tf.Tensor:
    """`spans.log_normalizer` of each example: float [B]."""
    start = tf.range(tf.shape(raw)[1])[None] == 0  # [CLS]
    allowed = (inside | start)[:, :, None]
    top = tf.math.segment_max(tf.reduce_max(tf.where(allowed, raw, NEVER), axis=1), example)
    powers = tf.where(allowed, tf.exp(raw - tf.gather(top, example)[:, None]), 0.0)
    total = tf.math.segment_sum(tf.reduce_sum(powers, axis=1), example)  # [B, 2]
    return tf.reduce_sum(top + tf.math.log(total), axis=-1)
