"""Rotary positions: turns keep lengths and depend on distances; scalings as published."""

import math

import numpy as np
import pytest

from tfllm.errors import SettingError
from tfllm.layers import rotary

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def test_products_depend_on_the_distance_alone():
    radians, factor = rotary.frequencies(8, 10000.0, None, 64)
    query, key = np.random.default_rng(0).normal(size=(2, 1, 1, 1, 8)).astype("float32")

    def product(first, second):
        turned = [
            np.asarray(
                rotary.rotate(x, *rotary.cos_sin(np.array([[at]], "int32"), radians, factor))
            )
            for x, at in ((query, first), (key, second))
        ]
        return float((turned[0] * turned[1]).sum())

    assert product(3, 1) == pytest.approx(product(13, 11), abs=1e-5)
    assert abs(product(3, 1) - product(3, 2)) > 1e-3
    assert product(5, 5) == pytest.approx(float((query * key).sum()), abs=1e-5)


def test_linear_divides_every_frequency():
    plain, _ = rotary.frequencies(8, 100.0, None, 64)
    scaled, factor = rotary.frequencies(8, 100.0, {"type": "linear", "factor": 4.0}, 64)
    np.testing.assert_allclose(scaled, plain / 4)
    assert factor == 1.0


def test_llama3_keeps_short_waves_and_divides_long_ones():
    plain, _ = rotary.frequencies(8, 500.0, None, 512)
    scaled, _ = rotary.frequencies(8, 500.0, LLAMA3, 512)
    waves = 2 * math.pi / plain
    assert waves[0] < 64 / 4 and scaled[0] == plain[0]
    assert waves[-1] > 64 / 1 and scaled[-1] == pytest.approx(plain[-1] / 8)


def test_yarn_sharpens_attention():
    _, factor = rotary.frequencies(8, 500.0, {"rope_type": "yarn", "factor": 4.0}, 64)
    assert factor == pytest.approx(0.1 * math.log(4) + 1)


def test_longrope_divides_each_frequency_by_its_own_factor():
    scaling = {
        "rope_type": "longrope", "short_factor": [1.0, 2.0, 3.0, 4.0], "long_factor": [9.0] * 4,
        "factor": 4.0, "original_max_position_embeddings": 16,
    }  # fmt: skip
    plain, _ = rotary.frequencies(8, 500.0, None, 16)
    scaled, factor = rotary.frequencies(8, 500.0, scaling, 16)
    np.testing.assert_allclose(scaled, plain / [1, 2, 3, 4], rtol=1e-6)
    assert factor == pytest.approx(math.sqrt(1.5))  # 1 + log(4) / log(16)


def test_the_rest_of_a_partly_rotated_head_stays():
    radians, _ = rotary.frequencies(4, 500.0, None, 16)
    x = np.random.default_rng(0).normal(size=(1, 3, 2, 8)).astype("float32")
    turns = rotary.cos_sin(np.arange(3, dtype="int32")[None], radians)
    rotated = np.asarray(rotary.rotate(x, *turns))
    np.testing.assert_array_equal(rotated[..., 4:], x[..., 4:])
    np.testing.assert_array_equal(rotated[..., :4], np.asarray(rotary.rotate(x[..., :4], *turns)))


@pytest.mark.parametrize(
    ("scaling", "said"),
    [
        ({"rope_type": "llama33"}, "Did you mean 'llama3'"),
        ({"type": "linear"}, "needs the key 'factor'"),
        ({"type": "linear", "factor": "much"}, "no number"),
        ({"rope_type": "longrope"}, "needs the key 'short_factor'"),
        ({"rope_type": "longrope", "short_factor": [1.0]}, "needs the key 'long_factor'"),
        (
            {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]},
            "short_factor has 1 factors, and 4 pairs",
        ),
    ],
)
def test_what_is_not_known_is_refused(scaling, said):
    with pytest.raises(SettingError, match=said):
        rotary.frequencies(8, 100.0, scaling, 64)
