"""Heads: what they read and what they leave out."""

import keras
import numpy as np

from tfllm.layers import heads
from tfllm.models import bert


def test_a_classifier_on_the_mean_does_not_see_padding():
    config = bert.Config(vocabulary_size=9, num_layers=1, num_heads=1, hidden_dim=4)
    hidden = np.random.default_rng(0).normal(size=(1, 3, 4)).astype("float32")
    states, mask = keras.Input((None, 4)), keras.Input((None,), dtype="int32")
    model = keras.Model([states, mask], heads.classification_head(states, config, 2, mask))
    padded = np.concatenate([hidden, np.full((1, 2, 4), 7.0, "float32")], axis=1)
    alone = model([hidden, np.ones((1, 3))])
    np.testing.assert_allclose(model([padded, np.array([[1, 1, 1, 0, 0]])]), alone, rtol=1e-6)
    kernel, bias = model.layers[-1].get_weights()
    np.testing.assert_allclose(alone, hidden.mean(1) @ kernel + bias, rtol=1e-5)
