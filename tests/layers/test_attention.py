"""Attention equals Keras' own layer, and its mask can be made small for int8 models."""

import keras
import numpy as np
import pytest

from tfllm.layers.attention import MultiHeadAttention, set_mask_constant

HEADS, WIDTH, LENGTH = 2, 8, 5
MASK = np.array([[[1, 1, 1, 0, 0]], [[1, 1, 1, 1, 1]]], bool)


@pytest.fixture
def states():
    return np.random.default_rng(0).normal(size=(2, LENGTH, WIDTH)).astype("float32")


def test_equals_the_layer_of_keras(states):
    ours = MultiHeadAttention(HEADS, WIDTH // HEADS)
    theirs = keras.layers.MultiHeadAttention(HEADS, WIDTH // HEADS)
    ours(states, states), theirs(states, states)
    theirs.set_weights(ours.get_weights())
    got = ours(states, states, attention_mask=MASK)
    want = theirs(states, states, attention_mask=MASK)
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_padding_changes_nothing_by_default(states):
    layer = MultiHeadAttention(HEADS, WIDTH // HEADS)
    whole = layer(states, states, attention_mask=MASK)
    short = layer(states[:1, :3], states[:1, :3], attention_mask=MASK[:1, :, :3])
    np.testing.assert_allclose(whole[:1, :3], short, atol=1e-6)


@pytest.mark.parametrize(("constant", "seen"), [(-1e9, 0.0), (-20.0, 1e-9), (0.0, 0.1)])
def test_the_constant_says_how_much_of_a_masked_position_is_seen(states, constant, seen):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((None, WIDTH))
    mask = keras.Input((None, None), dtype="bool")
    layer = MultiHeadAttention(HEADS, WIDTH // HEADS)
    outputs = layer(inputs, inputs, attention_mask=mask, return_attention_scores=True)
    model = keras.Model([inputs, mask], outputs)
    set_mask_constant(model, constant)
    _, weights = model([states, MASK])
    largest = float(np.max(weights[0, :, :, 3:]))
    assert largest == 0.0 if seen == 0.0 else seen / 30 < largest < seen * 30


def test_an_empty_row_gives_numbers(states):
    layer = MultiHeadAttention(HEADS, WIDTH // HEADS)
    got = layer(states, states, attention_mask=np.zeros((2, 1, LENGTH), bool))
    assert np.isfinite(got).all()
