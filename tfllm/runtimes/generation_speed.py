"""How quickly a causal language model reads a prompt and writes after it, in tokens per second."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from tfllm.generation.config import generation_config
from tfllm.generation.engine import Engine

FEWEST_CALLS = 3


def measure(
    engine: Engine, length: int, new_tokens: int, batch_size: int, seconds: float, seed: int = 0
) -> dict[str, Any]:
    """Reading and writing apart, greedy, `batch_size` prompts of `length` random tokens at once.

    Reading is a call for one token; writing is what a call for 1 + `new_tokens` takes longer, over
    `new_tokens`. Times are medians of at least FEWEST_CALLS calls within about `seconds`, after one
    of each that compiles. A text that would pass the model's window is made shorter.
    """
    decoder = engine.decoder
    length = min(length, decoder.max_sequence_length - 2)
    new_tokens = max(1, min(new_tokens, decoder.max_sequence_length - length - 1))
    chance = np.random.default_rng(seed)
    times: dict[int, list[float]] = {1: [], 1 + new_tokens: []}
    end = None
    while end is None or time.perf_counter() < end or len(times[1]) < FEWEST_CALLS + 1:
        prompts = chance.integers(decoder.vocabulary_size, size=(batch_size, length)).tolist()
        for tokens, taken in times.items():
            start = time.perf_counter()
            engine.generate(prompts, generation_config(max_new_tokens=tokens))
            taken.append(time.perf_counter() - start)
        end = time.perf_counter() + seconds if end is None else end
    one, all_tokens = (float(np.median(taken[1:])) for taken in times.values())
    writing = max(all_tokens - one, 1e-9)
    return {
        "batch_size": batch_size,
        "prompt_tokens": length,
        "new_tokens": new_tokens,
        "calls": len(times[1]) - 1,
        "first_token_ms": round(1000 * one, 3),
        "ms_per_token": round(1000 * writing / new_tokens, 3),
        "read_tokens_per_second": round(batch_size * length / one, 1),
        "written_tokens_per_second": round(batch_size * new_tokens / writing, 1),
    }
