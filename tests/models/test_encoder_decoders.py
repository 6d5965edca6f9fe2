"""One harness over all encoder-decoders: cached steps, padding, beams, precision, names."""

import dataclasses

import keras
import numpy as np
import pytest

from tests.helpers import encoder_decoders as made_for
from tfllm.checkpoints import weights
from tfllm.errors import CheckpointError, SettingError
from tfllm.models import FAMILIES, get_weight_map, gpt2, transformer
from tfllm.models.decoder import get_decoder
from tfllm.models.encoder_decoder import get_encoder_decoder

ONE_EACH = ("transformer pre-norm", "t5 gated", "bart mbart")
TOLERANCE = 1e-5  # rounding of float32: sums are taken in another order


@pytest.fixture(params=made_for.CONFIGS)
def name(request):
    return request.param


@pytest.fixture
def policy():
    yield keras.config.set_dtype_policy
    keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize("chunks", [[1] * 9, [5, 1, 1, 2]], ids=str)
def test_cached_steps_equal_the_full_pass(name, chunks):
    model, made = made_for.model_of(name)
    source, target = made_for.rows()[1]
    steps = made.with_encoder_output(*made_for.crossed_of(made, [source], 11))
    got = made_for.stepped(steps, target[None], chunks)[0]
    np.testing.assert_allclose(got, made_for.alone(model, (source, target)), atol=TOLERANCE)


def test_a_cache_may_be_a_function_that_stores_first(name):
    """As on phones: a buffer of fixed length, of which the mask shows what is filled."""
    model, made = made_for.model_of(name)
    source, target = made_for.rows()[1]
    crossed, source_padding_mask = made_for.crossed_of(made, [source], 6)
    shape = (1, made.num_heads, 12, made.head_dim)
    buffers = [tuple(np.zeros(shape, "float32") for _ in range(2)) for _ in range(2)]
    outputs = []
    for start, end in ((0, 6), (6, 9)):
        places, slots = np.arange(start, end, dtype="int32")[None], np.arange(12)[None]

        def stored(layer, start=start, end=end):
            def store(*new):
                for buffer, part in zip(buffers[layer], new, strict=True):
                    buffer[:, :, start:end] = part
                return tuple(keras.ops.convert_to_tensor(buffer) for buffer in buffers[layer])

            return store

        allowed = slots[:, None] <= places[:, :, None]
        hidden, _ = made(
            target[None, start:end],
            places,
            allowed,
            crossed,
            source_padding_mask,
            (stored(0), stored(1)),
        )
        outputs.append(np.asarray(made.logits(hidden))[0])
    want = made_for.alone(model, (source, target))
    np.testing.assert_allclose(np.concatenate(outputs), want, atol=TOLERANCE)


def test_padded_rows_equal_each_alone(name):
    model, _ = made_for.model_of(name)
    pairs = made_for.rows()
    together = np.asarray(model(made_for.inputs_of(pairs, 12, 11)))
    assert np.isfinite(together).all()
    for row, (source, target) in enumerate(pairs):
        want = made_for.alone(model, (source, target))
        np.testing.assert_allclose(together[row, : len(target)], want, atol=TOLERANCE)


def test_rows_that_share_a_source_need_it_once(name):
    """Beams: keys and values of B sources serve B * K rows."""
    _, made = made_for.model_of(name)
    (first, long), (second, _), _ = made_for.rows()
    crossed, mask = made_for.crossed_of(made, [first, second], 9)
    targets = np.stack([(long + i) % 30 for i in range(6)])
    got = made_for.stepped(made.with_encoder_output(crossed, mask), targets, [2, 1, 2])
    for row, target in enumerate(targets):
        own = made_for.crossed_of(made, [(first, second)[row // 3]], 9)
        want = made_for.stepped(made.with_encoder_output(*own), target[None], [5])[0]
        np.testing.assert_allclose(got[row], want, atol=TOLERANCE)


def test_alignments_are_shares_of_the_source(name):
    _, made = made_for.model_of(name)
    (source, target), _, _ = made_for.rows()
    crossed, mask = made_for.crossed_of(made, [source, source], 9)
    places = np.arange(len(target))[None]
    weights: list = []
    allowed = places[:, None] <= places[..., None]
    made(np.stack([target] * 4), places, allowed, crossed, mask, alignments=weights)
    assert [w.shape for w in weights] == [(4, made.num_heads, len(target), 9)] * made.num_layers
    np.testing.assert_allclose(np.sum(weights[0], -1), 1, atol=TOLERANCE)
    assert np.max(np.asarray(weights[0])[..., len(source) :]) == 0
    np.testing.assert_allclose(weights[0][0], weights[0][3], atol=TOLERANCE)


@pytest.mark.parametrize("name", ONE_EACH)
def test_every_precision_gives_float32_scores(name, policy):
    policy("mixed_bfloat16")
    model, made = made_for.new_model(name)
    inputs = made_for.inputs_of(made_for.rows())
    scores = model(inputs)
    assert (tuple(scores.shape), scores.dtype.name) == ((3, 9, 40), "float32")
    assert made.dtype == "bfloat16" and np.isfinite(scores).all()


def test_variables_and_weight_table_name_each_other(name):
    config = made_for.CONFIGS[name]
    model, _ = made_for.model_of(name)
    table = get_weight_map(made_for.family_of(name), config)
    variables = weights.variables_of(model)
    rows = weights.rows_of(variables, {**table.backbone, **table.heads["seq2seq"]})
    assert set(rows) == set(variables)
    # Everything that the source is read with has one tensor and no other name.
    assert len({(row.name, row.part) for row in rows.values()}) == len(rows)


@pytest.mark.parametrize("name", ONE_EACH)
def test_a_copy_by_keras_is_the_same_model(name):
    model, _ = made_for.model_of(name)
    copy = keras.models.clone_model(model)
    assert [v.path for v in copy.weights] == [v.path for v in model.weights]
    copy.set_weights(model.get_weights())
    inputs = made_for.inputs_of(made_for.rows())
    np.testing.assert_allclose(copy(inputs), model(inputs), atol=TOLERANCE)


@pytest.mark.parametrize("name", ["transformer", "t5 gated"])
def test_it_trains_with_low_rank_updates_too(name):
    model, _ = made_for.new_model(name)
    model.get_layer("layer_0").cross_attention.query.enable_lora(2)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    # A graph would take longer to trace than all of this to run.
    model.compile(keras.optimizers.Adam(0.01), loss, run_eagerly=True)
    inputs = made_for.inputs_of(made_for.rows())
    history = model.fit(inputs, inputs["token_ids"], epochs=3, verbose=0)
    assert history.history["loss"][-1] < history.history["loss"][0]


@pytest.mark.parametrize("name", ONE_EACH)
def test_equal_seeds_give_equal_models_that_keep_sizes(name):
    family, config = FAMILIES[made_for.family_of(name)], made_for.CONFIGS[name]
    first, second = (
        (keras.utils.set_random_seed(seed), family.backbone(config))[1] for seed in (3, 3)
    )
    for a, b in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    hidden = np.asarray(first(made_for.inputs_of(made_for.rows())))
    assert 0.1 < hidden.std() < 10


def test_config_both_ways(name):
    family, config = FAMILIES[made_for.family_of(name)], made_for.CONFIGS[name]
    if getattr(config, "pre_norm", False) and made_for.family_of(name) == "transformer":
        with pytest.raises(CheckpointError, match="pre_norm"):
            family.to_hf(config)
    else:
        if made_for.family_of(name) == "t5":  # whose tensors say it, not the key
            config = dataclasses.replace(config, tie_embeddings=True)
        assert family.from_hf(family.to_hf(config)) == config


def test_what_reads_no_source_is_refused():
    model = gpt2.backbone(gpt2.Config(vocabulary_size=8, num_layers=1, num_heads=1, hidden_dim=4))
    with pytest.raises(SettingError, match="reads no source. Those that do: transformer"):
        get_encoder_decoder(model, "gpt2", None)
    model, made = made_for.model_of("transformer")
    with pytest.raises(SettingError, match="cannot generate. Those that can: gpt2"):
        get_decoder(model, "transformer", made.config)


def test_a_backbone_lacks_the_bias_of_its_logits():
    model, made = made_for.model_of("transformer")
    backbone = transformer.backbone(made.config)
    with pytest.raises(SettingError, match="token_bias"):
        get_encoder_decoder(backbone, "transformer", made.config).logits(
            np.zeros((1, 8), "float32")
        )


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"hidden_dim": 10, "num_heads": 3}, "num_heads divides"),
        ({"num_encoder_heads": 3}, "num_encoder_heads divides"),
        ({"activation": "gleu"}, "There is no activation 'gleu'. Known: gelu"),
        ({"num_layers": 0}, "num_layers is 0"),
        ({"max_sequence_length": -1}, "max_sequence_length is -1"),
    ],
)
def test_an_impossible_shape_is_refused(fields, said):
    with pytest.raises(SettingError, match=said.replace("?", r"\?")):
        transformer.Config(**fields)


@pytest.mark.parametrize(
    "entry",
    [
        {"normalize_before": True},
        {"static_position_embeddings": False},
        {"activation_function": "quick"},
        {"encoder_attention_heads": 5},
        {"d_model": "wide"},
    ],
)
def test_another_graph_is_refused(entry):
    with pytest.raises(CheckpointError, match="config.json"):
        transformer.from_hf({"model_type": "marian", **entry})
