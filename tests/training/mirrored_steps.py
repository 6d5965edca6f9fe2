"""Steps on two devices against steps on one; run as a program, because devices are set up once.

Prints a JSON object from the name of each function below to "" or the traceback of its failure.
"""

import json
import traceback

import keras
import numpy as np
import tensorflow as tf

from tests.training import test_model as steps
from tfllm.tasks import losses
from tfllm.training.distribution import strategies
from tfllm.training.model import fold_replica_into_dropout
from tfllm.training.recipe import TrainSettings

DEVICES = 2


def compared(settings, **options):
    """Train on one device and on two: the same weights and logs."""
    one, history_of_one = steps.trained(steps.compiled(settings, **options))
    with strategies.choose("mirrored").strategy.scope():
        model = steps.compiled(settings, **options)
    two, history_of_two = steps.trained(model)
    steps.close(one, two)
    np.testing.assert_allclose(history_of_one["loss"], history_of_two["loss"], rtol=1e-5)
    norms = [history["gradient_norm"] for history in (history_of_one, history_of_two)]
    np.testing.assert_allclose(*norms, rtol=1e-4)


def whole_batches():
    compared(TrainSettings(learning_rate=0.01, warmup=0, clip_norm=0.05))


def micro_batches():
    compared(TrainSettings(learning_rate=0.01, warmup=0, clip_norm=0.05, accumulate=2))


def ignored_targets():
    """They fall on one device more than on the other; all others count alike."""
    x, y = steps.batch()
    y[:5] = -100
    before, steps.batch = steps.batch, lambda size: (x, y)
    try:
        settings = TrainSettings(learning_rate=0.01, warmup=0, accumulate=2)
        compared(settings, loss=losses.CrossEntropy())
    finally:
        steps.batch = before


def dropped(strategy):
    """The outputs of two dropout steps on every device."""
    with strategy.scope():
        layer = keras.layers.Dropout(0.5, seed=3)
        model = keras.Sequential([keras.Input((64,)), layer])
    assert fold_replica_into_dropout(model) == 1
    step = tf.function(lambda: strategy.run(lambda: model(tf.ones((1, 64)), training=True)))
    return [
        values.numpy() for _ in range(2) for values in strategy.experimental_local_results(step())
    ]


def dropout_masks():
    """Devices drop different elements, the first those of a single device; and not by chance."""
    single, again = dropped(tf.distribute.get_strategy())
    strategy = strategies.choose("mirrored").strategy
    masks = dropped(strategy)
    np.testing.assert_array_equal(masks[0], single)
    np.testing.assert_array_equal(masks[2], again)
    assert not any(np.array_equal(masks[i], masks[j]) for i in range(4) for j in range(i))
    assert all(np.array_equal(a, b) for a, b in zip(masks, dropped(strategy), strict=True))


CLAIMS = (whole_batches, micro_batches, ignored_targets, dropout_masks)


def main():
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration()] * DEVICES
    )
    results = {}
    for claim in CLAIMS:
        try:
            claim()
            results[claim.__name__] = ""
        except Exception:
            results[claim.__name__] = traceback.format_exc()
    print(json.dumps(results))


if __name__ == "__main__":
    main()
