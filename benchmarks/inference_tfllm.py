"""Texts per second from string to label: a tfllm artifact.

A SavedModel is called as TF Serving calls it, text in and label out; a .tflite file goes through
the same predictor as `tfllm predict`, tokenizer included.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
import tensorflow as tf
import tensorflow_text  # noqa: F401  (registers the tokenizer's ops)
import workload


def savedmodel(directory: str):
    """`serving_default` of the newest version."""
    newest = max((name for name in os.listdir(directory) if name.isdigit()), key=int)
    model = tf.saved_model.load(os.path.join(directory, newest))
    signature = model.signatures["serving_default"]
    return lambda batch: signature(text=tf.constant(batch))["label"].numpy()


def tflite(path: str, batch_size: int):
    from tfllm.runtimes.opening import open_model

    predictor = open_model(path)
    return lambda batch: predictor.predict(
        [{"text": text} for text in batch], batch_size=batch_size
    )


def main() -> None:
    options = workload.arguments()
    texts, _ = workload.sst2(2000)
    is_tflite = os.path.exists(os.path.join(options.artifact, "model.tflite"))
    call = (
        tflite(options.artifact, options.batch_size) if is_tflite else savedmodel(options.artifact)
    )
    workload.report(
        runner=f"tfllm {os.path.basename(options.artifact.rstrip('/'))}",
        batch_size=options.batch_size,
        **workload.rate(call, texts, options.batch_size),
        tensorflow=tf.__version__,
    )


if __name__ == "__main__":
    main()
