"""Megabytes of text per second: tfllm (graph, Python), tokenizers, KerasHub (graph).

All in one process, in turn, on the same batches of 64 lines.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
import keras_hub
import tensorflow as tf
import tokenizers as reference
import workload

from tfllm.tokenizers.loading import load_tokenizer

LINES = 64
ROUNDS = 3


def megabytes_per_second(call: Callable, batches: list) -> float:
    """Best of a few passes over all batches, the first batch run once before."""
    count = sum(len(line.encode()) for batch in batches for line in batch) / 1e6
    call(batches[0])
    passes = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for batch in batches:
            call(batch)
        passes.append(time.perf_counter() - start)
    return count / min(passes)


def main() -> None:
    options = workload.arguments()
    texts, _ = workload.sst2(12800)
    batches = [texts[i : i + LINES] for i in range(0, len(texts), LINES)]
    ours = load_tokenizer(options.model)
    graph = tf.function(
        ours.graph().tokenize, input_signature=[tf.TensorSpec([None], tf.string)], autograph=False
    )
    theirs = reference.Tokenizer.from_file(str(Path(options.model) / "tokenizer.json"))
    hub = keras_hub.tokenizers.BertTokenizer(ours.vocabulary, lowercase=True)
    hub_graph = tf.function(
        hub.call, input_signature=[tf.TensorSpec([None], tf.string)], autograph=False
    )
    rows = {
        "tfllm graph": lambda batch: graph(tf.constant(batch)),
        "tfllm Python": ours.encode_batch,
        "tokenizers encode_batch": theirs.encode_batch,
        "keras_hub graph": lambda batch: hub_graph(tf.constant(batch)),
    }
    for name, call in rows.items():
        workload.report(
            runner=name, megabytes_per_second=megabytes_per_second(call, batches),
            tokenizers=reference.__version__, keras_hub=keras_hub.__version__,
        )  # fmt: skip


if __name__ == "__main__":
    main()
