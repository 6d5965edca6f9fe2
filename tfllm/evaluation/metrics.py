"""Metrics of every task, over its answers and the examples' gold fields.

The answers are the dicts that `tfllm predict` writes, so the same code measures a checkpoint, a
SavedModel and a TFLite file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tfllm.evaluation.classification import multi_label, regression, single_label
from tfllm.evaluation.embedding import embedding
from tfllm.evaluation.language_model import language, perplexity
from tfllm.evaluation.span_answers import question_answering
from tfllm.evaluation.tagging import token_classification
from tfllm.evaluation.text_to_text import text_to_text
from tfllm.tasks import Task
from tfllm.tasks.base import Measure


def masked_lm(answers: Sequence[dict[str, Any]], examples: Sequence[dict[str, Any]]) -> dict:
    """Over the masked tokens: accuracy at 1 and at 5, and perplexity.

    `answers`: {"ranks": [...], "log_probabilities": [...]}, of the right token at every hidden
    position; rank 1 is the best, the logarithm is natural.
    """
    ranks = [rank for answer in answers for rank in answer["ranks"]]
    logs = [value for answer in answers for value in answer["log_probabilities"]]
    if not ranks:
        return {"accuracy_at_1": None, "accuracy_at_5": None, "perplexity": None, "tokens": 0}
    return {
        "accuracy_at_1": sum(rank <= 1 for rank in ranks) / len(ranks),
        "accuracy_at_5": sum(rank <= 5 for rank in ranks) / len(ranks),
        "perplexity": perplexity(-sum(logs) / len(logs)),
        "tokens": len(ranks),
    }


def pretraining(answers: Sequence[dict[str, Any]], examples: Sequence[dict[str, Any]]) -> dict:
    """Those of masked_lm, and next-sentence accuracy over all pairs.

    `answers` as for masked_lm, with {"next_sentence": whether it was right}; one per row.
    """
    right = [answer["next_sentence"] for answer in answers]
    share = sum(right) / len(right) if right else None
    return {**masked_lm(answers, examples), "next_sentence_accuracy": share, "pairs": len(right)}


# By the name that a task gives as its `measure`.
MEASURES: dict[str, Measure] = {
    "single_label": single_label,
    "multi_label": multi_label,
    "regression": regression,
    "entities": token_classification,
    "span_answers": question_answering,
    "embeddings": embedding,
    "masked_tokens": masked_lm,
    "masked_tokens_and_pairs": pretraining,
    "language_model": language,
    "text_to_text": text_to_text,
}


def measure_of(task: Task) -> Measure:
    """The function that measures a task: one of MEASURES, or the task's own."""
    named = task.measure
    return MEASURES[named] if isinstance(named, str) else named


def measure(
    task: Task,
    answers: Sequence[dict[str, Any]],
    examples: Sequence[dict[str, Any]],
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
    """(name, value) of the metric that stands for the task."""
    name = next((name for name in task.headline_metrics if name in measured), "")
    return name, measured.get(name)


def _defined(value: Any) -> Any:
    """The same with None for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {name: _defined(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_defined(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
