"""Measuring a model on the validation data: outputs row by row, loss, and measures by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from keras import tree

from tfllm.data.batching import Batches
from tfllm.tasks.base import IGNORED, Features, Task
from tfllm.tasks.metrics import each as of_each
from tfllm.training.texts import Texts

# From (task, answers, examples) to named measures; nested ones and texts are left out.
Measure = Callable[[Task, list[dict[str, Any]], Sequence[dict[str, Any]]], dict[str, Any]]

# Tasks whose outputs are too many to keep: scores of a whole vocabulary for every token.
WHOLE_VOCABULARY = ("masked_lm", "pretraining", "causal_lm", "seq2seq")

# Measures of which less is better end in one of these.
LESS_IS_BETTER = ("loss", "error", "perplexity", "ter")


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
        self.measure = None if task.kind in WHOLE_VOCABULARY else measure
        self.tokenizer = tokenizer
        self.features = task.for_epoch(task.rows(examples, tokenizer), seed, 0)
        group = self.features.group
        self.batches = Batches(
            self.features.lengths,
            self.features.units,
            max(1, batch_size // group),
            shuffle=False,
            source_lengths=self.features.source_lengths,
        ).epoch(0)
        self._step: Any = None

    def __call__(self, model: Any) -> dict[str, float]:
        """`loss` and every measure by name."""
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
            for metric, target, output in of_each(metrics, targets, got):
                metric.update_state(target, output)
            if self.measure is not None:
                for row, output in zip(batch.rows, by_row(got, features), strict=True):
                    outputs[row] = output
        measured = {"loss": float(np.average(losses, weights=weights))}
        measured |= {metric.name: float(metric.result()) for metric in tree.flatten(metrics)}
        if self.texts is not None and self.texts.settings.generate:
            found = self.texts.while_training()
            measured |= {name: float(value) for name, value in found.items() if number(value)}
        if self.measure is not None:
            answers = task.answers(outputs, features)
            found = self.measure(task, answers, self.examples)
            measured |= {name: float(value) for name, value in found.items() if number(value)}
        return measured

    def names(self, model: Any) -> list[str]:
        """The names of the measures, found on a few examples."""
        names = ["loss", *(metric.name for metric in tree.flatten(self.task.metrics()))]
        if self.texts is not None and self.texts.settings.generate:
            names += self.texts.names()
        if self.measure is None:
            return names
        few = self.examples[:8]
        features = self.task.for_epoch(self.task.features(few, self.tokenizer))
        inputs, _ = features.batch(range(len(features)))
        outputs = self.predict(model)({name: inputs[name] for name in input_names(model)})
        answers = self.task.answers(list(by_row(outputs, features)), features)
        measured = self.measure(self.task, answers, few)
        return names + [name for name, value in measured.items() if value is None or number(value)]

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


def number(value: Any) -> bool:
    """Whether a measure is one number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_better(name: str, value: float, best: float | None) -> bool:
    """Whether `value` improves on `best`. Not a number is never better."""
    if np.isnan(value):
        return False
    if best is None:
        return True
    return value < best if name.endswith(LESS_IS_BETTER) else value > best
