"""Serving signatures of classification and next_sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import tensorflow as tf

from tfllm.tasks import serving_graph

if TYPE_CHECKING:
    import keras

    from tfllm.tasks.classification import Classification
    from tfllm.tasks.next_sentence import NextSentence
    from tfllm.tokenizers.graph.wordpiece import WordPieceGraph


def signatures(
    task: Classification, model: keras.Model, tokenizer: WordPieceGraph
) -> dict[str, Any]:
    """`serving_default`, `tokens`, and `classify` or `regress`.

    serving_default  text (text_pair) string[B] -> label string[B], scores float[B, C], the labels
                     in the task's order. Multi-label: every score is a probability of its own, and
                     label is the best one. Regression: -> score float[B]; with several named
                     numbers scores float[B, C].
    classify         inputs string[B], serialised tf.Example with the features text (text_pair)
                     -> classes string[B, C], scores float[B, C]
    regress          the same inputs -> outputs float[B] (a task with one number only)
    tokens           token_ids, segment_ids, padding_mask int32[B, T] -> logits float[B, C]
    """
    names = ["text", "text_pair"] if task.pair else ["text"]

    def scores(*texts: tf.Tensor) -> tf.Tensor:
        raw = serving_graph.run_by_length(model, tokenizer(*texts, max_length=task.max_length))
        activation = {"single_label": tf.nn.softmax, "multi_label": tf.sigmoid}
        return activation.get(task.problem, tf.identity)(raw)

    def answer(*texts: tf.Tensor) -> dict[str, tf.Tensor]:
        found = scores(*texts)
        if task.problem == "regression":
            return {"score": found[:, 0]} if task.size == 1 else {"scores": found}
        best = tf.argmax(found, axis=-1, output_type=tf.int32)
        return {"label": tf.gather(tf.constant(task.labels), best), "scores": found}

    result = {
        "serving_default": _over_texts(answer, names),
        "tokens": serving_graph.tokens_signature(model),
    }
    examples = [tf.TensorSpec([None], tf.string, "inputs")]
    if task.problem != "regression":

        @serving_graph.signature(examples)
        def classify(inputs):
            found = scores(*serving_graph.parse_examples(inputs, names))
            classes = tf.tile(tf.constant(task.labels)[None], [tf.shape(found)[0], 1])
            return {"classes": classes, "scores": found}

        result["classify"] = classify
    elif task.size == 1:

        @serving_graph.signature(examples)
        def regress(inputs):
            return {"outputs": scores(*serving_graph.parse_examples(inputs, names))[:, 0]}

        result["regress"] = regress
    return result


def next_sentence(
    task: NextSentence, model: keras.Model, tokenizer: WordPieceGraph
) -> dict[str, Any]:
    """`serving_default`: text, text_pair string[B] -> is_next float[B], a probability; `tokens`."""

    def answer(text: tf.Tensor, text_pair: tf.Tensor) -> dict[str, tf.Tensor]:
        raw = serving_graph.run_by_length(
            model, tokenizer(text, text_pair, max_length=task.max_length)
        )
        return {"is_next": tf.nn.softmax(raw)[:, 0]}

    return {
        "serving_default": _over_texts(answer, ["text", "text_pair"]),
        "tokens": serving_graph.tokens_signature(model),
    }


def _over_texts(answer: Any, names: list[str]) -> Any:
    """`answer` as a signature over `text`, or over `text` and `text_pair`."""
    if len(names) == 1:

        @serving_graph.signature(serving_graph.text_inputs("text"))
        def single(text):
            return answer(text)

        return single

    @serving_graph.signature(serving_graph.text_inputs("text", "text_pair"))
    def pair(text, text_pair):
        return answer(text, text_pair)

    return pair
