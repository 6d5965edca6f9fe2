"""The random numbers: the documented algorithm in NumPy, and how evenly they fall."""

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from tfllm.generation import random


def reference_mix(x):
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
        x = x ^ (x >> np.uint32(shift))
        x = (x * np.uint64(factor)).astype(np.uint32) if factor != 1 else x
    return x


def reference_bits(seed, row, position):
    seed, row, position = (
        np.asarray(n).astype(np.int64).astype(np.uint32) for n in (seed, row, position)
    )
    first = reference_mix(seed ^ np.uint32(0x9E3779B9))
    return reference_mix(reference_mix(first ^ row) ^ position)


def test_known_numbers():
    """Any other implementation must give these."""
    cases = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (2**31 - 1, 7, 12345), (42, 3, 1023)]
    seed, row, position = np.array(cases, np.int32).T
    assert random.bits(seed, row, position).numpy().tolist() == KNOWN
    assert random.uniform(seed, row, position).numpy().tolist() == [n >> 2 for n in KNOWN]


KNOWN = [2488251732, 3112853886, 3330041933, 3002921059, 3015544032, 2895528797]


def test_the_graph_equals_the_documented_algorithm():
    draw = np.random.default_rng(0)
    seed, row, position = draw.integers(-(2**31), 2**31, (3, 10000), dtype=np.int64).astype("int32")
    got = tf.function(random.bits)(seed, row, position).numpy()
    np.testing.assert_array_equal(got, reference_bits(seed, row, position))


def test_arguments_broadcast():
    got = random.bits(3, np.arange(2, dtype="int32")[:, None], np.arange(5, dtype="int32")[None])
    assert got.shape == (2, 5)
    np.testing.assert_array_equal(
        got.numpy(), reference_bits(3, np.arange(2)[:, None], np.arange(5)[None])
    )


@pytest.mark.parametrize("varied", ["seed", "row", "position"])
def test_numbers_are_even_and_independent(varied):
    """Counting up any one of the three, as generation does, gives unrelated numbers."""
    count = 200_000
    counters = {"seed": 5, "row": 0, "position": 0, varied: np.arange(count, dtype="int32")}
    numbers = random.uniform(**counters).numpy()
    cells = np.bincount(numbers >> 20, minlength=1024)
    assert 0.001 < stats.chisquare(cells).pvalue < 0.999
    # Pairs of neighbours fall evenly on a grid, and so does each of the lowest bits.
    for lag in (1, 2, 7):
        pairs = (numbers[:-lag] >> 25) * 32 + (numbers[lag:] >> 25)
        assert 0.0005 < stats.chisquare(np.bincount(pairs, minlength=1024)).pvalue
        assert abs(np.corrcoef(numbers[:-lag], numbers[lag:])[0, 1]) < 0.01
    for bit in range(30):
        ones = ((numbers >> bit) & 1).sum()
        assert abs(ones - count / 2) < 4.5 * (count / 4) ** 0.5


def test_streams_of_neighbouring_seeds_and_rows_are_unlike():
    position = np.arange(50_000, dtype="int32")
    streams = [random.uniform(s, r, position).numpy() for s in (0, 1, 2) for r in (0, 1)]
    correlation = np.corrcoef(streams) - np.eye(len(streams))
    assert np.abs(correlation).max() < 0.02
    # Two streams share about as many numbers as chance has it (2.3 of 50,000), and in other places.
    shared = len(np.intersect1d(streams[0], streams[1]))
    assert shared < 12


def test_below_is_exact():
    draw = np.random.default_rng(1)
    number = np.concatenate([draw.integers(0, 2**30, 10000), [0, 2**30 - 1, 2**30 - 1, 32767]])
    total = np.concatenate([draw.integers(1, 2**30 + 1, 10000), [1, 2**30, 1, 2**30]])
    got = tf.function(random.below)(number.astype("int32"), total.astype("int32")).numpy()
    np.testing.assert_array_equal(got, number * total >> 30)
