"""Measuring a model on the validation data: outputs row by row, loss, and measures by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfllm.data.batching import Batches
from tfllm.tasks.base import Task
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
        losses, weights = [], []
        step = self.predict(model)
        for batch in self.batches:
            arrays, targets = features.batch(batch.rows, batch.length)
            got = step({name: arrays[name] for name in input_names(model)})
            losses.append(float(loss(targets, got)))
            weights.append(np.count_nonzero(np.asarray(targets) != -100))
            for metric in metrics:
                metric.update_state(targets, got)
            if self.measure is not None:
                for row, output in zip(batch.rows, np.asarray(got), strict=True):
                    outputs[row] = output
        measured = {"loss": float(np.average(losses, weights=weights))}
        measured |= {metric.name: float(metric.result()) for metric in metrics}
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
        names = ["loss", *(metric.name for metric in self.task.metrics())]
        if self.texts is not None and self.texts.settings.generate:
            names += self.texts.names()
        if self.measure is None:
            return names
        few = self.examples[:8]
        features = self.task.for_epoch(self.task.features(few, self.tokenizer))
        inputs, _ = features.batch(range(len(features)))
        outputs = self.predict(model)({name: inputs[name] for name in input_names(model)})
        measured = self.measure(
            self.task, self.task.answers(list(np.asarray(outputs)), features), few
        )
        return names + [name for name, value in measured.items() if value is None or number(value)]

    def predict(self, model: Any) -> Any:
        """A compiled function from inputs {name: [B, T]} to outputs."""
        if hasattr(model, "predictor"):  # of Keras on JAX
            self._step = self._step or model.predictor()
            return self._step
        if self._step is None:
            signature = {name: tf.TensorSpec((None, None), tf.int32) for name in input_names(model)}
            self._step = tf.function(
                lambda inputs: model(inputs, training=False), input_signature=[signature]
            )
        return self._step


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
