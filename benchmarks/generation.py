"""What the generation runners do: GPT-2's shape (124M), a prompt of 32 tokens, 64 new ones.

    python benchmarks/generation.py --model runs/bench/gpt2      # writes the model: random weights

Weights are random, for speed does not depend on them; every runner reads the same ones. No stop
token is given, so that every row has its 64 tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

PROMPT_TOKENS = 32
NEW_TOKENS = 64
REPEATS = 5
VOCABULARY_SIZE = 50257


def parser() -> argparse.ArgumentParser:
    """The options of every runner."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True, help="the directory of the model")
    parser.add_argument("--artifact", help="the directory of an exported file")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=REPEATS)
    return parser


def arguments() -> argparse.Namespace:
    return parser().parse_args()


def prompts(batch_size: int) -> list[list[int]]:
    """The same ids for every runner."""
    random = np.random.default_rng(1)
    return random.integers(0, VOCABULARY_SIZE, [batch_size, PROMPT_TOKENS]).tolist()


def rate(
    call: Callable[[list[list[int]]], list[list[int]]],
    ids: list[list[int]],
    repeats: int,
    new_tokens: int = NEW_TOKENS,
) -> dict:
    """New tokens per second of wall and of processor time, prompt included; medians of repeats.

    `call` gives the new ids of every row, `new_tokens` each.
    """
    new = call(ids)  # compiles, packs, allocates
    assert [len(row) for row in new] == [new_tokens] * len(ids), [len(row) for row in new]
    walls, processor = [], []
    for _ in range(repeats):
        wall, used = time.perf_counter(), time.process_time()
        call(ids)
        walls.append(time.perf_counter() - wall)
        processor.append(time.process_time() - used)
    tokens = len(ids) * new_tokens
    return {
        "tokens_per_second": tokens / statistics.median(walls),
        "tokens_per_processor_second": tokens / statistics.median(processor),
        "peak_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "first_ids": new[0][:8],
    }


def write_model(directory: Path) -> None:
    """Random weights as a Hugging Face directory, with a tokenizer of its size."""
    import torch
    import transformers

    torch.manual_seed(1)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config())
    model.save_pretrained(directory)
    write_tokenizer(directory, VOCABULARY_SIZE, [], "<|endoftext|>", "GPT2Tokenizer", 1024)


def write_tokenizer(
    directory: Path, size: int, first: list[str], last: str, kind: str, window: int
) -> None:
    """Bytes, and no merges: ids only are measured, but converters and exporters read a vocabulary.

    `first` and `last` are the tokens that have the first ids and the last one.
    """
    import tokenizers

    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    start = [*first, *letters]
    # Names of no meaning up to the vocabulary's size.
    rest = [f"token{number}" for number in range(size - len(start) - 1)]
    vocabulary = {token: number for number, token in enumerate([*start, *rest, last])}
    (directory / "vocab.json").write_text(json.dumps(vocabulary), "utf-8")
    (directory / "merges.txt").write_text("#version: 0.2\n")
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": kind, "model_max_length": window})
    )


if __name__ == "__main__":
    write_model(Path(arguments().model))
