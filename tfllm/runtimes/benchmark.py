"""How long a model takes from text to answer, and what it needs for it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfllm.errors import InputError
from tfllm.runtimes.predictor import Example, Predictor
from tfllm.tasks import Task

WARM_UP_CALLS = 3
FEWEST_CALLS = 5
SPECIAL_TOKENS = {1: 2, 2: 3}  # texts in a row -> [CLS] and [SEP]s around them
QUESTION_TOKENS = 12
DIFFERENT_BATCHES = 16  # each call gets other texts, so that no cache of words helps


def measure_speed(
    predictor: Predictor, examples: Sequence[Example], batch_size: int, seconds: float
) -> dict[str, Any]:
    """Latency percentiles (ms per call of `batch_size` texts) and throughput.

    Calls go one after another, each with the next `batch_size` of `examples`, for `seconds` and at
    least FEWEST_CALLS times; the WARM_UP_CALLS before are not counted.
    """
    batches = [
        [examples[(start + row) % len(examples)] for row in range(batch_size)]
        for start in range(0, max(len(examples), batch_size), batch_size)
    ]
    for call in range(WARM_UP_CALLS):
        predictor.answers(batches[call % len(batches)], batch_size)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < FEWEST_CALLS or time.perf_counter() < end:
        start = time.perf_counter()
        predictor.answers(batches[len(times) % len(batches)], batch_size)
        times.append(time.perf_counter() - start)
    p50, p90, p99 = (float(value) * 1000 for value in np.percentile(times, (50, 90, 99)))
    return {
        "batch_size": batch_size,
        "calls": len(times),
        "p50_ms": round(p50, 3),
        "p90_ms": round(p90, 3),
        "p99_ms": round(p99, 3),
        "texts_per_second": round(len(times) * batch_size / sum(times), 2),
    }


def sample_examples(
    task: Task, vocabulary: Sequence[str], length: int, count: int, seed: int = 0
) -> list[Example]:
    """Examples of exactly `length` tokens, special tokens included, of words of the vocabulary.

    A word of the vocabulary is one token; where a letter or sign is not, the row is cut.
    """
    words = [
        token
        for token in vocabulary
        if token.isalpha() and (len(token) > 2 or (token and ord(token[0]) >= 0x4E00))
    ]
    if not words:
        raise InputError(
            "The model's vocabulary has no words to make texts of. Give texts with --input FILE."
        )
    chance = np.random.default_rng(seed)

    def text(tokens: int) -> str:
        return " ".join(chance.choice(words, max(tokens, 1)))

    questions = task.required_fields[0] == ("question", "context")
    pair = questions or task.takes_pair
    free = length - SPECIAL_TOKENS[2 if pair else 1]
    examples = []
    for _ in range(count):
        if questions:
            question = min(QUESTION_TOKENS, free // 2)
            examples.append({"question": text(question), "context": text(free - question)})
        elif pair:
            examples.append({"text": text(free // 2), "text_pair": text(free - free // 2)})
        else:
            examples.append({"text": text(free)})
    return examples


def peak_memory_bytes() -> int:
    """The largest memory that this process ever held (resident set)."""
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
