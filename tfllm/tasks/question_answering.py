"""The span of a context that answers a question (SQuAD: Rajpurkar et al. 2016, 2018)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from tfllm.errors import DataError
from tfllm.tasks import answer_spans, label_names
from tfllm.tasks.base import Answer, Signatures, Task
from tfllm.tasks.features import (
    ClassWeights,
    Example,
    Features,
    features_from_encodings,
    text_field,
    where,
)

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

    from tfllm.layers.types import ModelConfig
    from tfllm.tasks.huggingface import HuggingFaceHead
    from tfllm.tokenizers.base import Tokenizer
    from tfllm.tokenizers.graph.base import TokenizerGraph


class QuestionAnswering(Task):
    """Start and end scores for every token of every window of the context."""

    head_layers: ClassVar = ("span",)
    label_fields: ClassVar = ("answers",)
    softmax_over: ClassVar = "positions"
    pipelines: ClassVar = ("question-answering",)

    kind: Literal["question_answering"] = "question_answering"
    max_length: int = Field(default=384, ge=8)
    """Tokens of one window: [CLS] question [SEP] part of the context [SEP]."""
    stride: int = Field(default=128, ge=0)
    """Tokens that two windows of one context share."""
    max_answer_length: int = Field(default=30, ge=1)
    """Tokens of the longest answer."""
    no_answer: bool = False
    """Questions may have no answer (SQuAD 2): the score of [CLS] is compared with the best span."""
    no_answer_threshold: float = 0.0
    """How much the raw score of no answer must exceed the best span's."""
    n_best: int = Field(default=1, ge=1)
    """Answers to give; if above 1, all but the best are in `alternatives`."""

    @property
    def required_fields(self) -> tuple[tuple[str, ...], ...]:
        """A question and the text that may hold its answer."""
        return (("question", "context"),)

    @property
    def measure(self) -> str:
        """Exact match and F1."""
        return "span_answers"

    @property
    def headline_metrics(self) -> tuple[str, ...]:
        """F1 of the answers' words."""
        return ("f1",)

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Exact match and F1 of all questions, and of those with and without an answer."""
        parts = ("", "has_answer_", "no_answer_")
        return ("accuracy", *(f"{part}{name}" for part in parts for name in ("exact_match", "f1")))

    @classmethod
    def from_hf(cls, source: HuggingFaceHead) -> QuestionAnswering:
        """Return the task with windows of the default length, or the model's if it is shorter."""
        length = min(cls().max_length, source.max_length)
        return cls(max_length=length, stride=min(cls().stride, length // 3))

    def model(self, backbone: keras.Model, config: ModelConfig) -> keras.Model:
        """Put the span head on a backbone: logits [B, T, 2] of start and end."""
        import keras

        from tfllm.layers import heads

        return keras.Model(backbone.input, heads.span_head(backbone.output, config), name=self.kind)

    def features(
        self, examples: Sequence[Example], tokenizer: Tokenizer, *, targets: bool = True
    ) -> Features:
        """Return a row per window of the context.

        Targets int [2] are the first and last token of the answer; [0, 0], the position of [CLS],
        where the window does not hold the whole answer.
        """
        learn = targets and label_names.have_field(examples, "answers")
        encodings, owners, details, rows = [], [], [], []
        for index, example in enumerate(examples):
            question, context = text_field(example, "question"), text_field(example, "context")
            span = self._gold_span(example) if learn else None
            for encoding in tokenizer.encode_windows(
                question, context, max_length=self.max_length, stride=self.stride
            ):
                offsets = np.asarray(encoding.offsets, np.int32).reshape(-1, 2)
                inside = np.array([number == 1 for number in encoding.sequence_ids])
                encodings.append(encoding)
                owners.append(index)
                details.append({"context": context, "offsets": offsets, "inside": inside})
                position = answer_spans.tokens_of_span(span, offsets, inside) if span else (0, 0)
                rows.append(np.asarray(position, np.int32))
        return features_from_encodings(
            encodings,
            tokenizer,
            example=np.asarray(owners, np.int64),
            details=details,
            targets=rows if learn else None,
        )

    def loss(
        self, label_smoothing: float = 0.0, class_weights: ClassWeights = None
    ) -> keras.losses.Loss:
        """Return half the sum of the start's and the end's cross entropy."""
        from tfllm.tasks import losses

        losses.reject_options(
            self.kind, label_smoothing=label_smoothing, class_weights=class_weights
        )
        return losses.SpanCrossEntropy()

    def metrics(self) -> list[keras.metrics.Metric]:
        """Share of windows with start and end right; exact match and F1 are evaluation's."""
        from tfllm.tasks import metrics

        return [metrics.mean_metric("accuracy", metrics.span_accuracy)]

    def answers(self, outputs: Sequence[np.ndarray], features: Features) -> list[Answer]:
        """Return `{"answer", "start", "end", "score"}` of each example, in characters.

        The best span of all windows has the highest sum of raw start and end score. `start` and
        `end` are characters of the context. `score` is the span's probability under softmaxes over
        the context tokens and [CLS] of all windows. No answer: "", 0, 0.
        """
        rows_of: dict[int, list[int]] = {}
        for row, owner in enumerate(features.example):
            rows_of.setdefault(int(owner), []).append(row)
        return [
            self._answer(
                [
                    np.asarray(outputs[row], np.float32)[: len(features.token_ids[row])]
                    for row in rows
                ],
                [features.details[row] for row in rows],
            )
            for rows in rows_of.values()
        ]

    def answer_from_signature(self, example: Example, outputs: Mapping[str, np.ndarray]) -> Answer:
        """Return the best span."""
        return {
            "answer": outputs["answer"].decode(),  # type: ignore[attr-defined]
            "start": int(outputs["start"]),
            "end": int(outputs["end"]),
            "score": float(outputs["score"]),
        }

    def signatures(self, model: keras.Model, graph_tokenizer: TokenizerGraph) -> Signatures:
        """Return `serving_default`: question, context string[B] -> answer, start, end, score [B].

        start and end are int32 characters (Unicode code points, not bytes) of the context, end
        exclusive; score as `QuestionAnswering.answers` has it. No answer: "", 0, 0. `tokens`:
        logits [B, T, 2].
        """
        import tensorflow as tf

        from tfllm.tasks import answer_spans_graph, serving_graph

        @serving_graph.signature(serving_graph.text_inputs("question", "context"))
        def serve(question: tf.Tensor, context: tf.Tensor) -> dict[str, tf.Tensor]:
            context = serving_graph.replace_invalid_utf8(context)
            rows = graph_tokenizer.windows(
                question, context, max_length=self.max_length, stride=self.stride
            )
            raw = serving_graph.run_model(model, rows)  # [R, T, 2]
            example, inside = rows["example"], rows["starts"] >= 0
            best, first, last = answer_spans_graph.best_spans(
                raw, inside, self.max_answer_length
            )  # [R]
            row, score = answer_spans_graph.best_rows(best, example)  # [B]
            none_score = tf.math.segment_min(tf.reduce_sum(raw[:, 0], axis=-1), example)
            nothing = score <= answer_spans_graph.NEVER
            if self.no_answer:
                nothing |= none_score > score + self.no_answer_threshold
            span = [
                tf.gather_nd(rows[name], tf.stack([row, tf.gather(token, row)], 1))
                for name, token in (("starts", first), ("ends", last))
            ]
            start, end = (tf.where(nothing, 0, position) for position in span)
            logarithm = tf.where(nothing, none_score, score) - answer_spans_graph.log_normalizer(
                raw, inside, example
            )
            return {
                "answer": tf.strings.substr(context, start, end - start, unit="UTF8_CHAR"),
                "start": start,
                "end": end,
                "score": tf.exp(logarithm),
            }

        return {"serving_default": serve, "tokens": serving_graph.tokens_signature(model)}

    def _answer(self, windows: list[np.ndarray], details: list[dict[str, Any]]) -> Answer:
        total = answer_spans.log_normalizer(windows, [detail["inside"] for detail in details])
        ranked = answer_spans.best_spans(windows, details, self.max_answer_length, self.n_best)
        nothing = {"answer": "", "start": 0, "end": 0}
        none_score = min(float(scores[0].sum()) for scores in windows)
        if not ranked:
            ranked = [{**nothing, "score": none_score}]
        elif self.no_answer and none_score > ranked[0]["score"] + self.no_answer_threshold:
            ranked = [{**nothing, "score": none_score}, *ranked][: self.n_best]
        for answer in ranked:
            answer["score"] = float(np.exp(answer["score"] - total))
        more = {"alternatives": ranked[1:]} if self.n_best > 1 else {}
        return {**ranked[0], **more}

    def _gold_span(self, example: Example) -> tuple[int, int] | None:
        span = answer_spans.gold_span(example)
        if span is None and not self.no_answer:
            raise DataError(
                f"{where(example)}the question has no answer, and task.no_answer is false. "
                "Remove the line, or set task.no_answer: true."
            )
        return span
