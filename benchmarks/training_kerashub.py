"""Fine-tuning examples per second of KerasHub: BertTextClassifier.fit under its own preprocessor.

The weights are random in the checkpoint's shape: speed does not depend on them. KerasHub pads to a
fixed length; the shortest that cuts nothing of the workload is used, which favours it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
import clocks
import keras
import keras_hub
import tensorflow as tf
import workload

PADDED_LENGTH = 64  # SST-2's longest training sentence has 66 word pieces, its 99th percentile 39

BASE = {
    "vocab_size": 30522, "num_hidden_layers": 12, "num_attention_heads": 12, "hidden_size": 768,
    "intermediate_size": 3072, "max_position_embeddings": 512,
}  # fmt: skip


def classifier(options):
    """A BertTextClassifier of the checkpoint's shape, or of BERT-base's."""
    bfloat16 = options.precision == "bfloat16"
    keras.config.set_dtype_policy("mixed_bfloat16" if bfloat16 else "float32")
    directory = Path(options.model or "")
    shape = BASE if options.base else json.loads((directory / "config.json").read_text())
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=shape["vocab_size"],
        num_layers=shape["num_hidden_layers"],
        num_heads=shape["num_attention_heads"],
        hidden_dim=shape["hidden_size"],
        intermediate_dim=shape["intermediate_size"],
        max_sequence_length=shape["max_position_embeddings"],
    )
    path = workload.vocabulary() if options.base else directory / "vocab.txt"
    vocabulary = path.read_text(encoding="utf-8").splitlines()
    tokenizer = keras_hub.tokenizers.BertTokenizer(vocabulary, lowercase=True)
    length = workload.BASE_LENGTH if options.base else PADDED_LENGTH
    preprocessor = keras_hub.models.BertTextClassifierPreprocessor(tokenizer, length)
    return keras_hub.models.BertTextClassifier(backbone, 2, preprocessor)


def main() -> None:
    options = workload.arguments()
    tf.config.threading.set_intra_op_parallelism_threads(options.threads)
    tf.config.threading.set_inter_op_parallelism_threads(options.threads)
    work = workload.training(options)
    model = classifier(options)
    model.compile(
        optimizer=keras.optimizers.AdamW(2e-5, weight_decay=0.01, global_clipnorm=1.0),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    clock = clocks.Clock(work.warm_up_steps)
    data = tf.data.Dataset.from_tensor_slices((work.texts, work.labels)).batch(work.batch_size)
    model.fit(data, verbose=0, callbacks=[clock])
    workload.report(
        runner="keras_hub",
        precision=options.precision,
        **workload.speed(work, *clock.seconds()),
        last_loss=clock.losses[-1],
        keras=keras.__version__,
        keras_hub=keras_hub.__version__,
        tensorflow=tf.__version__,
    )


if __name__ == "__main__":
    main()
