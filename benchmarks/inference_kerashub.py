"""Texts per second from string to label: a KerasHub classifier's predict, strings in."""

from __future__ import annotations

import keras
import keras_hub
import numpy as np
import tensorflow as tf
import workload
from training_kerashub import classifier


def main() -> None:
    options = workload.arguments()
    texts, _ = workload.sst2(2000)
    model = classifier(options.model, options.precision)
    labels = np.array(["negative", "positive"])

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
    def scores(batch):
        """One graph from strings to logits: faster than `predict`, which is made for data sets."""
        return keras.Model.__call__(model, model.preprocessor(batch))

    workload.report(
        runner="keras_hub",
        precision=options.precision,
        batch_size=options.batch_size,
        **workload.rate(
            lambda batch: labels[np.argmax(scores(tf.constant(batch)), -1)],
            texts,
            options.batch_size,
        ),
        keras=keras.__version__,
        keras_hub=keras_hub.__version__,
        tensorflow=tf.__version__,
    )


if __name__ == "__main__":
    main()
