"""Warnings, before training, about settings and data that are valid but probably a mistake."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal

import numpy as np

from tfllm.errors import DataError, SettingError
from tfllm.tasks import Features, Task
from tfllm.tasks.features import ClassWeights
from tfllm.tasks.losses import ordered_class_weights
from tfllm.training.optimizers import warmup_steps
from tfllm.training.recipe import TrainSettings

log = logging.getLogger(__name__)


def warn_of_warmup(settings: TrainSettings, steps: int) -> None:
    """Warn of a warm-up that does not end before the run does.

    Args:
        settings: `train` of the recipe.
        steps: Steps of the run.
    """
    rise = warmup_steps(settings.warmup, steps)
    if rise >= steps:
        highest = settings.learning_rate * (steps - 1) / rise
        log.warning(
            "train.warmup is %d steps, but the run has %d: the learning rate ends at %.2e and "
            "never reaches train.learning_rate (%.2e). Lower train.warmup, or give a part of the "
            "steps, such as 0.06.",
            rise, steps, highest, settings.learning_rate,
        )  # fmt: skip


def check_targets(
    task: Task,
    features: Features,
    class_weights: Literal["balanced"] | ClassWeights = None,
) -> None:
    """Warn of training targets that are all the same.

    Args:
        task: The task.
        features: The training rows.
        class_weights: `train.class_weights`.

    Raises:
        DataError: The task has one label only: with a single output nothing is learned.
        SettingError: All labels that occur have the weight 0 (`train.class_weights`).
    """
    labels: tuple[str, ...] = getattr(task, "labels", ())
    problem = getattr(task, "problem", "")
    if features.targets is None or (not labels and problem != "regression"):
        return
    if problem in ("multi_label", "regression"):
        first = np.asarray(features.targets[0])
        if all(np.array_equal(first, target) for target in features.targets):
            _warn(len(features), _describe(first, labels, problem))
        return
    if len(labels) == 1:
        raise DataError(
            f"All training data has the label '{labels[0]}', so there is nothing to learn. "
            "Check data.columns, or name the other labels in task.labels."
        )
    targets = np.concatenate([np.ravel(target) for target in features.targets])
    present = np.unique(targets[targets >= 0])
    if len(present) == 1:
        _warn(len(features), f"the label '{labels[int(present[0])]}'")
    known = None if class_weights == "balanced" else class_weights
    weights = ordered_class_weights(known, labels)
    if weights is not None and not any(weights[label] for label in present):
        raise SettingError(
            "train.class_weights: all labels that the training data has weigh 0, so nothing would "
            "be learned. Give one of them a positive weight."
        )


def _describe(target: np.ndarray, labels: Sequence[str], problem: str) -> str:
    if problem == "regression":
        return f"the number {target.tolist()}"
    chosen = [f"'{name}'" for name, on in zip(labels, target, strict=True) if on]
    return f"the labels {', '.join(chosen)}" if chosen else "no label"


def _warn(count: int, what: str) -> None:
    log.warning(
        "all %d training examples have %s: a model trained on them predicts nothing else. Check "
        "data.columns and the files.",
        count, what,
    )  # fmt: skip
