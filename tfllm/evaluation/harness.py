"""Opens whatever can answer, and measures it: the same numbers for every kind of file."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tfllm.errors import ArtifactError, DataError, SettingError
from tfllm.evaluation.metrics import headline, measure
from tfllm.runtimes.predictor import BATCH_SIZE, Answer, Example, Predictor, Progress
from tfllm.tasks import Task

__all__ = ["Measured", "evaluate", "headline", "measured_answers", "report"]

# The gold fields of which an example must have the first set, by the task's kind.
GOLD: dict[str, tuple[str, ...]] = {
    "classification": ("label",),
    "next_sentence": ("label",),
    "token_classification": ("words", "tags"),
    "question_answering": ("answers",),
    "embedding": ("text_pair",),
    "masked_lm": (),
    "pretraining": (),
    "causal_lm": (),
    "seq2seq": ("source", "target"),
}

# Tasks that are measured on tokens that are hidden for it.
HIDDEN = ("masked_lm", "pretraining")

# The options of the measures, by the task's kind.
OPTIONS = {
    "question_answering": ("language",),
    "causal_lm": ("measure",),
    "seq2seq": ("tokenize",),
}

PACKAGES = (
    "tfllm", "keras", "tensorflow", "tensorflow-text", "ai-edge-litert", "numpy", "sacrebleu",
    "rouge-score",
)  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """Measures of one model on some examples, and the answers that they were made from."""

    metrics: dict[str, Any]
    answers: list[Answer]
    examples: Sequence[Example]
    seconds: float  # of answering: tokenizing included, loading not


def evaluate(
    predictor: Predictor,
    examples: Sequence[Example],
    *,
    batch_size: int = BATCH_SIZE,
    progress: Progress | None = None,
    **options: Any,
) -> dict[str, Any]:
    """The measures of the predictor's task over examples with gold fields (METRICS has them).

    `options`: `language` for span answers; `stride` and `measure` for language models; `tokenize`
    and `writing` (settings of generation, and `truncate`) for texts after sources. Raises
    DataError for an example without gold fields.
    """
    measured = measured_answers(
        predictor, examples, batch_size=batch_size, progress=progress, **options
    )
    return measured.metrics


def measured_answers(
    predictor: Predictor,
    examples: Sequence[Example],
    *,
    batch_size: int = BATCH_SIZE,
    progress: Progress | None = None,
    **options: Any,
) -> Measured:
    """As `evaluate`, with the answers and the time."""
    task = predictor.task
    if not examples:
        raise DataError("There are no examples to measure on. Give a file with at least one.")
    if getattr(examples, "corpus", None) is not None and task.kind not in HIDDEN:
        raise DataError(
            f"A prepared corpus is text alone, and a model for {task.kind.replace('_', ' ')} is "
            "measured on examples. Name a file of them."
        )
    check_gold(examples, task)
    writing = check_writing(options.get("writing", {}), task)
    start = time.perf_counter()
    if task.kind in HIDDEN:
        answers = _hidden_tokens(predictor, examples, batch_size, progress)
    elif task.kind == "causal_lm":
        given = {name: options[name] for name in ("stride", "measure") if name in options}
        answers = _scored(predictor, examples, batch_size, progress, **given)
    elif task.kind == "seq2seq":
        answers = _written(predictor, examples, batch_size, progress, writing)
    else:
        answers = predictor.answers(examples, batch_size, progress)
    seconds = time.perf_counter() - start
    options = {name: options[name] for name in OPTIONS.get(task.kind, ()) if name in options}
    found = measure(task, answers, examples, **options)
    if hasattr(predictor, "settings"):
        found["generation"] = predictor.settings(**_settings_of(writing)).model_dump(
            mode="json", exclude_defaults=True
        )
    return Measured(found, answers, examples, seconds)


def check_gold(examples: Sequence[Example], task: Task) -> None:
    """Raises DataError, naming file and line, for the first example that cannot be measured."""
    for example in examples:
        for field in GOLD[task.kind]:
            if example.get(field) is None:
                raise DataError(
                    f"{example.get('_where', 'example')}: the field '{field}' is missing, without "
                    f"which a model for {task.kind.replace('_', ' ')} cannot be measured. Name its "
                    f"column: --set columns.{field}=NAME."
                )
        if task.kind == "classification":
            task.target(example)  # type: ignore[attr-defined]  # raises for an unknown label


def check_writing(writing: dict[str, Any], task: Task) -> dict[str, Any]:
    """The settings of writing texts. Raises SettingError for a task that does not take them."""
    if writing and task.kind != "seq2seq":
        raise SettingError(
            f"{next(iter(writing))} is for models that write texts after sources, and this one is "
            f"for {task.kind.replace('_', ' ')}. Leave it out"
            + (", or use tfllm generate." if task.kind == "causal_lm" else ".")
        )
    return writing


def report(measured: Measured, *, model: str, data: str) -> dict[str, Any]:
    """What `tfllm evaluate --output` writes."""
    return {
        "metrics": measured.metrics,
        "examples": len(measured.examples),
        "seconds": round(measured.seconds, 3),
        "model": model,
        "data": data,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a number depends on, where installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _hidden_tokens(
    predictor: Predictor, examples: Sequence[Example], batch_size: int, progress: Progress | None
) -> list[Answer]:
    hidden_tokens = getattr(predictor, "hidden_tokens", None)
    if hidden_tokens is None:
        raise ArtifactError(
            "A masked language model is measured on hidden tokens, which a file that takes text "
            "cannot be given. Measure the checkpoint that it was exported from."
        )
    return hidden_tokens(examples, batch_size, progress)


def _written(
    predictor: Predictor,
    examples: Sequence[Example],
    batch_size: int,
    progress: Progress | None,
    writing: dict[str, Any],
) -> list[Answer]:
    """Texts and, of what can tell it, how likely the targets are."""
    answers = predictor.answers(examples, batch_size, progress, **writing)
    scored = getattr(predictor, "scored", None)
    if scored is None:
        return answers
    return [a | b for a, b in zip(answers, scored(examples, batch_size), strict=True)]


def _settings_of(writing: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in writing.items() if name != "truncate"}


def _scored(
    predictor: Predictor,
    examples: Sequence[Example],
    batch_size: int,
    progress: Progress | None,
    **options: Any,
) -> list[Answer]:
    scored = getattr(predictor, "scored", None)
    if scored is None:
        raise ArtifactError(
            "This file writes texts and does not tell how likely they are. Measure the checkpoint "
            "that it was exported from, or a SavedModel with the signature 'score'."
        )
    return scored(examples, batch_size, progress, **options)
