"""Decoders: same weights, same inputs, same scores as transformers, by the production loader."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.checkpoints.test_goldens import GOLDEN, TOLERANCE, assert_same_tensors
from tfllm.checkpoints import huggingface, store
from tfllm.checkpoints.describe import describe
from tfllm.errors import CheckpointError
from tfllm.models.decoder import get_decoder
from tfllm.tasks.causal_lm import CausalLM
from tfllm.tasks.classification import Classification
from tfllm.tasks.embedding import Embedding

NAMES = (
    "gpt2", "distilgpt2", "gpt2_untied", "llama2", "llama3", "llama_yarn", "llama_biased",
    "smollm2", "mistral", "qwen2", "qwen2_untied", "qwen3", "gemma", "gemma2", "gemma3",
    "smollm3", "granite", "olmo2", "phi3", "phi3_long", "pythia", "gpt_neox",
    "opt", "opt_350m", "galactica",
)  # fmt: skip
LABELS = tuple(
    f"{name}_labels"
    for name in ("gpt2", "llama", "qwen3", "phi3", "gemma", "gemma3", "pythia", "opt")
)
OTHERS = {
    "gpt2": "gpt2", "gemma": "gemma", "pythia": "gpt_neox", "gpt_neox": "gpt_neox", "opt": "opt",
    "galactica": "opt",
}  # fmt: skip
FAMILIES = {
    name: next((family for part, family in OTHERS.items() if part in name), "llama")
    for name in (*NAMES, *LABELS)
}
STOPS = {"bos_token_id": 3, "eos_token_id": [2, 4], "temperature": 0.7}


@pytest.fixture
def source(golden):
    return lambda name: golden("decoders", name)


def assert_equal_scores(checkpoint, inputs, logits):
    """Where the mask counts: transformers' scores on padding are of no meaning."""
    kept = inputs["padding_mask"] == 1
    np.testing.assert_allclose(
        np.asarray(checkpoint.model(inputs))[kept], logits[kept], atol=TOLERANCE
    )


def assert_comes_back(checkpoint, directory, inputs, folder):
    """Through our own form to Hugging Face's: the same tensors and settings."""
    store.save(checkpoint, folder / "ours")
    again = store.load(folder / "ours")
    assert again.config == checkpoint.config
    np.testing.assert_array_equal(again.model(inputs), checkpoint.model(inputs))
    huggingface.write(again, folder / "back")
    assert_same_tensors(directory, folder / "back")
    for file in ("config.json", "generation_config.json"):
        before, after = (
            json.loads((place / file).read_text()) for place in (directory, folder / "back")
        )
        assert before == after


def change(directory, edit=dict, **config):
    path = directory / "model.safetensors"
    save_file(edit(load_file(path)), path, metadata={"format": "pt"})
    data = json.loads((directory / "config.json").read_text()) | config
    (directory / "config.json").write_text(json.dumps(data))


@pytest.mark.parametrize("name", NAMES)
def test_scores_equal_and_the_way_back_gives_the_same_bytes(source, tmp_path, name):
    directory, inputs, logits = source(name)
    (directory / "generation_config.json").write_text(json.dumps(STOPS))
    checkpoint = store.load(directory)
    assert (checkpoint.family, checkpoint.task.kind) == (FAMILIES[name], "causal_lm")
    assert (checkpoint.task.max_length, checkpoint.eos_token_id) == (16, (2, 4))
    assert_equal_scores(checkpoint, inputs, logits)
    assert_comes_back(checkpoint, directory, inputs, tmp_path)


@pytest.mark.parametrize("name", LABELS)
def test_labels_equal_and_the_way_back_gives_the_same_bytes(source, tmp_path, name):
    """The last token of each row, which no padding moves, through a classifier without a bias."""
    directory, inputs, logits = source(name)
    (directory / "generation_config.json").write_text(json.dumps(STOPS))
    checkpoint = store.load(directory)
    assert (checkpoint.family, checkpoint.task.kind) == (FAMILIES[name], "classification")
    assert checkpoint.task.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert logits.shape == (3, 3)
    np.testing.assert_allclose(checkpoint.model(inputs), logits, atol=TOLERANCE)
    assert_comes_back(checkpoint, directory, inputs, tmp_path)
    assert describe(directory)["parameters"] == checkpoint.model.count_params()


def test_a_classifier_of_a_language_model_is_written_as_transformers_names_it(source, tmp_path):
    directory, inputs, _ = source("qwen3")
    task = Classification(labels=("no", "yes"), max_length=16)
    checkpoint = store.load(directory, task=task, seed=3)
    huggingface.write(checkpoint, tmp_path / "labels")
    written = json.loads((tmp_path / "labels" / "config.json").read_text())
    assert written["architectures"] == ["Qwen3ForSequenceClassification"]
    assert written["id2label"] == {"0": "no", "1": "yes"}
    again = store.load(tmp_path / "labels")
    assert again.task.labels == ("no", "yes")
    np.testing.assert_array_equal(again.model(inputs), checkpoint.model(inputs))
    back = store.load(tmp_path / "labels", task=CausalLM(max_length=16))
    assert back.task.kind == "causal_lm"


def test_a_family_without_a_classifier_in_transformers_keeps_it_in_our_own_format(source, tmp_path):
    directory, inputs, _ = source("granite")
    task = Classification(labels=("no", "yes"), max_length=16)
    checkpoint = store.load(directory, task=task, seed=3)
    with pytest.raises(CheckpointError, match="no place for classifier/kernel"):
        huggingface.write(checkpoint, tmp_path / "labels")
    store.save(checkpoint, tmp_path / "ours")
    again = store.load(tmp_path / "ours")
    np.testing.assert_array_equal(again.model(inputs), checkpoint.model(inputs))


@pytest.mark.parametrize("name", ["mistral", "qwen2_untied", "gemma2", "gemma3", "smollm3", "phi3"])
def test_windows_hold_in_cached_steps(source, name):
    """The window is shorter than the text."""
    directory, inputs, logits = source(name)
    checkpoint = store.load(directory)
    made = get_decoder(checkpoint.model, checkpoint.family, checkpoint.config)
    ids = inputs["token_ids"][:1]
    places = np.arange(ids.shape[1], dtype="int32")[None]
    cache, outputs = None, []
    for start, end in ((0, 5), *((i, i + 1) for i in range(5, ids.shape[1]))):
        known, new = places[:, :end], places[:, start:end]
        seen = made.layer_masks(known[:, None] <= new[:, :, None], new, known)
        hidden, added = made(ids[:, start:end], new, seen, cache)
        outputs.append(np.asarray(made.logits(hidden)))
        cache = added if cache is None else tuple(
            tuple(np.concatenate(both, 2) for both in zip(old, late, strict=True))
            for old, late in zip(cache, added, strict=True)
        )  # fmt: skip
    np.testing.assert_allclose(np.concatenate(outputs, 1), logits[:1], atol=TOLERANCE)


def test_old_gpt2_files(source, tmp_path):
    """Names without prefix, causal masks among the weights, the tied matrix written out."""
    directory, inputs, logits = source("gpt2")
    before = load_file(directory / "model.safetensors")

    def old(tensors):
        named = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
        for i in range(2):
            named[f"h.{i}.attn.bias"] = np.tril(np.ones((1, 1, 16, 16), np.float32))
            named[f"h.{i}.attn.masked_bias"] = np.array(-1e4, np.float32)
        return named | {"lm_head.weight": named["wte.weight"].copy()}

    change(directory, old, n_ctx=16)
    checkpoint = store.load(directory)
    assert not checkpoint.unused_tensors
    assert_equal_scores(checkpoint, inputs, logits)
    parameters = sum(tensor.size for tensor in before.values())
    assert describe(directory)["parameters"] == parameters
    huggingface.write(checkpoint, tmp_path / "back")
    after = load_file(tmp_path / "back" / "model.safetensors")
    want = {name.removeprefix("transformer.") for name in before}
    assert set(after) == want | {"lm_head.weight"}


def test_spellings_of_transformers_4(source):
    directory, inputs, logits = source("llama3")
    rope = json.loads((directory / "config.json").read_text())["rope_parameters"]
    theta = rope.pop("rope_theta")
    change(directory, rope_parameters=None, rope_theta=theta, rope_scaling=rope)
    assert_equal_scores(store.load(directory), inputs, logits)


def test_a_changed_shape_is_written_in_both_spellings(source, tmp_path):
    import dataclasses

    directory, _, _ = source("llama3")
    checkpoint = store.load(directory)
    changed = dataclasses.replace(checkpoint.config, rope_theta=100.0)
    huggingface.write(dataclasses.replace(checkpoint, config=changed), tmp_path / "back")
    written = json.loads((tmp_path / "back" / "config.json").read_text())
    assert written["rope_theta"] == written["rope_parameters"]["rope_theta"] == 100.0
    assert store.load(tmp_path / "back").config == changed


def test_a_model_of_ours_names_its_own_end(tmp_path):
    from tests.helpers.vocabularies import SPELLING
    from tfllm.models import gpt2
    from tfllm.tasks.causal_lm import CausalLM
    from tfllm.tokenizers.wordpiece import WordPiece

    config = gpt2.Config(
        vocabulary_size=len(SPELLING), num_layers=1, num_heads=2, hidden_dim=8,
        max_sequence_length=16,
    )  # fmt: skip
    tokenizer = WordPiece.from_vocabulary(SPELLING, lowercase=True)
    made = store.create("gpt2", config, tokenizer, CausalLM(max_length=16))
    assert made.eos_token_id == (tokenizer.eos_token_id,)
    huggingface.write(made, tmp_path / "theirs")
    written = json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert written["eos_token_id"] == tokenizer.eos_token_id
    assert written["architectures"] == ["GPT2LMHeadModel"]
    assert store.load(tmp_path / "theirs").config == config


def test_a_bare_untied_model_lacks_its_logits(source):
    directory, _, _ = source("llama2")

    def bare(tensors):
        del tensors["lm_head.weight"]
        return {name.removeprefix("model."): tensor for name, tensor in tensors.items()}

    change(directory, bare, architectures=["LlamaModel"])
    with pytest.raises(CheckpointError, match=r"no lm_head.weight.*without its head.*embedding"):
        store.load(directory)
    store.load(directory, task=Embedding(max_length=16))


def test_vectors_of_narrow_embeddings_are_narrow(source, tmp_path):
    """OPT-350M projects its hidden states back to the width of the embeddings."""
    directory, inputs, _ = source("opt_350m")
    checkpoint = store.load(directory, task=Embedding(max_length=16))
    huggingface.write(checkpoint, tmp_path / "out")
    pooling = json.loads((tmp_path / "out" / "1_Pooling" / "config.json").read_text())
    assert pooling["word_embedding_dimension"] == 6 != checkpoint.config.hidden_dim
    again = store.load(tmp_path / "out")
    np.testing.assert_array_equal(again.model(inputs), checkpoint.model(inputs))
    assert again.model(inputs).shape == (3, 6)


def test_parameters_of_an_untied_model_are_all_counted(source):
    directory, _, _ = source("llama2")
    tensors = load_file(directory / "model.safetensors")
    facts = describe(directory)
    assert facts["parameters"] == sum(tensor.size for tensor in tensors.values())
    assert facts["task"]["kind"] == "causal_lm"


def test_a_missing_part_is_named(source):
    directory, _, _ = source("gpt2")

    def cut(tensors):
        name = "transformer.h.0.attn.c_attn.weight"
        return tensors | {name: tensors[name][:, :16].copy()}

    change(directory, cut)
    with pytest.raises(CheckpointError, match=r"c_attn.weight is \[8, 16\] and should be \[8, 24"):
        store.load(directory)


@pytest.mark.parity
@pytest.mark.parametrize("name", NAMES)
def test_live_against_transformers(tmp_path, vocabulary_text, name):
    pytest.importorskip("torch", reason="install the extra [parity]")
    pytest.importorskip("transformers", reason="install the extra [parity]")
    sys.path.insert(0, str(GOLDEN))
    import make_decoders

    model = make_decoders.build(name)
    model.save_pretrained(tmp_path / "source")
    (tmp_path / "source" / "vocab.txt").write_text(vocabulary_text)
    given = make_decoders.inputs()
    checkpoint = store.load(tmp_path / "source")
    assert_equal_scores(checkpoint, given, make_decoders.answer(model, given))

    # As a model of ours, whose configuration is written anew.
    store.save(checkpoint, tmp_path / "ours")
    settings = json.loads((tmp_path / "ours" / "tfllm.json").read_text())
    (tmp_path / "ours" / "tfllm.json").write_text(json.dumps(settings | {"huggingface": None}))
    huggingface.write(store.load(tmp_path / "ours"), tmp_path / "back")
    again, report = type(model).from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    kept = given["padding_mask"] == 1
    answers = [make_decoders.answer(each.eval(), given)[kept] for each in (again, model)]
    np.testing.assert_allclose(*answers, atol=TOLERANCE)  # it may choose another kernel


def test_every_golden_is_tested():
    with np.load(Path(GOLDEN) / "decoders.npz") as file:
        assert {name.split("/")[0] for name in file.files} == {*NAMES, *LABELS}
