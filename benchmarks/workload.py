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
from pathlib import Path

BATCH_SIZE = 32
TRAINING_EXAMPLES = 3200  # one hundred steps
WARM_UP_EXAMPLES = 640  # graphs, kernels and allocators are ready after twenty steps
MAX_LENGTH = 128
LANGUAGE_STEPS, LANGUAGE_WARM_UP_STEPS = 100, 20  # of 12 rows of 64 tokens


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True, help="a Hugging Face or tfllm directory")
    parser.add_argument("--artifact", help="a SavedModel or .tflite file, for inference")
    parser.add_argument("--precision", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE)
    return parser.parse_args()


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
