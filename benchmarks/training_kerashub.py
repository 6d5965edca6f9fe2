"""Fine-tuning examples per second of KerasHub: BertTextClassifier.fit under its own preprocessor.

The weights are random in the checkpoint's shape: speed does not depend on them. KerasHub pads to a
fixed length; the shortest that cuts nothing of the workload is used, which favours it.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
import keras
import keras_hub
import tensorflow as tf
import workload

PADDED_LENGTH = 64  # SST-2's longest training sentence has 66 word pieces, its 99th percentile 39


def classifier(directory: str, precision: str):
    """A BertTextClassifier of the checkpoint's shape."""
    keras.config.set_dtype_policy("mixed_bfloat16" if precision == "bfloat16" else "float32")
    shape = json.loads((Path(directory) / "config.json").read_text())
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=shape["vocab_size"],
        num_layers=shape["num_hidden_layers"],
        num_heads=shape["num_attention_heads"],
        hidden_dim=shape["hidden_size"],
        intermediate_dim=shape["intermediate_size"],
        max_sequence_length=shape["max_position_embeddings"],
    )
    vocabulary = (Path(directory) / "vocab.txt").read_text(encoding="utf-8").splitlines()
    tokenizer = keras_hub.tokenizers.BertTokenizer(vocabulary, lowercase=True)
    preprocessor = keras_hub.models.BertTextClassifierPreprocessor(tokenizer, PADDED_LENGTH)
    return keras_hub.models.BertTextClassifier(backbone, 2, preprocessor)


class Clock(keras.callbacks.Callback):
    """Starts after the warm-up steps."""

    def __init__(self, warm_up_steps: int):
        super().__init__()
        self.warm_up_steps, self.start, self.losses = warm_up_steps, 0.0, []

    def on_train_batch_begin(self, batch, logs=None):
        if batch == self.warm_up_steps:
            self.start = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        self.losses.append(float(logs["loss"]))


def main() -> None:
    options = workload.arguments()
    texts, labels = workload.sst2(workload.WARM_UP_EXAMPLES + workload.TRAINING_EXAMPLES)
    model = classifier(options.model, options.precision)
    model.compile(
        optimizer=keras.optimizers.AdamW(2e-5, weight_decay=0.01, global_clipnorm=1.0),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    clock = Clock(workload.WARM_UP_EXAMPLES // options.batch_size)
    data = tf.data.Dataset.from_tensor_slices((texts, labels)).batch(options.batch_size)
    model.fit(data, verbose=0, callbacks=[clock])
    seconds = time.perf_counter() - clock.start
    workload.report(
        runner="keras_hub",
        precision=options.precision,
        examples_per_second=workload.TRAINING_EXAMPLES / seconds,
        last_loss=clock.losses[-1],
        keras=keras.__version__,
        keras_hub=keras_hub.__version__,
        tensorflow=tf.__version__,
    )


if __name__ == "__main__":
    main()
