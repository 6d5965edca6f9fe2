"""The fused kernels against the layers' own forms: values, gradients, dropout's statistics."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfllm.layers import heads
from tfllm.layers.activations import exact_gelu
from tfllm.models import bert
from tfllm.training.acceleration import kernels

# Of the largest value, or of 1: sums of some hundred products, in another order. The gradient of
# the keys' bias is nothing but what such sums leave over.
PROJECTED = {"float32": 1e-5, "bfloat16": 0.05}


def with_gradients(function, *arguments):
    arguments = [tf.convert_to_tensor(argument) for argument in arguments]

    @tf.function
    def run(*arguments):
        with tf.GradientTape() as tape:
            tape.watch(arguments)
            result = function(*arguments)
            total = tf.reduce_sum(tf.cast(result, tf.float32) * upstream)
        return [result, *tape.gradient(total, arguments)]

    upstream = tf.random.stateless_normal(arguments[0].shape, seed=[7, 7])
    return [np.float32(tf.cast(value, tf.float32)) for value in run(*arguments)]


def normal(*shape, scale=2.0):
    return tf.random.stateless_normal(shape, seed=[1, len(shape)]) * scale


@pytest.mark.parametrize("compiled", [False, True])
def test_gelu(compiled):
    ours = with_gradients(lambda x: kernels.gelu(x, compiled), normal(3, 5, 8))
    reference = with_gradients(exact_gelu, normal(3, 5, 8))
    for one, two in zip(ours, reference, strict=True):
        np.testing.assert_allclose(one, two, atol=2e-6)


@pytest.mark.parametrize("compiled", [False, True])
def test_normalization(compiled):
    layer = keras.layers.LayerNormalization(epsilon=1e-12)
    layer.build((None, None, 8))
    x, gamma, beta = normal(3, 5, 8) + 1.0, normal(8) + 1.0, normal(8)

    def reference(x, gamma, beta):
        mean, variance = tf.nn.moments(x, -1, keepdims=True)
        return (x - mean) / tf.sqrt(variance + 1e-12) * gamma + beta

    ours = with_gradients(lambda *a: kernels.normalize(*a, 1e-12, compiled), x, gamma, beta)
    for one, two in zip(ours, with_gradients(reference, x, gamma, beta), strict=True):
        np.testing.assert_allclose(one, two, atol=2e-5)
    layer.gamma.assign(gamma)
    layer.beta.assign(beta)
    np.testing.assert_allclose(ours[0], layer(x), atol=2e-5)


def test_bfloat16_is_as_exact_as_its_output():
    x = tf.cast(normal(64, 32), tf.bfloat16)
    exact = with_gradients(exact_gelu, tf.cast(x, tf.float32))
    ours = with_gradients(kernels.gelu, x)
    for one, two in zip(ours, exact, strict=True):
        np.testing.assert_allclose(one, two, atol=0.02)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("rate", [0.05, 0.1, 0.5])
def test_dropout_drops_and_scales(rate, compiled):
    x = tf.ones((301, 333))  # no multiple of four
    out = kernels.dropout(x, rate, tf.constant([3, 4]), compiled).numpy()
    dropped = rate if compiled else kernels.dropped_byte_values(rate) / 256
    assert abs(dropped - rate) < 1 / 256
    assert abs((out == 0).mean() - dropped) < 0.005
    assert np.allclose(out[out > 0], 1 / (1 - dropped))
    again = kernels.dropout(x, rate, tf.constant([3, 4]), compiled).numpy()
    other = kernels.dropout(x, rate, tf.constant([3, 5]), compiled).numpy()
    assert (out == again).all()
    agree = ((out == 0) & (other == 0)).mean()
    assert abs(agree - dropped**2) < 0.01, "masks of two seeds are independent"


@pytest.mark.parametrize("compiled", [False, True])
def test_gradients_of_dropout_have_the_mask_of_the_forward_pass(compiled):
    seed = tf.constant([3, 4])
    result, gradient = with_gradients(
        lambda x: kernels.dropout(x, 0.3, seed, compiled), normal(40, 8)
    )
    assert ((gradient == 0) == (result == 0)).all()


def test_hashed_masks_have_no_pattern():
    """Neighbours, rows, seeds and seeds one apart agree as often as chance has them agree."""
    masks = [
        kernels.dropout(tf.ones((512, 512)), 0.5, tf.constant(seed), True).numpy() == 0
        for seed in ([0, 0], [0, 1], [1, 0], [2**31 - 1, -5])
    ]
    pairs = [(one, two) for one in masks for two in masks if one is not two]
    for mask in masks:
        pairs += [(mask[:, :-lag], mask[:, lag:]) for lag in (1, 2, 4, 16)]
        pairs += [(mask[:-1], mask[1:]), (mask[:256], mask[256:])]
        bits = np.unpackbits(np.packbits(mask, axis=1).reshape(-1, 1), axis=1)
        assert np.abs(bits.mean(0) - 0.5).max() < 0.01  # every eighth place by itself
    for one, two in pairs:
        assert abs((one == two).mean() - 0.5) < 0.006  # four deviations of 131,072 coins


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_projections_equal_the_layers_of_attention(dtype):
    config = bert.Config(
        vocabulary_size=50, num_layers=1, num_heads=2, hidden_dim=16, max_sequence_length=16,
        attention_dropout=0.0, dropout=0.0,
    )  # fmt: skip
    policy = "mixed_bfloat16" if dtype == "bfloat16" else dtype
    keras.config.set_dtype_policy(policy)
    try:
        attention = bert.backbone(config).get_layer("layer_0").attention
    finally:
        keras.config.set_dtype_policy("float32")
    for weight in attention.weights:
        weight.assign(normal(*weight.shape, scale=0.3))
    x = normal(3, 5, 16)

    def gradients():
        with tf.GradientTape() as tape:
            tape.watch(x)
            result = tf.cast(attention(x, x), tf.float32)
        values = [weight.value for weight in attention.trainable_weights]
        return [result, *tape.gradient(result, [x, *values])]

    plain = gradients()
    assert kernels.install(attention) == 4
    for one, two in zip(gradients(), plain, strict=True):
        one, two = np.asarray(one, np.float32), np.asarray(two, np.float32)
        scale = np.abs(two).max()
        np.testing.assert_allclose(one, two, atol=PROJECTED[dtype] * max(scale, 1))


def test_installed_kernels_change_no_output():
    config = bert.Config(
        vocabulary_size=50, num_layers=2, num_heads=2, hidden_dim=16, max_sequence_length=16
    )
    keras.utils.set_random_seed(1)
    backbone = bert.backbone(config)
    model = keras.Model(backbone.input, heads.classification_head(backbone.output, config, 3))
    ids = np.random.default_rng(0).integers(5, 50, (4, 7), dtype=np.int32)
    inputs = {
        "token_ids": ids,
        "segment_ids": np.zeros_like(ids),
        "padding_mask": np.ones_like(ids),
    }
    before = model(inputs).numpy()
    # Per layer: GELU, two normalisations, three dropouts, four projections; embeddings: one each;
    # head: a dropout.
    assert kernels.install(model) == 2 * (1 + 2 + 3 + 4) + 2 + 1
    np.testing.assert_allclose(model(inputs), before, atol=1e-5)
    one, two = model(inputs, training=True), model(inputs, training=True)
    assert not np.allclose(one, two), "dropout draws anew"
    kernels.remove(model)
    assert np.array_equal(model(inputs), before)
    assert kernels.install(model) == 23


def test_choice_of_kernels():
    few, many = kernels.COMPILED_FROM - 1, kernels.COMPILED_FROM
    assert kernels.choose("plain", many) == "plain"
    assert kernels.choose("compiled", few) == "compiled"
    if not tf.config.list_physical_devices("GPU"):
        assert kernels.choose("auto", few) == "fused"
        assert kernels.choose("auto", many) == "compiled"
