"""Latency, throughput and memory of prediction and generation."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfllm.errors import InputError
from tfllm.generation.config import GenerationConfig
from tfllm.generation.token_generator import TokenGenerator
from tfllm.runtimes.protocols import Example, Predictor
from tfllm.tasks import Task

WARM_UP_CALLS = 3
MIN_CALLS = 5
SPECIAL_TOKENS = {1: 2, 2: 3}  # texts in a row -> [CLS] and [SEP]s around them
QUESTION_TOKENS = 12
MIN_GENERATION_CALLS = 3
DIFFERENT_BATCHES = 16  # each call gets other texts, so that no cache of words helps


def measure_speed(
    predictor: Predictor, examples: Sequence[Example], batch_size: int, seconds: float
) -> dict[str, Any]:
    """Measure latency percentiles and throughput of a predictor.

    Calls go one after another, each with the next `batch_size` of `examples`, for `seconds` and at
    least MIN_CALLS times; the WARM_UP_CALLS before are not counted.

    Args:
        predictor: The model.
        examples: The inputs, repeated as needed.
        batch_size: Inputs of a call.
        seconds: How long to measure.

    Returns:
        `p50_ms`, `p90_ms` and `p99_ms`, milliseconds per call, and inputs per second.
    """
    batches = [
        [examples[(start + row) % len(examples)] for row in range(batch_size)]
        for start in range(0, max(len(examples), batch_size), batch_size)
    ]
    for call in range(WARM_UP_CALLS):
        predictor.predict(batches[call % len(batches)], batch_size)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < MIN_CALLS or time.perf_counter() < end:
        start = time.perf_counter()
        predictor.predict(batches[len(times) % len(batches)], batch_size)
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


def measure_generation(
    engine: TokenGenerator,
    length: int,
    new_tokens: int,
    batch_size: int,
    seconds: float,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure prefill and decoding apart, in tokens per second, with greedy search.

    Prefill is a call for one token; decoding is what a call for 1 + `new_tokens` takes longer, over
    `new_tokens`. Times are medians of at least MIN_GENERATION_CALLS calls within about `seconds`,
    after one of each that compiles.

    Args:
        engine: The model.
        length: Tokens of a prompt; they are random.
        new_tokens: Tokens to generate. A text that would pass the model's window is made shorter.
        batch_size: Prompts at once.
        seconds: About how long to measure.
        seed: Of the prompts.

    Returns:
        Tokens per second of both, and what was measured.
    """
    limits = engine.limits
    length = min(length, limits.max_sequence_length - 2)
    new_tokens = max(1, min(new_tokens, limits.max_sequence_length - length - 1))
    rng = np.random.default_rng(seed)
    times: dict[int, list[float]] = {1: [], 1 + new_tokens: []}
    end = None
    while end is None or time.perf_counter() < end or len(times[1]) < MIN_GENERATION_CALLS + 1:
        prompts = rng.integers(limits.vocabulary_size, size=(batch_size, length)).tolist()
        for count, durations in times.items():
            start = time.perf_counter()
            engine.generate(prompts, GenerationConfig(max_new_tokens=count))
            durations.append(time.perf_counter() - start)
        end = time.perf_counter() + seconds if end is None else end
    prefill, total = (float(np.median(durations[1:])) for durations in times.values())
    decoding = max(total - prefill, 1e-9)
    return {
        "batch_size": batch_size,
        "prompt_tokens": length,
        "new_tokens": new_tokens,
        "calls": len(times[1]) - 1,
        "first_token_ms": round(1000 * prefill, 3),
        "ms_per_token": round(1000 * decoding / new_tokens, 3),
        "read_tokens_per_second": round(batch_size * length / prefill, 1),
        "written_tokens_per_second": round(batch_size * new_tokens / decoding, 1),
    }


def sample_examples(
    task: Task, vocabulary: Sequence[str], length: int, count: int, seed: int = 0
) -> list[Example]:
    """Make examples of exactly `length` tokens, special tokens included, of vocabulary words.

    A word of the vocabulary is one token; where a letter or sign is not, the row is truncated.

    Args:
        task: The model's task.
        vocabulary: The tokens.
        length: Tokens of an example.
        count: How many examples.
        seed: Of the choice of words.

    Raises:
        InputError: The vocabulary has no words, or the task needs other inputs.
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
    rng = np.random.default_rng(seed)

    def text(tokens: int) -> str:
        return " ".join(rng.choice(words, max(tokens, 1)))

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
    """Return the peak resident set size of this process."""
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
