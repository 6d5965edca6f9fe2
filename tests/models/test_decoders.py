"""One harness over every decoder: cached steps, padding, packed rows, precision, names, copies."""

import keras
import numpy as np
import pytest

from tests.helpers import decoders
from tfllm.errors import CheckpointError, SettingError
from tfllm.models import FAMILIES, bert, gpt2, llama
from tfllm.models.decoder import get_decoder

TOLERANCE = 1e-5


@pytest.fixture(params=decoders.CONFIGS)
def name(request):
    return request.param


@pytest.fixture
def policy():
    yield keras.config.set_dtype_policy
    keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize("chunks", [[1] * 9, [5, 1, 1, 2], [9]], ids=str)
def test_cached_steps_equal_the_full_pass(name, chunks):
    model, made = decoders.model_of(name)
    text = decoders.rows()[0]
    got = decoders.stepped(made, text, chunks)
    np.testing.assert_allclose(got, decoders.alone(model, text), atol=TOLERANCE)


def test_a_cache_may_be_a_function_that_stores_first(name):
    """As on phones: a buffer of fixed length, of which the mask shows what is filled."""
    model, made = decoders.model_of(name)
    text = decoders.rows()[0]
    shape = (1, made.num_key_value_heads, 12, made.head_dim)
    buffers = [tuple(np.zeros(shape, "float32") for _ in range(2)) for _ in range(2)]
    outputs = []
    for start, end in ((0, 6), (6, 9)):
        places = np.arange(start, end, dtype="int32")[None]
        slots = np.arange(12, dtype="int32")[None]

        def stored(layer, start=start, end=end):
            def store(*new):
                for buffer, part in zip(buffers[layer], new, strict=True):
                    buffer[:, :, start:end] = part
                return tuple(keras.ops.convert_to_tensor(buffer) for buffer in buffers[layer])

            return store

        seen = made.layer_masks(slots[:, None] <= places[:, :, None], places, slots)
        hidden, _ = made(text[None, start:end], places, seen, (stored(0), stored(1)))
        outputs.append(np.asarray(made.logits(hidden))[0])
    want = decoders.alone(model, text)
    np.testing.assert_allclose(np.concatenate(outputs), want, atol=TOLERANCE)


def test_padded_rows_equal_each_alone(name):
    model, _ = decoders.model_of(name)
    texts = decoders.rows()
    together = np.asarray(model(decoders.padded(texts, 11)))
    assert np.isfinite(together).all()
    for row, text in enumerate(texts):
        want = decoders.alone(model, text)
        np.testing.assert_allclose(together[row, : len(text)], want, atol=TOLERANCE)


def test_packed_documents_equal_each_alone(name):
    model, _ = decoders.model_of(name)
    texts = decoders.rows()
    ids, mask = np.zeros((2, 1, 24), "int32")
    ids[0, :20] = np.concatenate(texts)
    mask[0, :20] = np.repeat([1, 2, 3], decoders.LENGTHS)
    together = np.asarray(model({"token_ids": ids, "padding_mask": mask}))[0]
    start = 0
    for text in texts:
        end = start + len(text)
        np.testing.assert_allclose(together[start:end], decoders.alone(model, text), atol=TOLERANCE)
        start = end


def test_what_comes_later_changes_nothing(name):
    model, _ = decoders.model_of(name)
    text = decoders.rows()[0]
    other = text.copy()
    other[6:] = (other[6:] + 1) % 40
    first, second = decoders.alone(model, text), decoders.alone(model, other)
    np.testing.assert_allclose(first[:6], second[:6], atol=TOLERANCE)
    assert np.abs(first[6:] - second[6:]).max() > 0.1


def test_a_decoder_says_its_sizes(name):
    _, made = decoders.model_of(name)
    config = decoders.CONFIGS[name]
    assert (made.num_layers, made.vocabulary_size, made.max_sequence_length) == (2, 40, 16)
    assert (made.num_key_value_heads, made.head_dim) == (
        config.num_key_value_heads, config.head_dim)  # fmt: skip
    assert len(made.windows) == 2 and made.dtype == "float32"
    ids = np.zeros((3, 4), "int32")
    _, new = made(ids, ids, np.ones((3, 4, 4), bool))
    shape = (3, config.num_key_value_heads, 4, config.head_dim)
    assert [tuple(part.shape) for pair in new for part in pair] == [shape] * 4


def test_half_precision_gives_nearly_the_same(name, policy):
    texts = decoders.padded(decoders.rows(), 9)
    want = np.asarray(decoders.model_of(name)[0](texts))
    policy("mixed_bfloat16")
    low, made = decoders.new_model(name)  # the same numbers by the same seed
    got = low(texts)
    assert (got.dtype.name, made.dtype) == ("float32", "bfloat16")
    assert np.abs(np.asarray(got) - want).mean() < 0.05 * np.abs(want).mean()


def test_variables_have_the_names_of_the_weight_table(name):
    config, module = decoders.CONFIGS[name], FAMILIES[decoders.family_of(name)]
    table = module.WEIGHTS[module.to_hf(config)["model_type"]]
    model, _ = decoders.model_of(name)
    rows = {
        path.format(i=i)
        for path in (*table.backbone, *table.heads["causal_lm"])
        for i in range(config.num_layers)
    }
    assert {weight.path for weight in model.weights} <= rows
    assert "layer_1/attention/query/kernel" in rows


def test_a_copy_by_keras_is_the_same_model(name):
    model, _ = decoders.model_of(name)
    copy = keras.models.clone_model(model)
    assert [v.path for v in copy.weights] == [v.path for v in model.weights]
    copy.set_weights(model.get_weights())
    inputs = decoders.padded(decoders.rows(), 9)
    np.testing.assert_allclose(copy(inputs), model(inputs), atol=1e-6)


def test_it_trains_with_low_rank_updates(name):
    from tfllm import lora

    model, _ = decoders.new_model(name)
    chosen = lora.enable(model, 2, ("query", "value", "up"))
    assert len(chosen) == 6
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.02), loss, run_eagerly=True)
    inputs = decoders.padded(decoders.rows(), 9)
    targets = np.roll(inputs["token_ids"], -1, 1)
    before = model.evaluate(inputs, targets, verbose=0)
    model.fit(inputs, targets, epochs=3, verbose=0)
    assert model.evaluate(inputs, targets, verbose=0) < before


def test_config_both_ways(name):
    config, module = decoders.CONFIGS[name], FAMILIES[decoders.family_of(name)]
    assert module.from_hf(module.to_hf(config)) == config


def test_an_untied_backbone_has_no_logits():
    config = decoders.CONFIGS["gpt2 untied"]
    made = get_decoder(gpt2.backbone(config), "gpt2", config)
    with pytest.raises(SettingError, match="causal_lm"):
        made.logits(np.zeros((1, 16), "float32"))


def test_an_encoder_does_not_generate():
    with pytest.raises(SettingError, match="'bert' cannot generate. Those that can: gpt2, llama"):
        get_decoder(keras.Sequential(), "bert", bert.Config())


@pytest.mark.parametrize(
    "entry",
    [
        {"add_cross_attention": True},
        {"scale_attn_by_inverse_layer_idx": True},
        {"activation_function": "quick"},
        {"n_head": 5},
        {"n_embd": "wide"},
    ],
    ids=str,
)
def test_another_gpt2_is_refused(entry):
    with pytest.raises(CheckpointError, match="config.json"):
        gpt2.from_hf({"model_type": "gpt2", **entry})


@pytest.mark.parametrize(
    "entry",
    [
        {"mlp_bias": True},
        {"rope_scaling": {"type": "longrope", "factor": 2.0}},
        {"rope_parameters": {"full_attention": {"rope_theta": 1.0}}},
        {"rope_parameters": {"rope_theta": 1.0, "partial_rotary_factor": 0.5}},
        {"hidden_act": "quick"},
        {"num_key_value_heads": 5},
        {"head_dim": 7},
        {"hidden_size": "wide"},
    ],
    ids=str,
)
def test_another_llama_is_refused(entry):
    with pytest.raises(CheckpointError, match="config.json"):
        llama.from_hf({"model_type": "llama", **entry})


THETA = {"rope_theta": 500.0}
SCALED = {"rope_type": "linear", "factor": 2.0}


@pytest.mark.parametrize(
    "entry",
    [
        {**THETA, "rope_scaling": SCALED},
        {**THETA, "rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_parameters": {**THETA, **SCALED}},
        {"rope_theta": 1.0, "rope_parameters": {**THETA, **SCALED}},
    ],
    ids=["transformers 4", "older", "transformers 5", "both"],
)
def test_rotary_positions_in_every_spelling(entry):
    config = llama.from_hf({"model_type": "llama", **entry})
    assert (config.rope_theta, config.rope_scaling) == (500.0, SCALED)


@pytest.mark.parametrize(
    ("entry", "windows"),
    [
        ({"model_type": "mistral"}, (4096, 4096)),
        ({"model_type": "mistral", "sliding_window": None}, (None, None)),
        ({"model_type": "qwen2", "sliding_window": 8}, (None, None)),
        (
            {"model_type": "qwen2", "sliding_window": 8, "use_sliding_window": True,
             "max_window_layers": 1},
            (None, 8),
        ),
        (
            {"model_type": "qwen3", "sliding_window": 8, "use_sliding_window": True,
             "layer_types": ["sliding_attention", "full_attention"]},
            (8, None),
        ),
    ],
    ids=str,
)  # fmt: skip
def test_windows_as_each_variant_writes_them(entry, windows):
    config = llama.from_hf({"num_hidden_layers": 2, **entry})
    assert llama.windows(config) == windows
    assert llama.from_hf(llama.to_hf(config)) == config


def test_a_mixture_that_hugging_face_has_not_stays_here():
    with pytest.raises(CheckpointError, match="tfllm's own format"):
        llama.to_hf(llama.Config(variant="llama", query_key_norm=True))
