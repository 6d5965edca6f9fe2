"""One harness over every family: shapes, padding, precision, names, copies."""

import dataclasses

import keras
import numpy as np
import pytest

from tfllm.errors import CheckpointError, SettingError
from tfllm.layers import heads
from tfllm.models import bert, modernbert

SHAPE = {
    "vocabulary_size": 40,
    "num_layers": 2,
    "num_heads": 2,
    "hidden_dim": 8,
    "intermediate_dim": 12,
    "max_sequence_length": 16,
}
CONFIGS = {
    "bert": bert.Config(**SHAPE),
    "electra": bert.Config(variant="electra", embedding_dim=4, **SHAPE),
    "distilbert": bert.Config(
        variant="distilbert", num_segments=0, classifier_dropout=0.2, **SHAPE
    ),
    "albert": bert.Config(
        variant="albert",
        embedding_dim=4,
        num_groups=2,
        classifier_dropout=0.1,
        **{**SHAPE, "num_layers": 4},
    ),
    "modernbert": modernbert.Config(sliding_window=4, pad_token_id=0, **{**SHAPE, "num_layers": 4}),
    "modernbert with biases": modernbert.Config(
        sliding_window=4,
        pad_token_id=0,
        norm_bias=True,
        qkv_bias=True,
        feedforward_bias=True,
        head_bias=True,
        classifier_pooling="mean",
        **SHAPE,
    ),
    "mpnet": bert.Config(variant="mpnet", num_segments=0, pad_token_id=1, **SHAPE),
    "roberta": bert.Config(variant="roberta", num_segments=1, pad_token_id=1, **SHAPE),
}


def classify(model, config, size):
    mask = model.input["padding_mask"]
    return heads.classification_head(model.output, config, size, mask, "first")


HEADS = {
    "classify": (lambda model, config: classify(model, config, 3), (2, 3)),
    "tag": (
        lambda model, config: heads.token_classification_head(model.output, config, 5),
        (2, 6, 5),
    ),
    "span": (lambda model, config: heads.span_head(model.output, config), (2, 6, 2)),
    "masked": (lambda model, config: heads.masked_lm_head(model.output, config, model), (2, 6, 40)),
    "next_sentence": (lambda model, config: heads.next_sentence_head(model.output, config), (2, 2)),
    "replaced": (lambda model, config: heads.replaced_token_head(model.output, config), (2, 6)),
    **{
        f"embed {pooling}": (
            lambda model, config, pooling=pooling: heads.text_embedding(
                model.output, model.input["padding_mask"], pooling, normalize=True, config=config
            ),
            (2, 8),
        )
        for pooling in heads.POOLINGS
    },
}
POLICIES = ("float32", "mixed_bfloat16")


@pytest.fixture(params=CONFIGS)
def config(request):
    return CONFIGS[request.param]


def module_of(config):
    return modernbert if isinstance(config, modernbert.Config) else bert


def backbone(config):
    return module_of(config).backbone(config)


def weight_map(config):
    return module_of(config).WEIGHTS[getattr(config, "variant", "modernbert")]


@pytest.fixture
def policy():
    yield keras.config.set_dtype_policy
    keras.config.set_dtype_policy("float32")


def inputs_for(config, length=6):
    generator = np.random.default_rng(0)
    mask = np.ones((2, length), "int32")
    mask[0, 4:] = 0
    inputs = {"token_ids": generator.integers(1, 40, (2, length)).astype("int32") * mask}
    if getattr(config, "num_segments", 0) > 1:
        inputs["segment_ids"] = np.tile(np.arange(length) // 3, (2, 1)).astype("int32") * mask
    return {**inputs, "padding_mask": mask}


@pytest.mark.parametrize("precision", POLICIES)
def test_every_head_gives_float32_of_its_shape(config, policy, precision):
    policy(precision)
    model = backbone(config)
    assert set(model.input) == set(inputs_for(config))
    hidden = model(inputs_for(config))
    assert hidden.shape == (2, 6, 8)
    for name, (head, shape) in HEADS.items():
        outputs = keras.Model(model.input, head(model, config))(inputs_for(config))
        assert (tuple(outputs.shape), outputs.dtype.name) == (shape, "float32"), name
        assert np.isfinite(outputs).all(), name


def test_padding_changes_nothing(config):
    model = backbone(config)
    padded = inputs_for(config)
    short = {name: values[:1, :4] for name, values in padded.items()}
    np.testing.assert_allclose(model(padded)[:1, :4], model(short), atol=1e-5)


def test_a_masked_text_embeds_as_without_its_padding(config):
    model = backbone(config)
    padded = inputs_for(config)
    short = {name: values[:1, :4] for name, values in padded.items()}
    for pooling in heads.POOLINGS:
        outputs = heads.text_embedding(
            model.output, model.input["padding_mask"], pooling, True, config
        )
        embedder = keras.Model(model.input, outputs)
        np.testing.assert_allclose(embedder(padded)[:1], embedder(short), atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(embedder(padded), axis=-1), 1, atol=1e-5)


def test_variables_have_the_names_of_the_weight_table(config):
    table = weight_map(config).backbone
    blocks = set(getattr(config, "groups", range(config.num_layers)))
    rows = {path.format(i=i) for path in table for i in blocks}
    paths = {variable.path for variable in backbone(config).variables}
    unused = {"embedding_projection/kernel", "embedding_projection/bias"} - paths
    if isinstance(config, modernbert.Config):
        unused |= {"layer_0/attention_norm/gamma", "layer_0/attention_norm/beta"}
        unused |= {row for row in rows - paths if row.endswith(("/bias", "/beta"))}
        unused &= rows - paths
    assert paths - rows == {path for path in paths if path.endswith("seed_generator_state")}
    assert rows - paths == unused & rows
    assert "layer_0/attention/query/kernel" in paths


def test_every_head_of_every_table_is_named(config):
    names = {name.split("/")[0] for table in weight_map(config).heads.values() for name in table}
    layers = set()
    for tied in (True, False):  # untied logits have a matrix of their own
        shape = dataclasses.replace(config, tie_embeddings=tied)
        model = backbone(shape)
        models = [keras.Model(model.input, head(model, shape)) for head, _ in HEADS.values()]
        layers |= {layer.name for model in models for layer in model.layers}
    assert names <= layers


def test_equal_seeds_give_equal_models(config):
    first, second = (
        (keras.utils.set_random_seed(seed), backbone(config).get_weights())[1] for seed in (3, 3)
    )
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_copy_by_keras_is_the_same_model(config):
    model = backbone(config)
    copy = keras.models.clone_model(model)
    assert [v.path for v in copy.weights] == [v.path for v in model.weights]
    copy.set_weights(model.get_weights())
    inputs = inputs_for(config)
    np.testing.assert_allclose(copy(inputs), model(inputs), atol=1e-6)


def test_it_trains_with_low_rank_updates_too(config):
    model = backbone(config)
    attention = model.get_layer("layer_0").attention
    query = attention.query_dense if hasattr(attention, "query_dense") else attention.query
    query.enable_lora(2)
    classifier = keras.Model(model.input, classify(model, config, 2))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    # A graph would take longer to trace than all of this to run.
    classifier.compile(keras.optimizers.Adam(0.01), loss, run_eagerly=True)
    history = classifier.fit(inputs_for(config), np.array([0, 1]), epochs=5, verbose=0)
    assert history.history["loss"][-1] < history.history["loss"][0]


def test_config_both_ways(config):
    assert module_of(config).from_hf(module_of(config).to_hf(config)) == config


def test_a_keras_file_is_the_same_model(config, tmp_path):
    model = backbone(config)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    inputs = inputs_for(config)
    np.testing.assert_array_equal(again(inputs), model(inputs))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"hidden_dim": 10, "num_heads": 3}, "num_heads divides"),
        ({"activation": "gleu"}, "There is no activation 'gleu'. Known: gelu"),
        ({"variant": "bart"}, "Did you mean 'bert'?"),
        ({"num_layers": 0}, "num_layers is 0"),
    ],
)
def test_an_impossible_shape_is_refused(fields, said):
    with pytest.raises(SettingError, match=said.replace("?", r"\?")):
        bert.Config(**fields)


@pytest.mark.parametrize(
    "entry",
    [
        {"position_embedding_type": "relative_key"},
        {"is_decoder": True},
        {"hidden_act": "quick"},
        {"num_attention_heads": 5},
        {"hidden_size": "wide"},
    ],
)
def test_another_graph_is_refused(entry):
    with pytest.raises(CheckpointError, match="config.json"):
        bert.from_hf({"model_type": "bert", **entry})
