"""Measuring a model on the validation data: outputs row by row, loss, and measures by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from keras import tree

from tfllm.data.batching import Batches
from tfllm.errors import SettingError, did_you_mean
from tfllm.tasks import metric_directions
from tfllm.tasks.base import Task
from tfllm.tasks.features import IGNORED, Features
from tfllm.tasks.metric_directions import Direction
from tfllm.tasks.metrics import metrics_of_outputs
from tfllm.training.recipe import EvaluateSettings
from tfllm.training.texts import Texts

# From (task, answers, examples) to named measures; nested ones and texts are left out.
Measure = Callable[[Task, list[dict[str, Any]], Sequence[dict[str, Any]]], dict[str, Any]]

# Measures by name; None where the data leaves one undefined, such as the AUC of a single class.
Measured = dict[str, float | None]

NAMING_EXAMPLES = 8  # that are answered to find the names of the measures


class Validation:
    """The validation examples, ready to be measured again and again.

    `measure` computes more than the task's own Keras metrics do (F1, correlations); the command
    line passes that of `tfllm.evaluation`. `texts` writes texts that are measured by it.
    """

    def __init__(
        self,
        task: Task,
        examples: Sequence[dict[str, Any]],
        tokenizer: Any,
        batch_size: int,
        measure: Measure | None = None,
        seed: int = 0,
        texts: Texts | None = None,
    ):
        self.task, self.examples = task, examples
        self.texts = texts
        self.measure = None if task.vocabulary_outputs else measure
        self.tokenizer = tokenizer
        self.features = task.for_epoch(task.load_features(examples, tokenizer), seed, 0)
        group = self.features.group
        self.batches = Batches(
            self.features.lengths,
            self.features.units,
            max(1, batch_size // group),
            shuffle=False,
            source_lengths=self.features.source_lengths,
        ).epoch(0)
        self._step: Any = None

    def __call__(self, model: Any) -> Measured:
        """`loss` and every measure by name; None for what these data leave undefined."""
        task, features = self.task, self.features
        loss, metrics = task.loss(), task.metrics()
        outputs: list[Any] = [None] * len(features)
        losses: list[float] = []
        weights: list[int] = []
        step = self.predict(model)
        for batch in self.batches:
            arrays, targets = features.batch(batch.rows, batch.length)
            got = step({name: arrays[name] for name in input_names(model)})
            parts = tree.flatten(loss.parts(targets, got))
            losses.append(float(sum(map(float, parts))))
            counted = [np.count_nonzero(target != IGNORED) for target in tree.flatten(targets)]
            weights.append(int(sum(counted)))
            for metric, target, output in metrics_of_outputs(metrics, targets, got):
                metric.update_state(target, output)
            if self.measure is not None:
                for row, output in zip(batch.rows, by_row(got, features), strict=True):
                    outputs[row] = output
        measured = {"loss": _mean(losses, weights)}
        measured |= {metric.name: _result(metric) for metric in tree.flatten(metrics)}
        if self.texts is not None and self.texts.settings.generate:
            measured |= numbers(self.texts.while_training())
        if self.measure is not None:
            answers = task.answers(outputs, features)
            measured |= numbers(self.measure(task, answers, self.examples))
        return measured

    def names(self, model: Any) -> list[str]:
        """The names of the measures, found on a few examples."""
        names = ["loss", *(metric.name for metric in tree.flatten(self.task.metrics()))]
        if self.texts is not None and self.texts.settings.generate:
            names += self.texts.names()
        if self.measure is None:
            return names
        few = self.examples[:NAMING_EXAMPLES]
        features = self.task.for_epoch(self.task.features(few, self.tokenizer))
        inputs, _ = features.batch(range(len(features)))
        outputs = self.predict(model)({name: inputs[name] for name in input_names(model)})
        answers = self.task.answers(list(by_row(outputs, features)), features)
        return [*names, *numbers(self.measure(self.task, answers, few))]

    def predict(self, model: Any) -> Any:
        """A compiled function from inputs {name: [B, T]} (pairs: [B, 2, T]) to outputs."""
        if hasattr(model, "predictor"):  # of Keras on JAX
            self._step = self._step or model.predictor()
            return self._step
        if self._step is None:
            signature = {
                name: tf.TensorSpec([None, *array.shape[1:-1], None], tf.int32)
                for name, array in model.input.items()
            }
            self._step = tf.function(
                lambda inputs: model(inputs, training=False), input_signature=[signature]
            )
        return self._step


def by_row(outputs: Any, features: Features) -> np.ndarray:
    """The outputs of a batch, one of each row: [B, ...], or of groups [B, group, ...]."""
    array = np.asarray(outputs)
    return array if features.group == 1 else array.reshape(-1, *array.shape[2:])


def input_names(model: Any) -> list[str]:
    """The inputs that a functional model asks for."""
    return list(model.input)


def numbers(measured: Mapping[str, Any]) -> Measured:
    """The measures that are one number, or would be if they were defined."""
    return {
        name: None if value is None else finite(value)
        for name, value in measured.items()
        if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))
    }


def finite(value: float) -> float | None:
    """The number; None for NaN and infinity, which are no measurements and no JSON."""
    return float(value) if math.isfinite(value) else None


def direction(settings: EvaluateSettings, known: Sequence[str] = ()) -> Direction:
    """Whether `evaluate.best` is maximized or minimized: the measure's own direction, else
    `evaluate.direction`.

    `known`: measures that are suggested for an unknown name. Raises SettingError for a measure
    without a direction and for one that has another than the recipe says.
    """
    best, given = settings.best or "loss", settings.direction
    own = metric_directions.direction(best)
    if own and given and own != given:
        raise SettingError(
            f"evaluate.direction is {given}, but {best} is a measure to {own}. Remove the key."
        )
    if own or given:
        return own or given  # type: ignore[return-value]
    if known and best not in known:
        raise SettingError(f"evaluate.best: no measure '{best}'. {did_you_mean(best, known)}")
    raise SettingError(
        f"evaluate.best: it is not known whether a high or a low '{best}' is better. "
        "Set evaluate.direction to maximize or minimize."
    )


def is_better(direction: Direction, value: float | None, best: float | None) -> bool:
    """Whether `value` improves on `best`. An undefined one is never better."""
    if value is None or math.isnan(value):
        return False
    if best is None:
        return True
    return value < best if direction == "minimize" else value > best


def _mean(losses: Sequence[float], weights: Sequence[int]) -> float | None:
    """The mean over the targets; None without any."""
    total = sum(weights)
    if not total:
        return None
    return finite(sum(loss * n for loss, n in zip(losses, weights, strict=True) if n) / total)


def _result(metric: Any) -> float | None:
    """The result of a Keras metric; None where it has counted nothing."""
    count = getattr(metric, "count", None)
    return None if count is not None and float(count) == 0 else finite(float(metric.result()))
