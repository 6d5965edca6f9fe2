"""The largest numbers by blocks are those of `tf.math.top_k`."""

import numpy as np
import pytest
import tensorflow as tf

from tfllm.generation.blocked_top_k import BLOCK, top_k


@pytest.mark.parametrize("size", [5, BLOCK * 16, BLOCK * 16 + 1, BLOCK * 40, 12345, 128000])
@pytest.mark.parametrize("different", [3, 50, 10**6])
def test_values_and_places_are_those_of_top_k(size, different):
    """Also of few different values, where places decide."""
    dice = np.random.default_rng(size)
    values = tf.constant(dice.integers(0, different, (4, size)).astype("float32") - different)
    count = min(8, size)
    expected = tf.math.top_k(values, count)
    found = top_k(values, count)
    np.testing.assert_array_equal(found[0], expected.values)
    np.testing.assert_array_equal(found[1], expected.indices)


@pytest.mark.parametrize("value", [-1e9, float("-inf"), float(np.finfo("float32").min)])
def test_where_nearly_all_is_impossible_no_place_is_made_up(value):
    values = np.full((2, BLOCK * 20 + 5), value, np.float32)
    values[0, [7, 300]] = 1.0, 2.0
    expected = tf.math.top_k(values, 6)
    found = top_k(tf.constant(values), 6)
    np.testing.assert_array_equal(found[0], expected.values)
    np.testing.assert_array_equal(found[1], expected.indices)
