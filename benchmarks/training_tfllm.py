"""Fine-tuning examples per second of tfllm: a recipe through `tfllm.training.run.train`.

The whole run is measured as a user has it, metrics.jsonl and TensorBoard included; the clock starts
after the warm-up steps, as for the others.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
import keras
import tensorflow as tf
import workload

from tfllm import config
from tfllm.training.recipe import Recipe
from tfllm.training.run import train


class Clock(keras.callbacks.Callback):
    """Starts after the warm-up steps, stops with the last step (not with the last checkpoint)."""

    def __init__(self, warm_up_steps: int):
        super().__init__()
        self.warm_up_steps, self.start, self.end, self.losses = warm_up_steps, 0.0, 0.0, []

    def on_train_batch_begin(self, batch, logs=None):
        if batch == self.warm_up_steps:
            self.start = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        self.losses.append(float(logs["loss"]))
        self.end = time.perf_counter()


def main() -> None:
    options = workload.arguments()
    texts, labels = workload.sst2(workload.WARM_UP_EXAMPLES + workload.TRAINING_EXAMPLES)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "train.tsv"
        rows = (f"{text}\t{label}" for text, label in zip(texts, labels, strict=True))
        data.write_text("sentence\tlabel\n" + "\n".join(rows) + "\n", encoding="utf-8")
        recipe = config.build(
            {
                "name": "benchmark",
                "model": {"from": options.model},
                "task": {
                    "kind": "classification",
                    "labels": ["0", "1"],
                    "max_length": workload.MAX_LENGTH,
                },
                "data": {"train": str(data), "columns": {"text": "sentence", "label": "label"}},
                "train": {
                    "epochs": 1,
                    "batch_size": options.batch_size,
                    "learning_rate": 2e-5,
                    "precision": options.precision,
                },
            },
            Recipe,
        )
        clock = Clock(workload.WARM_UP_EXAMPLES // options.batch_size)
        train(recipe, Path(folder) / "run", progress=False, callbacks=[clock])
    seconds = clock.end - clock.start
    workload.report(
        runner="tfllm",
        precision=options.precision,
        examples_per_second=workload.TRAINING_EXAMPLES / seconds,
        last_loss=sum(clock.losses[-20:]) / 20,
        keras=keras.__version__,
        tensorflow=tf.__version__,
    )


if __name__ == "__main__":
    main()
