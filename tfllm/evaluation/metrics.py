"""Metrics of every task, over its answers and the examples' gold fields.

The answers are the dicts that `tfllm predict` writes, so the same code measures a checkpoint, a
SavedModel and a TFLite file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tfllm.evaluation.classification import multi_label, regression, single_label
from tfllm.evaluation.embeddings import embeddings
from tfllm.evaluation.entities import entities
from tfllm.evaluation.language_model import language_model
from tfllm.evaluation.masked_tokens import masked_tokens, masked_tokens_and_pairs
from tfllm.evaluation.span_answers import span_answers
from tfllm.evaluation.text_to_text import text_to_text
from tfllm.tasks import Task
from tfllm.tasks.base import Answer, Measure
from tfllm.tasks.features import Example

# By the name that a task gives as its `measure`.
MEASURES: dict[str, Measure] = {
    "single_label": single_label,
    "multi_label": multi_label,
    "regression": regression,
    "entities": entities,
    "span_answers": span_answers,
    "embeddings": embeddings,
    "masked_tokens": masked_tokens,
    "masked_tokens_and_pairs": masked_tokens_and_pairs,
    "language_model": language_model,
    "text_to_text": text_to_text,
}


def measure_of(task: Task) -> Measure:
    """Return the function that measures a task: one of MEASURES, or the task's own."""
    named = task.measure
    return MEASURES[named] if isinstance(named, str) else named


def measure(
    task: Task,
    answers: Sequence[Answer],
    examples: Sequence[Example],
    **options: Any,
) -> dict[str, Any]:
    """Return the metrics of a task's answers; what is no finite number is None: undefined.

    Args:
        task: The task that the answers are of.
        answers: One dict per example, as `tfllm predict` writes them.
        examples: Dicts with the task's `label_fields`.
        **options: Keyword arguments of the task's measure.
    """
    return _defined(measure_of(task)(answers, examples, **task.measure_options, **options))


def headline(task: Task, measured: dict[str, Any]) -> tuple[str, float | None]:
    """Return name and value of the task's headline metric, or ("", None).

    Args:
        task: The task.
        measured: Metrics by name.
    """
    name = next((name for name in task.headline_metrics if name in measured), "")
    return name, measured.get(name)


def _defined(value: Any) -> Any:
    """The same with None for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {name: _defined(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_defined(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
