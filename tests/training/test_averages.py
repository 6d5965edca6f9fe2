"""Moving averages of the weights."""

import keras
import numpy as np
import tensorflow as tf

from tfllm.training.optimizers import WeightAverages, decay_at


def test_averages_follow_the_weights_by_the_formula():
    weight = keras.Variable(np.array([1.0, -2.0], np.float32), name="w")
    averages = WeightAverages([weight], momentum=0.5)
    expected = np.array([1.0, -2.0])
    update = tf.function(averages.update)
    for step in range(1, 12):
        weight.assign(weight.numpy() + step)
        update(tf.constant(step))
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight.numpy()
    np.testing.assert_allclose(averages.values[0].numpy(), expected, rtol=1e-6)
    assert float(decay_at(0.5, 100)) == 0.5 and float(decay_at(0.5, 1)) < 0.2


def test_weights_are_the_averages_inside_and_themselves_again_after():
    weight = keras.Variable(np.float32([0.1, 0.2]), name="w")
    averages = WeightAverages([weight], momentum=0.9)
    weight.assign([3.0, 1 / 3])
    before = weight.numpy()
    with averages.swapped_in():
        np.testing.assert_array_equal(weight.numpy(), np.float32([0.1, 0.2]))
    np.testing.assert_array_equal(weight.numpy(), before)
