"""Encoder-decoders: same weights, same inputs, same scores as transformers, and the same back."""

import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.checkpoints.test_decoder_goldens import assert_comes_back, assert_equal_scores, change
from tests.checkpoints.test_goldens import TOLERANCE, assert_same_tensors
from tests.helpers.golden_models import GOLDEN, VOCABULARY
from tfllm.checkpoints import huggingface, store
from tfllm.checkpoints.describe import describe
from tfllm.errors import CheckpointError, SettingError
from tfllm.models import bart, t5, transformer
from tfllm.models.encoder_decoder import get_encoder_decoder
from tfllm.tasks import build

FAMILIES = {
    "marian": "transformer", "marian_apart": "transformer", "t5": "t5", "flan_t5": "t5",
    "mt5": "t5", "bart": "bart", "bart_unequal": "bart", "mbart": "bart",
}  # fmt: skip
STEP_TOLERANCE = 1e-5  # cached steps against the full pass: rounding alone


@pytest.fixture
def source(golden):
    def make(name):
        directory, inputs, logits = golden("encoder_decoders", name)
        with np.load(GOLDEN / "encoder_decoders.npz") as file:
            generation = file[f"{name}/generation"].tobytes()
        (directory / "generation_config.json").write_bytes(generation)
        # The goldens' vocabulary is no mBART's, which would be looked for languages.
        (directory / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
        return directory, inputs, logits

    return make


@pytest.mark.parametrize("name", FAMILIES)
def test_scores_equal_and_the_way_back_gives_the_same_bytes(source, tmp_path, name):
    directory, inputs, logits = source(name)
    checkpoint = store.load(directory)
    assert (checkpoint.family, checkpoint.task.kind) == (FAMILIES[name], "seq2seq")
    assert not checkpoint.unused_tensors
    assert_equal_scores(checkpoint, inputs, logits)
    assert_comes_back(checkpoint, directory, inputs, tmp_path)


@pytest.mark.parametrize("name", ["marian", "flan_t5", "mbart"])
def test_cached_steps_equal_the_full_pass(source, name):
    """Two rows for one source, which is padded; cross-attention's keys and values made once."""
    directory, inputs, logits = source(name)
    checkpoint = store.load(directory)
    made = get_encoder_decoder(checkpoint.model, checkpoint.family, checkpoint.config)
    mask = inputs["source_padding_mask"][1:2]
    decoder = made.with_encoder_output(
        made.cross_kv(made.encode(inputs["source_ids"][1:2], mask)), mask
    )
    ids = np.repeat(inputs["token_ids"][1:2], 2, axis=0)
    whole = np.asarray(checkpoint.model({key: value[1:2] for key, value in inputs.items()}))
    cache, outputs = None, []
    for end in range(1, ids.shape[1] + 1):
        places = np.arange(end, dtype="int32")[None]
        hidden, new = decoder(ids[:, end - 1 : end], places[:, -1:], places[None] >= 0, cache)
        outputs.append(np.asarray(decoder.logits(hidden)))
        cache = new if cache is None else tuple(
            tuple(np.concatenate(both, 2) for both in zip(old, late, strict=True))
            for old, late in zip(cache, new, strict=True)
        )  # fmt: skip
    stepped = np.concatenate(outputs, 1)
    np.testing.assert_allclose(stepped, np.repeat(whole, 2, axis=0), atol=STEP_TOLERANCE)
    np.testing.assert_allclose(stepped[:1], logits[1:2], atol=TOLERANCE)


@pytest.mark.parametrize("name", ["marian", "flan_t5"])
def test_what_generation_needs_is_kept(source, tmp_path, name):
    directory, _, _ = source(name)
    checkpoint = store.load(directory)
    config = json.loads((directory / "config.json").read_text())
    assert checkpoint.decoder_start_token_id == config["decoder_start_token_id"]
    assert checkpoint.eos_token_id == (config["eos_token_id"],)
    assert checkpoint.generation_setting("num_beams") == 4
    assert checkpoint.generation_setting("bad_words_ids") == [[39]]
    (directory / "generation_config.json").unlink()
    change(directory, num_beams=6, forced_bos_token_id=5)
    store.save(store.load(directory), tmp_path / "ours")
    again = store.load(tmp_path / "ours")
    assert (
        again.generation_setting("num_beams"),
        again.generation_setting("forced_bos_token_id"),
    ) == (
        6,
        5,
    )
    assert again.generation_setting("length_penalty") is None


@pytest.mark.parametrize("name", ["marian", "bart", "t5"])
def test_files_that_hold_one_table_under_all_its_names(source, tmp_path, name):
    """As transformers 4 wrote them, with Marian's waves among the weights."""
    directory, inputs, logits = source(name)
    parameters = describe(directory)["parameters"]

    def old(tensors):
        prefix = "" if name == "t5" else "model."
        table = tensors[f"{prefix}shared.weight"]
        names = [f"{prefix}{side}.embed_tokens.weight" for side in ("encoder", "decoder")]
        more = {key: table.copy() for key in (*names, "lm_head.weight")}
        if name == "marian":
            waves = np.zeros((16, 8), np.float32)
            more |= {
                f"model.{side}.embed_positions.weight": waves for side in ("encoder", "decoder")
            }
        return tensors | more

    change(directory, old)
    checkpoint = store.load(directory)
    assert_equal_scores(checkpoint, inputs, logits)
    assert describe(directory)["parameters"] == parameters
    huggingface.write(checkpoint, tmp_path / "back")
    before = load_file(directory / "model.safetensors")
    after = load_file(tmp_path / "back" / "model.safetensors")
    assert set(after) == {key for key in before if name != "marian" or "positions" not in key}


@pytest.mark.parametrize("name", ["bart", "mbart"])
def test_a_bare_model_gets_a_head_of_its_embeddings(source, tmp_path, name):
    """As facebook/bart-base: names without prefix, no bias on the logits."""
    directory, inputs, logits = source(name)
    architecture = {"bart": "BartModel", "mbart": "MBartModel"}[name]
    bias = load_file(directory / "model.safetensors")["final_logits_bias"]

    def bare(tensors):
        del tensors["final_logits_bias"]
        bare = {key.removeprefix("model."): tensor for key, tensor in tensors.items()}
        return bare | {"decoder.embed_tokens.weight": bare["shared.weight"].copy()}

    change(directory, bare, architectures=[architecture])
    checkpoint = store.load(directory)
    assert_equal_scores(checkpoint, inputs, logits - bias)
    store.save(checkpoint, tmp_path / "ours")
    huggingface.write(store.load(tmp_path / "ours"), tmp_path / "back")
    assert_same_tensors(directory, tmp_path / "back")
    checkpoint.model.get_layer("token_bias").bias.assign(bias[0])
    huggingface.write(checkpoint, tmp_path / "trained")
    assert_equal_scores(store.load(tmp_path / "trained"), inputs, logits)


def test_a_t5_of_transformers_4_is_untied_and_not_scaled(source):
    directory, inputs, logits = source("flan_t5")
    path = directory / "config.json"
    config = json.loads(path.read_text())
    del config["scale_decoder_outputs"]
    path.write_text(json.dumps({**config, "tie_word_embeddings": False}))
    assert_equal_scores(store.load(directory), inputs, logits)


@pytest.mark.parametrize("name", ["marian", "t5", "bart"])
def test_gaps_leftovers_and_wrong_sizes_are_named(source, name):
    directory, _, _ = source(name)
    gone = {
        "marian": "model.decoder.layers.1.encoder_attn.k_proj.bias",
        "t5": "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        "bart": "model.encoder.embed_positions.weight",
    }[name]

    def spoil(tensors):
        tensors["model.extra.weight"] = tensors.pop(gone)
        norm = next(key for key in tensors if "norm" in key)
        tensors[norm] = np.zeros(3, np.float32)
        return tensors

    change(directory, spoil)
    with pytest.raises(CheckpointError) as error:
        store.load(directory)
    for said in (f"missing: {gone}", "is [3] and should be [8]", "model.extra.weight"):
        assert said in str(error.value)


NEW = {
    "transformer": transformer.Config(
        vocabulary_size=40, num_layers=1, num_heads=2, hidden_dim=8, max_sequence_length=16
    ),
    "t5": t5.Config(
        vocabulary_size=40, num_layers=1, num_heads=2, hidden_dim=8, gated=True,
        activation="gelu_new", tie_embeddings=False, scale_logits=False,
    ),
    "bart": bart.Config(
        variant="mbart", vocabulary_size=40, num_layers=1, num_heads=2, hidden_dim=8,
        max_sequence_length=16,
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", NEW)
def test_a_model_of_ours_goes_to_hugging_face_and_back(tmp_path, family, vocabulary):
    task = build({"kind": "seq2seq", "max_length": 16})
    made = store.create(family, NEW[family], vocabulary, task, seed=1)
    huggingface.write(made, tmp_path / "theirs")
    written = json.loads((tmp_path / "theirs" / "config.json").read_text())
    generation = json.loads((tmp_path / "theirs" / "generation_config.json").read_text())
    assert written["eos_token_id"] == generation["eos_token_id"] == vocabulary.eos_token_id
    assert generation["decoder_start_token_id"] == made.config.decoder_start_token_id
    assert written["is_encoder_decoder"] is True
    again = store.load(tmp_path / "theirs")
    assert again.config == made.config
    for before, after in zip(made.model.get_weights(), again.model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.fixture
def vocabulary():
    from tfllm.tokenizers.wordpiece import WordPiece

    return WordPiece.from_vocabulary(VOCABULARY, lowercase=True)


def test_tasks_and_families_that_do_not_go_together(vocabulary):
    config = NEW["transformer"]
    with pytest.raises(SettingError, match="task.kind: seq2seq"):
        store.create(
            "transformer", config, vocabulary, build({"kind": "masked_lm", "max_length": 16})
        )
    with pytest.raises(SettingError, match="transformer, t5, bart"):
        store.create(
            "bert",
            {"vocabulary_size": 40, "num_layers": 1},
            vocabulary,
            build({"kind": "seq2seq", "max_length": 16}),
        )


def test_shapes_that_hugging_face_has_not(tmp_path, vocabulary):
    config = dataclasses.replace(NEW["transformer"], pre_norm=True)
    task = build({"kind": "seq2seq", "max_length": 16})
    made = store.create("transformer", config, vocabulary, task)
    with pytest.raises(CheckpointError, match="pre_norm"):
        huggingface.write(made, tmp_path / "theirs")
    assert not (tmp_path / "theirs").exists()


@pytest.mark.parametrize(
    ("module", "model_type", "entry"),
    [
        (t5, "t5", {"is_decoder": True}),
        (t5, "t5", {"feed_forward_proj": "gated-quick"}),
        (t5, "mt5", {"num_heads": 0}),
        (bart, "bart", {"normalize_before": True}),
        (bart, "bart", {"normalize_embedding": False}),
        (bart, "mbart", {"normalize_before": False}),
        (bart, "mbart", {"d_model": 10}),
    ],
)
def test_another_graph_is_refused(module, model_type, entry):
    with pytest.raises(CheckpointError, match="config.json"):
        module.from_hf({"model_type": model_type, **entry})


@pytest.mark.parametrize(
    ("config", "fields"),
    [
        (t5.Config(variant="mt5", scale_logits=False), {"scale_logits": True}),
        (t5.Config(gated=True), {"activation": "gelu"}),
    ],
)
def test_a_t5_that_hugging_face_has_not(config, fields):
    t5.to_hf(config)
    with pytest.raises(CheckpointError, match="tfllm's own format"):
        t5.to_hf(dataclasses.replace(config, **fields))
