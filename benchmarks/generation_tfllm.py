"""New tokens per second: tfllm's engine, greedy, ids in and out."""

from __future__ import annotations

import generation
import keras
import tensorflow as tf
import workload

from tfllm.checkpoints import store
from tfllm.generation import cpu_decoding
from tfllm.generation.config import GenerationConfig
from tfllm.generation.engine import Engine
from tfllm.models.decoder import get_decoder


def main() -> None:
    options = generation.arguments()
    tf.config.threading.set_intra_op_parallelism_threads(options.threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    checkpoint = store.load(options.model)
    made = get_decoder(checkpoint.model, checkpoint.family, checkpoint.config)
    engine = Engine(cpu_decoding.optimize_for_cpu(made, options.precision))
    del checkpoint
    settings = GenerationConfig(max_new_tokens=generation.NEW_TOKENS)

    def call(ids: list[list[int]]) -> list[list[int]]:
        return [result.ids for result in engine.generate(ids, settings)]

    workload.report(
        runner="tfllm engine",
        precision=options.precision,
        **generation.rate(call, generation.prompts(options.batch_size), options.repeats),
        keras=keras.__version__,
        tensorflow=tf.__version__,
    )


if __name__ == "__main__":
    main()
