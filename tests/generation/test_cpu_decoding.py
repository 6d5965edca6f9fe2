"""Products laid out for the CPU give what the layers give, to their rounding."""

import numpy as np
import pytest
import tensorflow as tf

from tests.generation import goldens
from tests.generation.models import checkpoint
from tfllm.errors import SettingError
from tfllm.generation import cpu_decoding, state
from tfllm.generation.config import GenerationConfig
from tfllm.generation.engine import Engine
from tfllm.generation.text_generator import TextGenerator

TOKENS = tf.constant([[3, 5, 11, 2], [8, 1, 0, 0]])
LENGTHS = tf.constant([4, 2])


def logits(decoder):
    return state.read(decoder, TOKENS, LENGTHS, 8)[0].numpy()


def own_copy():
    return goldens.gpt2.__wrapped__()


@pytest.mark.parametrize("made", [cpu_decoding.laid_out, cpu_decoding.prepared])
def test_float32_gives_the_logits_of_the_layers(made):
    model = own_copy()
    np.testing.assert_allclose(logits(made(model)), logits(model), atol=1e-5)


def test_bfloat16_gives_nearly_the_same_logits_and_keeps_one_copy_of_the_kernels():
    model = own_copy()
    expected = logits(model)
    rounded = cpu_decoding.prepared(model, "bfloat16")
    found = logits(rounded)
    assert found.dtype == np.float32
    assert 0 < np.abs(found - expected).max() < 0.03 * np.abs(expected).max()
    np.testing.assert_allclose(logits(cpu_decoding.in_bfloat16(model)), found, atol=1e-5)
    kept = [one.path for i in range(model.num_layers) for one in model.layers[f"layer_{i}"].weights]
    assert not any(path.endswith("kernel") for path in kept)
    assert any(path.endswith("bias") for path in kept)


def test_bfloat16_steps_equal_its_reading_of_the_whole_text():
    engine = Engine(cpu_decoding.in_bfloat16(own_copy()))
    settings = GenerationConfig(max_new_tokens=6)
    ids = engine.generate([[3, 5, 11, 2]], settings)[0].ids
    assert [
        engine.generate([[3, 5, 11, 2, *ids[:n]]], GenerationConfig(max_new_tokens=1))[0].ids[0]
        for n in range(6)
    ] == ids


def test_another_precision_is_refused():
    with pytest.raises(SettingError, match="float32, bfloat16"):
        TextGenerator(checkpoint(), precision="int8")
