"""New tokens per second after sources: tfllm's engine, ids in and out."""

from __future__ import annotations

import generation
import keras
import seq2seq
import tensorflow as tf
import workload

from tfllm.checkpoints import store
from tfllm.generation import cpu_decoding
from tfllm.generation.config import generation_config
from tfllm.generation.engine import Engine
from tfllm.models.encoder_decoder import get_encoder_decoder


def main() -> None:
    options = seq2seq.arguments()
    tf.config.threading.set_intra_op_parallelism_threads(options.threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    checkpoint = store.load(options.model)
    model = get_encoder_decoder(checkpoint.model, checkpoint.family, checkpoint.config)
    engine = Engine(cpu_decoding.optimize_for_cpu(model, options.precision))
    engine.max_batch_size = options.batch_size * options.beams
    start = [checkpoint.decoder_start_token_id]
    del checkpoint
    settings = generation_config(
        max_new_tokens=seq2seq.NEW_TOKENS,
        min_new_tokens=seq2seq.NEW_TOKENS,
        num_beams=options.beams,
        eos_token_id=(seq2seq.END,),
    )

    def call(sources: list[list[int]]) -> list[list[int]]:
        results = engine.generate([start] * len(sources), settings, sources=sources)
        return [result.ids for result in results]

    sources = seq2seq.sources(options.batch_size)
    workload.report(
        runner="tfllm engine",
        precision=options.precision,
        **generation.rate(call, sources, options.repeats, seq2seq.NEW_TOKENS),
        keras=keras.__version__,
        tensorflow=tf.__version__,
    )


if __name__ == "__main__":
    main()
