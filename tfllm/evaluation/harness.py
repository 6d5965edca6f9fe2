"""Measure a predictor, of a checkpoint or of an exported file, with the metrics of its task."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tfllm import machine
from tfllm.errors import ArtifactError, DataError, SettingError
from tfllm.evaluation.metrics import headline, measure_of
from tfllm.evaluation.metrics import measure as compute
from tfllm.evaluation.span_answers import Language
from tfllm.evaluation.text_to_text import Tokenize
from tfllm.runtimes.protocols import BATCH_SIZE, Example, Prediction, Predictor, Progress
from tfllm.tasks import Task

__all__ = ["Measured", "evaluate", "headline", "measured_answers", "report"]


@dataclass(frozen=True)
class Measured:
    """Measures of one model on some examples, and the answers that they were made from."""

    metrics: dict[str, Any]
    answers: list[Prediction]
    examples: Sequence[Example]
    seconds: float  # of answering: tokenizing included, loading not


def evaluate(
    predictor: Predictor,
    examples: Sequence[Example],
    *,
    batch_size: int = BATCH_SIZE,
    progress: Progress | None = None,
    language: Language | None = None,
    stride: int | None = None,
    measure: Literal["all", "last_word"] | None = None,
    tokenize: Tokenize | None = None,
    truncate: bool | None = None,
    generation: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Measure a model, of any runtime, on examples with labels.

    Args:
        predictor: A checkpoint, SavedModel or TFLite file that is open.
        examples: Dicts of fields, with the task's `label_fields`.
        batch_size: Examples that are answered at once.
        progress: Called with the number of examples done since the last call.
        language: Span answers: the rules "en" (SQuAD) or "zh" (CMRC); unset, found per example.
        stride: Language models: tokens by which the window moves; unset, half of it.
        measure: Language models: all tokens, or the last word of every text (LAMBADA).
        tokenize: Generated texts: sacrebleu's tokenizer for BLEU; unset, zh or 13a.
        truncate: Generated texts: whether sources that are too long are cut; unset, as the task.
        generation: Generated texts: fields of GenerationConfig that replace the model's own.

    Returns:
        Metrics by name, see MEASURES; None for what the examples leave undefined.

    Raises:
        DataError: An example has no labels.
        SettingError: An option is set that models of this task have no use for.
    """
    return measured_answers(
        predictor,
        examples,
        batch_size=batch_size,
        progress=progress,
        language=language,
        stride=stride,
        measure=measure,
        tokenize=tokenize,
        truncate=truncate,
        generation=generation,
    ).metrics


def measured_answers(
    predictor: Predictor,
    examples: Sequence[Example],
    *,
    batch_size: int = BATCH_SIZE,
    progress: Progress | None = None,
    language: Language | None = None,
    stride: int | None = None,
    measure: Literal["all", "last_word"] | None = None,
    tokenize: Tokenize | None = None,
    truncate: bool | None = None,
    generation: Mapping[str, Any] | None = None,
) -> Measured:
    """Measure as `evaluate` does, and return the answers and the time too.

    Args:
        predictor: The model.
        examples: Dicts with the task's `label_fields`.
        batch_size: Examples that the model is given at once.
        progress: Called as examples are done, with how many.
        language: Of span answers.
        stride: Tokens by which a language model's window moves; None: half of it.
        measure: "all" tokens of a language model, or the "last_word" of every text.
        tokenize: How BLEU divides texts.
        truncate: Whether too long sources are truncated; None: as the task says.
        generation: Fields of GenerationConfig, for models that generate.

    Raises:
        DataError: There are no examples, or one cannot be measured.
        SettingError: An option is not for this task.
    """
    task = predictor.task
    if not examples:
        raise DataError("There are no examples to measure on. Give a file with at least one.")
    collect = COLLECT[task.evaluated_on]
    if getattr(examples, "corpus", None) is not None and collect is not _masked_tokens:
        raise DataError(
            f"A prepared corpus is text alone, and a model for {task.kind.replace('_', ' ')} is "
            "measured on examples. Name a file of them."
        )
    check_labels(examples, task)
    options = {
        "language": language,
        "stride": stride,
        "measure": measure,
        "tokenize": tokenize,
        "truncate": truncate,
        "generation": generation or None,
    }
    options = {name: value for name, value in options.items() if value is not None}
    _check_options(options, task)
    start = time.perf_counter()
    answers = collect(predictor, examples, batch_size, progress, **_accepted(collect, options))
    seconds = time.perf_counter() - start
    metrics = compute(task, answers, examples, **_accepted(measure_of(task), options))
    if hasattr(predictor, "generation_config"):
        metrics["generation"] = predictor.generation_config(**(generation or {})).model_dump(
            mode="json", exclude_defaults=True
        )
    return Measured(metrics, answers, examples, seconds)


def check_labels(examples: Sequence[Example], task: Task) -> None:
    """Check that examples have what the task is measured on.

    Args:
        examples: The examples.
        task: The model's task.

    Raises:
        DataError: A field is missing, or a label is not known; the message names file and line.
    """
    for example in examples:
        for field in task.label_fields:
            if example.get(field) is None:
                raise DataError(
                    f"{example.get('_where', 'example')}: the field '{field}' is missing, without "
                    f"which a model for {task.kind.replace('_', ' ')} cannot be measured. Name its "
                    f"column: --set columns.{field}=NAME."
                )
        task.check_label(example)


def check_generation(options: Mapping[str, Any], task: Task) -> None:
    """Check that options of generated texts are for a task that generates from sources.

    Args:
        options: Options by name.
        task: The model's task.

    Raises:
        SettingError: It is no such task.
    """
    if options and COLLECT[task.evaluated_on] is not _generations:
        raise SettingError(
            f"{next(iter(options))} is for models that write texts after sources, and this one is "
            f"for {task.kind.replace('_', ' ')}. Leave it out"
            + (", or use tfllm generate." if task.generates else ".")
        )


def _check_options(options: Mapping[str, Any], task: Task) -> None:
    """Raises SettingError for an option that models of the task have no use for."""
    for function in (COLLECT[task.evaluated_on], measure_of(task)):
        accepted = _accepted(function, options)
        options = {name: value for name, value in options.items() if name not in accepted}
    for name, value in options.items():
        if name in ("generation", "truncate"):
            check_generation(value if name == "generation" else {name: value}, task)
        raise SettingError(
            f"evaluate: a model for {task.kind.replace('_', ' ')} has no option '{name}'. "
            "Leave it out."
        )


def _accepted(function: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are parameters of a function."""
    names = inspect.signature(function).parameters
    return {name: value for name, value in options.items() if name in names}


def report(measured: Measured, *, model: str, data: str) -> dict[str, Any]:
    """Return the JSON that `tfllm evaluate --output` writes.

    Args:
        measured: The result.
        model: The model's path.
        data: The file's path.
    """
    return {
        "metrics": measured.metrics,
        "examples": len(measured.examples),
        "seconds": round(measured.seconds, 3),
        "model": model,
        "data": data,
        "versions": machine.versions(),
    }


def _predictions(
    predictor: Predictor, examples: Sequence[Example], batch_size: int, progress: Progress | None
) -> list[Prediction]:
    return predictor.predict(examples, batch_size, progress)


def _masked_tokens(
    predictor: Predictor, examples: Sequence[Example], batch_size: int, progress: Progress | None
) -> list[Prediction]:
    masked_token_log_probs = getattr(predictor, "masked_token_log_probs", None)
    if masked_token_log_probs is None:
        raise ArtifactError(
            "A masked language model is measured on masked tokens, which a file that takes text "
            "cannot be given. Measure the checkpoint that it was exported from."
        )
    return masked_token_log_probs(examples, batch_size, progress)


def _log_probs(
    predictor: Predictor,
    examples: Sequence[Example],
    batch_size: int,
    progress: Progress | None,
    stride: int | None = None,
    measure: str = "all",
) -> list[Prediction]:
    """Log-probabilities of the tokens of every text."""
    scored = getattr(predictor, "score", None)
    if scored is None:
        raise ArtifactError(
            "This file writes texts and gives no log-probabilities. Measure the checkpoint that it "
            "was exported from, or a SavedModel with the signature 'score'."
        )
    options = {} if stride is None else {"stride": stride}
    return scored(
        examples,
        batch_size,
        progress,
        **options,
        **({} if measure == "all" else {"measure": measure}),
    )


def _generations(
    predictor: Predictor,
    examples: Sequence[Example],
    batch_size: int,
    progress: Progress | None,
    truncate: bool | None = None,
    generation: Mapping[str, Any] | None = None,
) -> list[Prediction]:
    """Texts and, where the model can score them, log-probabilities of the targets."""
    options = {**(generation or {}), **({} if truncate is None else {"truncate": truncate})}
    answers = predictor.predict(examples, batch_size, progress, **options)
    scored = getattr(predictor, "score", None)
    if scored is None:
        return answers
    return [a | b for a, b in zip(answers, scored(examples, batch_size), strict=True)]


# What a model gives for measuring, by `Task.evaluated_on`.
COLLECT: dict[str, Callable[..., list[Prediction]]] = {
    "predictions": _predictions,
    "masked_tokens": _masked_tokens,
    "log_probs": _log_probs,
    "generations": _generations,
}
