"""Keras metrics over the batches of `Features`, for progress lines and the choice of an epoch.

The full measures of a file (F1, AUC, entities, exact match) are tfllm.evaluation's.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from tfllm.tasks.base import IGNORED
from tfllm.tasks.losses import at_positions, pair_cosines, pretraining_targets


class TokenMean(keras.metrics.Metric):
    """The mean of `value` over all targets that are not -100.

    `of`: which targets of PretrainingLoss, "tokens" or "next_sentence".
    """

    def __init__(self, name: str, of: str | None = None):
        super().__init__(name=name)
        self.of = of
        self.total = self.add_variable((), "zeros", name="total")
        self.count = self.add_variable((), "zeros", name="count")

    def value(self, targets: Any, outputs: Any) -> Any:
        """What is averaged: targets int [...], outputs [..., C] to [...]."""
        raise NotImplementedError

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        if self.of is not None:
            y_true = pretraining_targets(y_true)[self.of]
        if self.of == "next_sentence":
            y_pred = y_pred["next_sentence"]
        else:
            y_true, y_pred = at_positions(y_true, y_pred)
        targets = ops.cast(y_true, "int32")
        counts = ops.cast(ops.not_equal(targets, IGNORED), "float32")
        values = self.value(ops.where(ops.equal(targets, IGNORED), 0, targets), y_pred)
        self.total.assign_add(ops.sum(ops.cast(values, "float32") * counts))
        self.count.assign_add(ops.sum(counts))

    def result(self) -> Any:
        return self.total / ops.maximum(self.count, 1.0)


class Accuracy(TokenMean):
    """Share of targets that have the highest score."""

    def __init__(self, name: str = "accuracy", of: str | None = None):
        super().__init__(name, of)

    def value(self, targets: Any, outputs: Any) -> Any:
        return ops.equal(targets, ops.cast(ops.argmax(outputs, axis=-1), "int32"))


class Perplexity(TokenMean):
    """e to the mean cross entropy of the targets."""

    def __init__(self, name: str = "perplexity", of: str | None = None):
        super().__init__(name, of)

    def value(self, targets: Any, outputs: Any) -> Any:
        return ops.sparse_categorical_crossentropy(targets, outputs, from_logits=True)

    def result(self) -> Any:
        return ops.exp(super().result())


def mean(name: str, function: Any) -> keras.metrics.Metric:
    """The mean over examples of `function(targets, outputs)`."""
    return keras.metrics.MeanMetricWrapper(fn=function, name=name)


def labels_right(targets: Any, outputs: Any) -> Any:
    """Multi-label: per example the share of labels on the right side of 1/2."""
    return ops.mean(ops.cast(ops.equal(targets > 0.5, outputs > 0), "float32"), axis=-1)


def squared_error(targets: Any, outputs: Any) -> Any:
    return ops.square(ops.reshape(targets, ops.shape(outputs)) - outputs)


def absolute_error(targets: Any, outputs: Any) -> Any:
    return ops.abs(ops.reshape(targets, ops.shape(outputs)) - outputs)


def span_right(targets: Any, outputs: Any) -> Any:
    """Per row 1 where start and end both have the highest score: [B, 2], [B, T, 2] to [B]."""
    best = ops.cast(ops.argmax(outputs, axis=1), "int32")
    return ops.cast(ops.all(ops.equal(best, ops.cast(targets, "int32")), axis=-1), "float32")


def partner_found(targets: Any, outputs: Any) -> Any:
    """Per pair 1 where its own second text is the nearest in the batch: [2B, D] to [B]."""
    scores = pair_cosines(outputs)
    own = ops.arange(ops.shape(scores)[0])
    return ops.cast(ops.equal(ops.argmax(scores, axis=-1), ops.cast(own, "int64")), "float32")
