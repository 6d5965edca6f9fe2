"""Keras metrics over the batches of `Features`, for progress lines and the choice of an epoch.

They take `sample_weight`, one per example or one per target, as Keras' `weighted_metrics` gives it.
The full measures of a file (F1, AUC, entities, exact match) are tfllm.evaluation's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras import ops

from tfllm.keras_internals import set_direction
from tfllm.layers.types import Tensor
from tfllm.tasks.features import IGNORED
from tfllm.tasks.losses import align_weights, at_positions, pair_cosines, registered
from tfllm.tasks.metric_directions import direction


class TokenMean(keras.metrics.Metric):
    """The mean of `value` over all targets that are not -100."""

    def __init__(self, name: str, **options: Any):
        super().__init__(name=name, **options)
        self.total = self.add_variable((), "zeros", name="total")
        self.count = self.add_variable((), "zeros", name="count")

    def value(self, targets: Tensor, outputs: Tensor) -> Tensor:
        """Return what is averaged: targets int [...], outputs [..., C] to [...]."""
        raise NotImplementedError

    def update_state(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor = None) -> None:
        """Add a batch.

        Args:
            y_true: Targets int [...], -100 where there is none.
            y_pred: Logits [..., C], or those at positions (see `losses.at_positions`).
            sample_weight: One per example [B] or per target; None: 1.
        """
        y_true, y_pred = at_positions(y_true, y_pred)
        targets = ops.cast(y_true, "int32")
        counts = ops.cast(ops.not_equal(targets, IGNORED), "float32")
        if sample_weight is not None:
            counts = counts * align_weights(sample_weight, counts)
        values = self.value(ops.where(ops.equal(targets, IGNORED), 0, targets), y_pred)
        self.total.assign_add(ops.sum(ops.cast(values, "float32") * counts))
        self.count.assign_add(ops.sum(counts))

    def result(self) -> Tensor:
        """Return the mean; 0 before the first target."""
        return ops.divide_no_nan(self.total, self.count)


@registered
class Accuracy(TokenMean):
    """Share of targets that have the highest score."""

    def __init__(self, name: str = "accuracy", **options: Any):
        super().__init__(name, **options)
        set_direction(self, "up")  # for Keras' EarlyStopping and ModelCheckpoint

    def value(self, targets: Tensor, outputs: Tensor) -> Tensor:
        """Return whether each target has the highest logit."""
        return ops.equal(targets, ops.cast(ops.argmax(outputs, axis=-1), "int32"))


@registered
class Perplexity(TokenMean):
    """e to the mean cross entropy of the targets."""

    def __init__(self, name: str = "perplexity", **options: Any):
        super().__init__(name, **options)
        set_direction(self, "down")

    def value(self, targets: Tensor, outputs: Tensor) -> Tensor:
        """Return the negative log-probability of each target."""
        return ops.sparse_categorical_crossentropy(targets, outputs, from_logits=True)

    def result(self) -> Tensor:
        """Return e to the mean."""
        return ops.exp(super().result())


def mean_metric(name: str, function: Callable[[Tensor, Tensor], Tensor]) -> keras.metrics.Metric:
    """Return a metric that is the mean over examples of a function.

    Args:
        name: The metric's name, which `metric_directions` knows.
        function: (targets, outputs) -> [B]; registered with Keras, so that models can be saved.
    """
    metric = keras.metrics.MeanMetricWrapper(fn=function, name=name)
    set_direction(metric, "up" if direction(name) == "maximize" else "down")
    return metric


@registered
def label_accuracy(targets: Tensor, outputs: Tensor) -> Tensor:
    """Return the share of labels that are predicted right: [B, C], logits [B, C] to [B]."""
    return ops.mean(ops.cast(ops.equal(targets > 0.5, outputs > 0), "float32"), axis=-1)


@registered
def squared_error(targets: Tensor, outputs: Tensor) -> Tensor:
    """Return the squared error: targets [B] or [B, C], outputs [B, 1] or [B, C] to [B]."""
    return ops.mean(ops.square(ops.reshape(targets, ops.shape(outputs)) - outputs), axis=-1)


@registered
def absolute_error(targets: Tensor, outputs: Tensor) -> Tensor:
    """Return the absolute error, in the shapes of `squared_error`."""
    return ops.mean(ops.abs(ops.reshape(targets, ops.shape(outputs)) - outputs), axis=-1)


@registered
def span_accuracy(targets: Tensor, outputs: Tensor) -> Tensor:
    """Return 1 where start and end both have the highest logit: [B, 2], [B, T, 2] to [B]."""
    best = ops.cast(ops.argmax(outputs, axis=1), "int32")
    return ops.cast(ops.all(ops.equal(best, ops.cast(targets, "int32")), axis=-1), "float32")


@registered
def in_batch_accuracy(targets: Tensor, outputs: Tensor) -> Tensor:
    """Return 1 where a pair's own second text is the nearest in the batch: [B, 2, D] to [B]."""
    cosines, own = pair_cosines(outputs)
    nearest = ops.cast(ops.argmax(cosines, axis=-1), "int32")
    return ops.cast(ops.equal(nearest, own), "float32")


def metrics_of_outputs(
    metrics: Any, targets: Tensor, outputs: Tensor
) -> Iterator[tuple[keras.metrics.Metric, Tensor, Tensor]]:
    """Yield every metric of `Task.metrics` with the targets and outputs that it measures.

    Outputs at positions keep all of them beside their tokens.

    Args:
        metrics: A list, or {output: list}.
        targets: Of the batch, by output where `metrics` is so.
        outputs: Of the model, likewise.
    """
    if not isinstance(metrics, dict):
        yield from ((metric, targets, outputs) for metric in metrics)
        return
    for name, metrics_of_output in metrics.items():
        own = outputs if name == "tokens" else outputs[name]
        yield from ((metric, targets[name], own) for metric in metrics_of_output)
