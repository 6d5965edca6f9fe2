"""Keras' own `fit` with the losses and metrics of every task, on one device and on two replicas.

Run as a script, because devices must be divided before TensorFlow starts; prints JSON: for every
case the losses and metrics of both, and the largest difference of the weights.
"""

import json
import sys

import keras
import numpy as np
import tensorflow as tf

from tfllm import tasks

ROWS, LENGTH, WIDTH = 8, 5, 4
LABELS = ("a", "b", "c")


def tokens(chance, hidden=0.5):
    """Targets of which the second half of the rows, the second replica's, has fewer."""
    targets = chance.integers(0, len(LABELS), (ROWS, LENGTH)).astype("int32")
    targets[chance.random(targets.shape) < hidden] = -100
    targets[ROWS // 4 : ROWS // 2, 1:] = -100
    return targets


def cases():
    """Name: (task, shape of a row's input, size of the outputs, targets, options of the loss)."""
    chance = np.random.default_rng(0)
    labels = chance.integers(0, 3, ROWS).astype("int32")
    many = chance.integers(0, 2, (ROWS, 3)).astype("float32")
    numbers = chance.normal(size=ROWS).astype("float32")
    places = chance.integers(0, LENGTH, (ROWS, 2)).astype("int32")
    weights = {"class_weights": [1.0, 3.0, 0.5]}
    single = tasks.Classification(labels=LABELS)
    both = {"tokens": tokens(chance), "next_sentence": labels % 2}
    return {
        "single_label": (single, (WIDTH,), 3, labels, {}),
        "smooth": (single, (WIDTH,), 3, labels, {"label_smoothing": 0.1}),
        "class_weights": (single, (WIDTH,), 3, labels, weights),
        "multi_label": (
            tasks.Classification(labels=LABELS, problem="multi_label"), (WIDTH,), 3, many, weights
        ),
        "regression": (tasks.Classification(problem="regression"), (WIDTH,), 1, numbers, {}),
        "tags": (tasks.TokenClassification(labels=LABELS), (LENGTH, WIDTH), 3, tokens(chance), {}),
        "spans": (tasks.QuestionAnswering(), (LENGTH, WIDTH), 2, places, {}),
        "masked_lm": (tasks.MaskedLM(), (LENGTH, WIDTH), 3, tokens(chance), {}),
        "causal_lm": (tasks.CausalLM(), (LENGTH, WIDTH), 3, tokens(chance, 0.0), {}),
        "seq2seq": (tasks.Seq2Seq(), (LENGTH, WIDTH), 3, tokens(chance), {}),
        "pretraining": (tasks.Pretraining(), (LENGTH, WIDTH), 3, both, {}),
        "negatives": (tasks.Embedding(), (2, WIDTH), 3, np.zeros(ROWS, "int32"), {}),
        "cosines": (tasks.Embedding(score_range=(0, 1)), (2, WIDTH), 3, numbers, {}),
    }  # fmt: skip


def fitted(name, optimizer, weighted=False, epochs=2, batch_size=4):
    """History and weights of a small model after stock `fit`."""
    task, shape, size, targets, options = cases()[name]
    keras.utils.set_random_seed(1)
    inputs = keras.Input(shape)
    outputs = keras.layers.Dense(size, dtype="float32")(inputs)
    if name == "pretraining":
        pairs = keras.layers.Dense(2)(inputs[:, 0])
        outputs = {"tokens": outputs, "next_sentence": pairs}
    model = keras.Model(inputs, outputs)
    model.compile(
        optimizer,
        loss=task.loss(**options),
        weighted_metrics=task.metrics(),
    )
    chance = np.random.default_rng(5)
    x = chance.normal(size=(ROWS, *shape)).astype("float32")
    weights = chance.random(ROWS).astype("float32") if weighted else None
    history = model.fit(
        x, targets, sample_weight=weights, batch_size=batch_size, epochs=epochs, verbose=0,
        shuffle=False,
    ).history  # fmt: skip
    return history, [weight.numpy() for weight in model.weights]


def optimizer_of(name):
    """Of most cases SGD, whose step shows the gradients; of one the project's own."""
    from tfllm.training.optimizers import AdamW

    return (lambda: AdamW(0.05)) if name == "smooth" else lambda: keras.optimizers.SGD(0.5)


def main(names):
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    devices = [device.name for device in tf.config.list_logical_devices("CPU")]
    strategy = tf.distribute.MirroredStrategy(devices)
    found = {}
    for name in names:
        kind = optimizer_of(name)
        one, before = fitted(name, weighted=True, optimizer=kind())
        with strategy.scope():
            two, after = fitted(name, weighted=True, optimizer=kind())
        apart = max(float(np.abs(a - b).max()) for a, b in zip(before, after, strict=True))
        found[name] = {"one": one, "two": two, "apart": apart}
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
