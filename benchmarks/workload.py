"""The work that every runner does, so that the columns of a table are comparable.

Every runner is a script of its own (torch and TensorFlow cannot share a process) that prints one
JSON line. It imports nothing of tfllm unless it measures tfllm.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import platform
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

BATCH_SIZE = 32
TRAINING_EXAMPLES = 3200  # one hundred steps
WARM_UP_EXAMPLES = 640  # graphs, kernels and allocators are ready after twenty steps
MAX_LENGTH = 128
LANGUAGE_STEPS, LANGUAGE_WARM_UP_STEPS = 100, 20  # of 12 rows of 64 tokens

# BERT-base at 16 rows of 128 tokens, none of them padding: WikiText-2's validation text in pieces.
BASE_BATCH_SIZE, BASE_LENGTH, BASE_STEPS, BASE_WARM_UP_STEPS = 16, 128, 12, 3
BASE_CHARACTERS = 1200  # of a piece: more than 128 word pieces


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", help="a Hugging Face or tfllm directory")
    parser.add_argument(
        "--base", action="store_true", help="BERT-base's shape with random weights, 16 x 128"
    )
    parser.add_argument("--artifact", help="a SavedModel or .tflite file, for inference")
    parser.add_argument("--precision", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="for training")
    parser.add_argument("--kernels", default="auto", help="of tfllm's training")
    options = parser.parse_args()
    if options.base:
        options.batch_size = BASE_BATCH_SIZE
    elif not options.model:
        parser.error("give --model, or --base")
    return options


@dataclass(frozen=True)
class Training:
    """What is trained on, and for how long."""

    texts: list[str]
    labels: list[int]
    batch_size: int
    warm_up_steps: int
    max_length: int

    @property
    def measured_steps(self) -> int:
        """All but those before, and the last one, in which a run writes its state."""
        return len(self.texts) // self.batch_size - self.warm_up_steps - 1

    @property
    def measured_texts(self) -> int:
        return self.measured_steps * self.batch_size


def training(options: argparse.Namespace) -> Training:
    """SST-2 for a fine-tuned MiniLM, or whole rows of WikiText-2 for BERT-base."""
    if options.base:
        count = (BASE_WARM_UP_STEPS + BASE_STEPS + 1) * BASE_BATCH_SIZE
        texts = wikitext()[:count]
        labels = [index % 2 for index in range(count)]
        return Training(texts, labels, BASE_BATCH_SIZE, BASE_WARM_UP_STEPS, BASE_LENGTH)
    texts, labels = sst2(WARM_UP_EXAMPLES + TRAINING_EXAMPLES + options.batch_size)
    warm_up = WARM_UP_EXAMPLES // options.batch_size
    return Training(texts, labels, options.batch_size, warm_up, MAX_LENGTH)


def speed(work: Training, wall: float, cpu: float) -> dict[str, float]:
    """Examples, and where no row has padding tokens, per second of the clock and of the CPU."""
    values = {
        "examples_per_second": work.measured_texts / wall,
        "examples_per_cpu_second": work.measured_texts / cpu,
    }
    if work.max_length == BASE_LENGTH and work.batch_size == BASE_BATCH_SIZE:
        tokens = work.measured_texts * work.max_length
        values = {"tokens_per_second": tokens / wall, "tokens_per_cpu_second": tokens / cpu}
    return values


def vocabulary() -> Path:
    """BERT-base's word pieces."""
    return Path(os.environ["TFLLM_DATA"]) / "tokenizers" / "bert_base_uncased_vocab.txt"


def wikitext() -> list[str]:
    """WikiText-2's validation text in pieces of BASE_CHARACTERS characters."""
    path = Path(os.environ["TFLLM_DATA"]) / "wikitext2" / "valid.tokens.txt.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        text = " ".join(file.read().split())
    starts = range(0, len(text) - BASE_CHARACTERS, BASE_CHARACTERS)
    return [text[start : start + BASE_CHARACTERS] for start in starts]


def sst2(count: int, seed: int = 1) -> tuple[list[str], list[int]]:
    """`count` shuffled sentences of SST-2 with labels; the project's reviews without TFLLM_DATA."""
    folder = os.environ.get("TFLLM_DATA")
    if folder:
        with gzip.open(Path(folder) / "sst2" / "train.tsv.gz", "rt", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
        pairs = [(row["sentence"], int(row["label"])) for row in rows]
    else:
        path = Path(__file__).parent.parent / "models" / "bert" / "reviews" / "train.tsv"
        with path.open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
        pairs = [(row["text"], int(row["label"] == "positive")) for row in rows]
    pairs = pairs * -(-count // len(pairs))
    random.Random(seed).shuffle(pairs)
    texts, labels = zip(*pairs[:count], strict=True)
    return list(texts), list(labels)


def rate(
    call: Callable[[list[str]], object], texts: list[str], batch_size: int, seconds: float = 5
):
    """Texts per second of `call` on batches, after a fifth of the time as warm-up; latencies."""
    batches = [texts[i : i + batch_size] for i in range(0, len(texts) - batch_size + 1, batch_size)]
    latencies: list[float] = []
    end = time.perf_counter() + seconds / 5
    for batch in batches:
        call(batch)
        if time.perf_counter() > end:
            break
    start = time.perf_counter()
    done = 0
    while time.perf_counter() - start < seconds:
        before = time.perf_counter()
        call(batches[done % len(batches)])
        latencies.append(time.perf_counter() - before)
        done += 1
    elapsed = time.perf_counter() - start
    latencies.sort()
    return {
        "texts_per_second": done * batch_size / elapsed,
        "p50_milliseconds": 1000 * latencies[len(latencies) // 2],
        "p99_milliseconds": 1000 * latencies[min(len(latencies) - 1, int(len(latencies) * 0.99))],
    }


def report(**values: object) -> None:
    """The runner's one line of result, on stdout."""
    print(json.dumps({"python": platform.python_version(), **values}), file=sys.stdout, flush=True)
