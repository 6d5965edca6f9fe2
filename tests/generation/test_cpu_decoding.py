"""Products laid out for the CPU give what the layers give, to their rounding."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.generation import goldens
from tests.helpers import decoders
from tests.helpers.byte_models import checkpoint
from tfllm.errors import SettingError
from tfllm.generation import cpu_decoding, decode_state
from tfllm.generation.config import GenerationConfig
from tfllm.generation.engine import Engine
from tfllm.generation.text_generator import TextGenerator
from tfllm.keras_internals import all_layers

TOKENS = tf.constant([[3, 5, 11, 2], [8, 1, 0, 0]])
LENGTHS = tf.constant([4, 2])


def logits(decoder):
    return decode_state.prefill_cache(decoder, TOKENS, LENGTHS, 8)[0].numpy()


def own_copy():
    return goldens.gpt2.__wrapped__()


@pytest.mark.parametrize("made", [cpu_decoding.use_cpu_layout, cpu_decoding.optimize_for_cpu])
def test_float32_gives_the_logits_of_the_layers(made):
    model = own_copy()
    np.testing.assert_allclose(logits(made(model)), logits(model), atol=1e-5)


@pytest.mark.parametrize("name", ["gemma 2", "gemma 3"])
def test_float32_gives_the_logits_of_gemma(name):
    _, model = decoders.new_model(name)
    rows = tf.minimum(TOKENS, 30)
    expected = decode_state.prefill_cache(model, rows, LENGTHS, 8)[0].numpy()
    optimized = cpu_decoding.optimize_for_cpu(model)
    found = decode_state.prefill_cache(optimized, rows, LENGTHS, 8)[0].numpy()
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_bfloat16_gives_nearly_the_same_logits_and_keeps_one_copy_of_the_kernels():
    model = own_copy()
    expected = logits(model)
    rounded = cpu_decoding.optimize_for_cpu(model, "bfloat16")
    found = logits(rounded)
    assert found.dtype == np.float32
    assert 0 < np.abs(found - expected).max() < 0.03 * np.abs(expected).max()
    np.testing.assert_allclose(logits(cpu_decoding.use_bfloat16(model)), found, atol=1e-5)
    graph = tf.function(lambda: decode_state.prefill_cache(rounded, TOKENS, LENGTHS, 8)[0])
    read = graph.get_concrete_function().variables
    kept = [one.path for i in range(model.num_layers) for one in model.layers[f"layer_{i}"].weights]
    kept = [path for path in kept if any(path in (v.name, v.name.split(":")[0]) for v in read)]
    assert not any(path.endswith("kernel") for path in kept)
    assert any(path.endswith("bias") for path in kept)
    kernels = [variable for variable in read if variable.dtype == tf.bfloat16]
    assert len(kernels) == sum(len(dense_layers(model.layers[name])) for name in blocks(model))


def blocks(model):
    return [f"layer_{i}" for i in range(model.num_layers)]


def dense_layers(layer):
    return [one for one in all_layers(layer) if isinstance(one, keras.layers.Dense)]


def test_bfloat16_does_not_change_the_model_which_can_still_be_trained():
    model = own_copy()
    before = {
        name: [(w.path, w.dtype, w.trainable, w.numpy()) for w in layer.weights]
        for name, layer in model.layers.items()
    }
    attributes = {name: dict(vars(layer)) for name, layer in model.layers.items()}
    expected = logits(model)
    rounded = cpu_decoding.optimize_for_cpu(model, "bfloat16")
    found = logits(rounded)
    for name, layer in model.layers.items():
        assert vars(layer) == attributes[name]
        for (path, dtype, trainable, value), weight in zip(
            before[name], layer.weights, strict=True
        ):
            assert (weight.path, weight.dtype, weight.trainable) == (path, dtype, trainable)
            np.testing.assert_array_equal(weight.numpy(), value)
    np.testing.assert_array_equal(logits(model), expected)

    kernels = [
        one.kernel.value for name in blocks(model) for one in dense_layers(model.layers[name])
    ]
    with tf.GradientTape() as tape:
        loss = tf.reduce_logsumexp(decode_state.prefill_cache(model, TOKENS, LENGTHS, 8)[0])
    gradients = tape.gradient(loss, kernels)
    assert all(gradient is not None for gradient in gradients)
    for kernel, gradient in zip(kernels, gradients, strict=True):
        kernel.assign_sub(0.1 * gradient)
    assert np.abs(logits(model) - expected).max() > 1e-3
    np.testing.assert_array_equal(logits(rounded), found)  # its kernels are copies


def test_bfloat16_steps_equal_its_reading_of_the_whole_text():
    engine = Engine(cpu_decoding.use_bfloat16(own_copy()))
    settings = GenerationConfig(max_new_tokens=6)
    ids = engine.generate([[3, 5, 11, 2]], settings)[0].ids
    assert [
        engine.generate([[3, 5, 11, 2, *ids[:n]]], GenerationConfig(max_new_tokens=1))[0].ids[0]
        for n in range(6)
    ] == ids


def test_another_precision_is_refused():
    with pytest.raises(SettingError, match="float32, bfloat16"):
        TextGenerator(checkpoint(), precision="int8")
