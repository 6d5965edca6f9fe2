"""Measuring a model on the validation data while it trains: loss, metrics, generated texts."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from tfllm.checkpoints import store
from tfllm.checkpoints.store import Checkpoint
from tfllm.data.batching import Batches
from tfllm.errors import SettingError, did_you_mean
from tfllm.generation.seq2seq_generator import Seq2SeqGenerator, predict_targets
from tfllm.tasks import metric_directions
from tfllm.tasks.base import Answer, Task
from tfllm.tasks.features import IGNORED, Example, Features
from tfllm.tasks.metric_directions import Direction
from tfllm.tasks.metrics import metrics_of_outputs
from tfllm.tokenizers.base import Tokenizer
from tfllm.training import directory as files
from tfllm.training.initial_model import InitialModel
from tfllm.training.recipe import EvaluateSettings

# From (task, answers, examples) to metrics by name; nested ones and texts are left out.
Measure = Callable[[Task, list[Answer], Sequence[Example]], dict[str, Any]]

# Metrics by name; None where the data leaves one undefined, such as the AUC of a single class.
Metrics = dict[str, float | None]

NAMING_EXAMPLES = 8  # examples that are predicted to find the names of the metrics


class Validation:
    """The validation examples as features and batches, to measure a model again and again."""

    def __init__(
        self,
        task: Task,
        examples: Sequence[Example],
        tokenizer: Tokenizer,
        batch_size: int,
        measure: Measure | None = None,
        seed: int = 0,
        texts: GeneratedTexts | None = None,
    ):
        """Prepare features and batches.

        Args:
            task: The task, which has loss, metrics and answers.
            examples: The validation examples.
            tokenizer: The model's tokenizer.
            batch_size: Rows per batch.
            measure: Computes more than the task's own Keras metrics do (F1, correlations), such as
                `tfllm.evaluation.metrics.measure`.
            seed: Of what a task draws, such as masked tokens.
            texts: Generates texts that are measured too.
        """
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

    def __call__(self, model: keras.Model) -> Metrics:
        """Measure a model: `loss` and every metric by name, None for undefined ones."""
        task, features = self.task, self.features
        loss, metrics = task.loss(), task.metrics()
        outputs: list[Any] = [None] * len(features)
        losses: list[float] = []
        weights: list[int] = []
        step = self.predict(model)
        for batch in self.batches:
            arrays, targets = features.batch(batch.rows, batch.length)
            batch_outputs = step({name: arrays[name] for name in input_names(model)})
            parts = tree.flatten(loss.parts(targets, batch_outputs))
            losses.append(float(sum(map(float, parts))))
            counts = [np.count_nonzero(target != IGNORED) for target in tree.flatten(targets)]
            weights.append(int(sum(counts)))
            for metric, target, output in metrics_of_outputs(metrics, targets, batch_outputs):
                metric.update_state(target, output)
            if self.measure is not None:
                for row, output in zip(batch.rows, by_row(batch_outputs, features), strict=True):
                    outputs[row] = output
        results = {"loss": _mean(losses, weights)}
        results |= {metric.name: _result(metric) for metric in tree.flatten(metrics)}
        if self.texts is not None and self.texts.settings.generate:
            results |= numbers(self.texts.while_training())
        if self.measure is not None:
            answers = task.answers(outputs, features)
            results |= numbers(self.measure(task, answers, self.examples))
        return results

    def names(self, model: keras.Model) -> list[str]:
        """Return the names of the metrics, found on a few examples."""
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

    def predict(self, model: keras.Model) -> Any:
        """Compile a function from inputs {name: [B, T]} (groups: [B, group, T]) to outputs."""
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
    """Return the outputs of a batch, one of each row.

    Args:
        outputs: [B, ...], or [B, group, ...].
        features: The rows, which may come in groups.

    Returns:
        [B * group, ...].
    """
    array = np.asarray(outputs)
    return array if features.group == 1 else array.reshape(-1, *array.shape[2:])


def input_names(model: keras.Model) -> list[str]:
    """Return the names of a functional model's inputs."""
    return list(model.input)


def numbers(results: Mapping[str, Any]) -> Metrics:
    """Return the metrics that are one number, or would be if they were defined."""
    return {
        name: None if value is None else finite(value)
        for name, value in results.items()
        if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))
    }


def finite(value: float) -> float | None:
    """Return the number; None for NaN and infinity, which are no results and no JSON."""
    return float(value) if math.isfinite(value) else None


def direction(settings: EvaluateSettings, known: Sequence[str] = ()) -> Direction:
    """Return whether `evaluate.best` is maximized or minimized.

    Args:
        settings: Their `direction` counts for metrics that tfllm does not know.
        known: Metrics that are suggested for an unknown name.

    Returns:
        "maximize" or "minimize".

    Raises:
        SettingError: The metric has no direction, or another than the recipe says.
    """
    best, declared = settings.best or "loss", settings.direction
    own = metric_directions.direction(best)
    if own and declared and own != declared:
        raise SettingError(
            f"evaluate.direction is {declared}, but {best} is a measure to {own}. Remove the key."
        )
    if own or declared:
        return own or declared  # type: ignore[return-value]
    if known and best not in known:
        raise SettingError(f"evaluate.best: no measure '{best}'. {did_you_mean(best, known)}")
    raise SettingError(
        f"evaluate.best: it is not known whether a high or a low '{best}' is better. "
        "Set evaluate.direction to maximize or minimize."
    )


def is_better(direction: Direction, value: float | None, best: float | None) -> bool:
    """Return whether a value improves on the best one; an undefined one never does.

    Args:
        direction: "maximize" or "minimize".
        value: The value.
        best: The best value so far; None: there is none.
    """
    if value is None or math.isnan(value):
        return False
    if best is None:
        return True
    return value < best if direction == "minimize" else value > best


def _mean(losses: Sequence[float], weights: Sequence[int]) -> float | None:
    """The mean loss over the targets; None without any."""
    total = sum(weights)
    if not total:
        return None
    return finite(sum(loss * n for loss, n in zip(losses, weights, strict=True) if n) / total)


def _result(metric: keras.metrics.Metric) -> float | None:
    """The result of a Keras metric; None where it has counted nothing."""
    count = getattr(metric, "count", None)
    return None if count is not None and float(count) == 0 else finite(float(metric.result()))


FINAL_TEXTS = 2000  # validation examples that texts are generated for after training


@dataclasses.dataclass(frozen=True)
class GeneratedTexts:
    """Generates texts of a seq2seq model for validation examples and measures them."""

    initial: InitialModel
    examples: Sequence[Example]
    measure: Measure
    settings: EvaluateSettings

    def generate(self, checkpoint: Checkpoint, count: int) -> dict[str, Any]:
        """Generate and measure texts for some of the examples, evenly spread: files may be sorted.

        Args:
            checkpoint: The model in its present state.
            count: How many examples.

        Returns:
            Metrics by name.
        """
        count = min(count, len(self.examples))
        examples = [self.examples[index * len(self.examples) // count] for index in range(count)]
        generator = Seq2SeqGenerator(checkpoint)  # a new one: it copies weights
        config = generator.generation_config(**self.settings.generation.set_fields())
        batch_size = self.settings.batch_size
        answers = predict_targets(generator, examples, config, truncate=True, batch_size=batch_size)
        return self.measure(checkpoint.task, answers, examples)

    def while_training(self) -> dict[str, Any]:
        """Measure texts for `evaluate.generate` examples, of the model as it is now."""
        current = dataclasses.replace(self.initial.checkpoint, model=self.initial.model)
        return self.generate(current, self.settings.generate or 0)

    def after_training(self, directory: Path) -> dict[str, Any]:
        """Measure texts for at most FINAL_TEXTS examples, of the run's checkpoint."""
        started = time.monotonic()
        results = self.generate(store.load(directory / files.CHECKPOINT), FINAL_TEXTS)
        results.pop("samples", None)
        return {
            **results,
            "generation": self.settings.generation.set_fields(),
            "examples": min(FINAL_TEXTS, len(self.examples)),
            "seconds": round(time.monotonic() - started, 1),
        }

    def names(self) -> list[str]:
        """Return the names of the metrics of texts, found on a text of one letter."""
        results = self.measure(self.initial.task, [{"text": "a"}], self.examples[:1])
        return [name for name, value in results.items() if isinstance(value, float)]


def generated_texts(
    initial: InitialModel,
    examples: Sequence[Example],
    measure: Measure | None,
    settings: EvaluateSettings,
) -> GeneratedTexts | None:
    """Prepare generated texts; None where the task has none or the recipe turns them off.

    Args:
        initial: The model that is trained.
        examples: The validation examples.
        measure: Measures texts; None: no texts are generated.
        settings: `evaluate` of the recipe.
    """
    if (
        initial.task.generates != "target"
        or getattr(initial.task, "objective", None)
        or measure is None
        or settings.generate == 0
        or keras.backend.backend() != "tensorflow"
    ):
        return None
    return GeneratedTexts(initial, examples, measure, settings)
