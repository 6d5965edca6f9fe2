"""The order of an RMS norm's products changes nothing but where its scale stands."""

import keras
import numpy as np
import pytest

from tfllm.layers.normalization import RMSNormalization

SHAPE = (3, 5, 64)
# Two products in another order round twice: two units in the last place of each precision.
TOLERANCES = {"float32": 2.0**-22, "bfloat16": 2.0**-6, "float16": 2.0**-9}


def both(policy, epsilon=1e-6):
    """Keras' own layer and ours, with the gains of a real model."""
    made = [
        kind(epsilon=epsilon, dtype=policy, name="norm")
        for kind in (keras.layers.RMSNormalization, RMSNormalization)
    ]
    for layer in made:
        layer.build(SHAPE)
        draw = np.random.default_rng(0)
        layer.scale.assign(draw.uniform(-1.0, 200.0, SHAPE[-1]))
    return made


@pytest.mark.parametrize("policy", [*TOLERANCES, "mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("size", [1e-4, 1.0, 1e3])
def test_it_is_keras_own(policy, size):
    x = np.random.default_rng(1).normal(0.0, size, SHAPE).astype("float32")
    x[0, 0] = 0.0  # padding
    theirs, ours = both(policy)
    x = keras.ops.cast(x, theirs.compute_dtype)
    wanted, found = theirs(x), ours(x)
    assert found.dtype == wanted.dtype
    precision = policy.removeprefix("mixed_")
    np.testing.assert_allclose(
        np.asarray(keras.ops.cast(found, "float32")),
        np.asarray(keras.ops.cast(wanted, "float32")),
        rtol=TOLERANCES[precision],
    )


def test_it_has_keras_variables_and_is_read_again():
    theirs, ours = both("float32", epsilon=1e-3)
    assert [v.path for v in ours.variables] == [v.path for v in theirs.variables]
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(ours))
    assert type(again) is RMSNormalization and again.get_config() == ours.get_config()
    again = RMSNormalization.from_config(ours.get_config())
    again.build(SHAPE)
    again.scale.assign(ours.scale)
    x = np.random.default_rng(2).normal(size=SHAPE).astype("float32")
    np.testing.assert_array_equal(again(x), ours(x))


def test_a_small_row_is_not_lost_in_half_precision():
    """x**2 of a row below float16's smallest number would be 0 there, and so would the mean."""
    _, ours = both("float16", epsilon=1e-12)
    x = np.full(SHAPE, 1e-4, "float16")
    found = np.asarray(ours(x), "float32")
    np.testing.assert_allclose(found, np.broadcast_to(ours.scale, SHAPE), rtol=0.01, atol=1e-2)
