"""Training tokens per second of tfllm in nanoGPT's CPU setting: models/gpt2/shakespeare.yaml.

The whole run is measured as a user has it, metrics.jsonl and TensorBoard included; the clock starts
after the warm-up steps. CPU seconds of the process, all threads, are told too: other work on the
machine disturbs them less than the clock.
"""

from __future__ import annotations

import argparse
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

RECIPE = Path(__file__).parent.parent / "models" / "gpt2" / "shakespeare.yaml"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=workload.LANGUAGE_STEPS)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--kernels", default="auto")
    options = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(options.threads)
    tf.config.threading.set_inter_op_parallelism_threads(options.threads)
    overrides = [
        f"train.steps={workload.LANGUAGE_WARM_UP_STEPS + options.steps + 1}",
        f"train.precision={options.precision}",
        f"train.kernels={options.kernels}",
        "train.checkpoint_every=null",
        "evaluate={}",
        "data.validation_tail=null",
    ]
    recipe = config.load(RECIPE, Recipe, overrides)
    clock = clocks.Clock(workload.LANGUAGE_WARM_UP_STEPS)
    with tempfile.TemporaryDirectory() as folder:
        train(recipe, Path(folder) / "run", progress=False, callbacks=[clock])
    wall, cpu = clock.seconds()
    tokens = options.steps * recipe.train.batch_size * recipe.task.max_length
    workload.report(
        runner="tfllm",
        precision=options.precision,
        tokens_per_second=tokens / wall,
        tokens_per_cpu_second=tokens / cpu,
        threads=options.threads,
        last_loss=sum(clock.losses[-20:]) / 20,
        keras=keras.__version__,
        tensorflow=tf.__version__,
    )


if __name__ == "__main__":
    main()
