"""Texts for the examples of a seq2seq task: sources of like length together, empty ones aside."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tfllm.tasks.seq2seq import Seq2Seq, source_of

if TYPE_CHECKING:
    from tfllm.generation.config import GenerationConfig
    from tfllm.generation.seq2seq_generator import TextToText

TOGETHER = 8  # batches that the engine is given at once: rows that end make room for others


def written(
    writer: TextToText,
    examples: Sequence[Mapping[str, Any]],
    settings: GenerationConfig,
    *,
    truncate: bool | None = None,
    batch_size: int = 32,
    progress: Callable[[float], None] | None = None,
) -> list[dict[str, Any]]:
    """One answer per example: `{"text"}`, with `score` where beam search found it, and with
    `candidates`, the same of each, where several are asked for.

    An empty source has the empty text. `truncate` stands for the task's own setting. Raises
    DataError, naming file and line, for a source that is too long.
    """
    task = writer.checkpoint.task
    assert isinstance(task, Seq2Seq)
    answers: list[dict[str, Any]] = [{"text": ""} for _ in examples]
    ids = task.encode_sources(examples, writer.tokenizer, truncate)
    full = [number for number, example in enumerate(examples) if source_of(example).strip()]
    order = sorted(full, key=lambda number: -len(ids[number]))
    writer.engine.max_rows = batch_size * settings.num_beams
    each = settings.num_return_sequences
    for start in range(0, len(order), TOGETHER * batch_size):
        chosen = order[start : start + TOGETHER * batch_size]
        found = writer.continued(
            [ids[number].tolist() for number in chosen],
            settings,
            prompts=[source_of(examples[number]) for number in chosen],
        )
        for place, number in enumerate(chosen):
            answers[number] = _answer(found[place * each : (place + 1) * each])
        if progress:
            progress(len(chosen))
    if progress:
        progress(len(examples) - len(full))
    return answers


def _answer(texts: Sequence[Any]) -> dict[str, Any]:
    each = [
        {"text": text.text} | ({} if text.score is None else {"score": float(text.score)})
        for text in texts
    ]
    return each[0] | ({"candidates": each} if len(each) > 1 else {})
