"""Answer spans: which tokens a gold answer has, and the best span of scores."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfllm.errors import DataError
from tfllm.tasks.features import Example, where


def gold_span(example: Example) -> tuple[int, int] | None:
    """Return the first gold answer as characters (start, end) of the context; None for none.

    Where the answer's text is not at its start, its nearest occurrence is taken; the first one
    where no start is given (null).

    Raises:
        DataError: The context does not hold the answer, or a start is no whole number.
    """
    answers = example["answers"]
    texts = answers.get("text") if isinstance(answers, dict) else None
    starts = answers.get("start") if isinstance(answers, dict) else None
    if not isinstance(texts, list | tuple) or not isinstance(starts, list | tuple):
        raise DataError(
            f"{where(example)}the field 'answers' must be "
            '{"text": [...], "start": [...]}, both lists.'
        )
    if not texts or not texts[0]:
        return None
    text, context = str(texts[0]), example["context"]
    start = _start(starts[0], example) if starts else 0
    if not context.startswith(text, start) or start < 0:
        start = _nearest(context, text, start)
    if start < 0:
        raise DataError(
            f"{where(example)}the answer '{text[:60]}' is not in the context. "
            "Correct the line: an answer is an exact part of the context."
        )
    return start, start + len(text)


def tokens_of_span(
    span: tuple[int, int], offsets: np.ndarray, inside: np.ndarray
) -> tuple[int, int]:
    """Return the first and last token of a span; (0, 0) where it is not whole in the window.

    Args:
        span: Characters (start, end) of the context.
        offsets: Characters of each token: int [T, 2].
        inside: Which tokens are of the context: bool [T].
    """
    positions = np.flatnonzero(inside)
    if (
        not len(positions)
        or offsets[positions[0], 0] > span[0]
        or offsets[positions[-1], 1] < span[1]
    ):
        return 0, 0
    touched = positions[(offsets[positions, 0] < span[1]) & (offsets[positions, 1] > span[0])]
    return (int(touched[0]), int(touched[-1])) if len(touched) else (0, 0)


def candidate_spans(
    scores: np.ndarray, inside: np.ndarray, longest: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """List every allowed span of one window.

    Args:
        scores: Logits of start and end: float32 [T, 2].
        inside: Which tokens are of the context: bool [T], without gaps.
        longest: Most tokens of a span.

    Returns:
        Sum of both logits, first token and last token of each span: [N] each.
    """
    positions = np.flatnonzero(inside)
    start, end = scores[positions, 0], scores[positions, 1]
    steps = np.arange(min(longest, len(positions)))
    last = np.arange(len(positions))[:, None] + steps  # [C, L]
    first, step = np.nonzero(last < len(positions))
    last = first + step
    return start[first] + end[last], positions[first], positions[last]


def log_normalizer(windows: Sequence[np.ndarray], inside: Sequence[np.ndarray]) -> float:
    """Compute log(sum(e^start) * sum(e^end)) over the context tokens and [CLS] of all windows.

    Args:
        windows: Logits float32 [T, 2] of each window.
        inside: Which tokens are of the context: bool [T] of each window.
    """
    allowed = np.concatenate(
        [
            scores[np.concatenate([[True], mask[1:]])]
            for scores, mask in zip(windows, inside, strict=True)
        ]
    )
    top = allowed.max(axis=0)
    return float(np.sum(top + np.log(np.exp(allowed - top).sum(axis=0))))


def best_spans(
    windows: Sequence[np.ndarray], details: Sequence[dict[str, Any]], longest: int, count: int
) -> list[dict[str, Any]]:
    """Find the `count` best different spans over all windows of one example.

    Args:
        windows: Logits float32 [T, 2] of each window.
        details: `offsets` [T, 2], `inside` [T] and `context` of each window.
        longest: Most tokens of a span.
        count: Number of spans.

    Returns:
        Answers as `QuestionAnswering.answers` has them, best first.
    """
    spans: dict[tuple[int, int], float] = {}
    for scores, detail in zip(windows, details, strict=True):
        sums, first, last = candidate_spans(scores, detail["inside"], longest)
        # A span is in several windows at most, so that a few more candidates are enough.
        for position in np.argsort(-sums, kind="stable")[: count + len(windows)]:
            span = (
                int(detail["offsets"][first[position], 0]),
                int(detail["offsets"][last[position], 1]),
            )
            spans[span] = max(spans.get(span, -np.inf), float(sums[position]))
    ranked = sorted(spans.items(), key=lambda item: -item[1])[:count]
    context = details[0]["context"]
    return [
        {"answer": context[start:end], "start": start, "end": end, "score": score}
        for (start, end), score in ranked
    ]


def _start(start: Any, example: Example) -> int:
    """The start of an answer; 0 where it is null, as Parquet and pandas (NaN) write it."""
    if start is None or start != start:
        return 0
    try:
        return operator.index(int(start) if float(start) == int(start) else start)
    except (TypeError, ValueError, OverflowError):
        raise DataError(
            f"{where(example)}the answer's start {start!r} is no whole number. Give the character "
            "at which it begins, counted from 0, or null where it is not known."
        ) from None


def _nearest(context: str, text: str, start: int) -> int:
    """The occurrence of `text` nearest to `start`, -1 where there is none."""
    after = context.find(text, max(start, 0))
    before = context.rfind(text, 0, max(start, 0) + len(text))
    occurrences = [position for position in (before, after) if position >= 0]
    return min(occurrences, key=lambda position: abs(position - start), default=-1)
