"""Fine-tuning examples per second of tfllm: a recipe through `tfllm.training.run.train`.

The whole run is measured as a user has it, metrics.jsonl and TensorBoard included; the clock starts
after the warm-up steps, as for the others.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
import clocks
import keras
import tensorflow as tf
import workload

from tfllm import config
from tfllm.training.recipe import Recipe
from tfllm.training.run import train


def main() -> None:
    options = workload.arguments()
    tf.config.threading.set_intra_op_parallelism_threads(options.threads)
    tf.config.threading.set_inter_op_parallelism_threads(options.threads)
    work = workload.training(options)
    model = {"model": {"from": options.model}}
    if options.base:
        model = {"model": {"family": "bert"}, "tokenizer": {"path": str(workload.vocabulary())}}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "train.tsv"
        rows = (f"{text}\t{label}" for text, label in zip(work.texts, work.labels, strict=True))
        data.write_text("sentence\tlabel\n" + "\n".join(rows) + "\n", encoding="utf-8")
        recipe = config.build(
            {
                "name": "benchmark",
                **model,
                "task": {
                    "kind": "classification",
                    "labels": ["0", "1"],
                    "max_length": work.max_length,
                },
                "data": {"train": str(data), "columns": {"text": "sentence", "label": "label"}},
                "train": {
                    "epochs": 1,
                    "batch_size": work.batch_size,
                    "learning_rate": 2e-5,
                    "precision": options.precision,
                    "kernels": options.kernels,
                },
            },
            Recipe,
        )
        clock = clocks.Clock(work.warm_up_steps)
        train(recipe, Path(folder) / "run", progress=False, callbacks=[clock])
    workload.report(
        runner="tfllm" if options.kernels == "auto" else f"tfllm {options.kernels}",
        precision=options.precision,
        **workload.speed(work, *clock.seconds()),
        last_loss=sum(clock.losses[-20:]) / 20,
        keras=keras.__version__,
        tensorflow=tf.__version__,
    )


if __name__ == "__main__":
    main()
