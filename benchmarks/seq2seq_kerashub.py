"""New tokens per second after sources: KerasHub's BartSeq2SeqLM.generate, other random weights."""

from __future__ import annotations

import generation
import keras
import keras_hub
import numpy as np
import seq2seq
import tensorflow as tf
import workload


def main() -> None:
    options = seq2seq.arguments()
    tf.config.threading.set_intra_op_parallelism_threads(options.threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    keras.utils.set_random_seed(1)
    backbone = keras_hub.models.BartBackbone(
        vocabulary_size=seq2seq.VOCABULARY_SIZE,
        num_layers=seq2seq.SHAPE["encoder_layers"],
        num_heads=seq2seq.SHAPE["encoder_attention_heads"],
        hidden_dim=seq2seq.SHAPE["d_model"],
        intermediate_dim=seq2seq.SHAPE["encoder_ffn_dim"],
        max_sequence_length=seq2seq.SHAPE["max_position_embeddings"],
        dropout=0.0,
    )
    model = keras_hub.models.BartSeq2SeqLM(backbone, preprocessor=None)
    beam = keras_hub.samplers.BeamSampler(num_beams=options.beams)
    model.compile(sampler=beam if options.beams > 1 else "greedy")

    def call(sources: list[list[int]]) -> list[list[int]]:
        ids = np.asarray(sources, np.int32)
        written = np.full([len(ids), seq2seq.NEW_TOKENS + 1], seq2seq.PAD, np.int32)
        written[:, 0] = seq2seq.END  # what a target of BART begins with
        mask = np.zeros_like(written)
        mask[:, 0] = 1
        inputs = {
            "encoder_token_ids": ids,
            "encoder_padding_mask": np.ones_like(ids),
            "decoder_token_ids": written,
            "decoder_padding_mask": mask,
        }
        found = model.generate(inputs, stop_token_ids=None)
        return np.asarray(found["decoder_token_ids"])[:, 1:].tolist()

    sources = seq2seq.sources(options.batch_size)
    workload.report(
        runner="keras_hub",
        precision=options.precision,
        **generation.rate(call, sources, options.repeats, seq2seq.NEW_TOKENS),
        keras=keras.__version__,
        keras_hub=keras_hub.__version__,
    )


if __name__ == "__main__":
    main()
