"""Tied tensors: equal, different, and there under one name only, as transformers 5 loads them."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tfllm.checkpoints import huggingface, store
from tfllm.checkpoints.describe import describe
from tfllm.errors import CheckpointError

# Golden file and head: its embeddings, and the name that its logits have in a file.
MODELS = {
    ("decoders", "smollm2"): ("model.embed_tokens.weight", "lm_head.weight"),
    ("decoders", "gemma3"): ("model.embed_tokens.weight", "lm_head.weight"),
    ("decoders", "gpt2"): ("transformer.wte.weight", "lm_head.weight"),
    ("decoders", "qwen2"): ("model.embed_tokens.weight", "lm_head.weight"),
    ("bert", "masked_lm"): (
        "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.weight",
    ),
    ("distilbert", "masked_lm"): (
        "distilbert.embeddings.word_embeddings.weight",
        "vocab_projector.weight",
    ),
    ("electra", "masked_lm"): (
        "electra.embeddings.word_embeddings.weight",
        "generator_lm_head.weight",
    ),
    ("roberta", "masked_lm"): (
        "roberta.embeddings.word_embeddings.weight",
        "lm_head.decoder.weight",
    ),
    ("modernbert", "masked_lm"): ("model.embeddings.tok_embeddings.weight", "decoder.weight"),
    ("mpnet", "masked_lm"): (
        "mpnet.embeddings.word_embeddings.weight",
        "lm_head.decoder.weight",
    ),
    ("albert", "masked_lm"): (
        "albert.embeddings.word_embeddings.weight",
        "predictions.decoder.weight",
    ),
    ("encoder_decoders", "bart"): ("model.shared.weight", "lm_head.weight"),
    ("encoder_decoders", "t5"): ("shared.weight", "lm_head.weight"),
}
TOLERANCE = 1e-4  # as of the goldens: float32 in another order


def change(directory, edit, **config):
    path = directory / "model.safetensors"
    save_file(edit(load_file(path)), path, metadata={"format": "pt"})
    data = json.loads((directory / "config.json").read_text()) | config
    (directory / "config.json").write_text(json.dumps(data))


@pytest.fixture(params=MODELS, ids=lambda pair: "-".join(pair))
def tied(golden, request):
    """directory, inputs, logits, name of the embeddings, name of the logits' own matrix"""
    return *golden(*request.param), *MODELS[request.param]


def scores(checkpoint, inputs):
    found = np.asarray(checkpoint.model({name: inputs[name] for name in checkpoint.model.input}))
    return found[inputs["padding_mask"] == 1] if "padding_mask" in inputs else found


def test_equal_tensors_are_one_weight(tied, tmp_path):
    directory, inputs, logits, words, head = tied
    parameters = describe(directory)["parameters"]
    change(directory, lambda t: {**t, head: t[words].copy()})
    checkpoint = store.load(directory)
    assert checkpoint.config.tie_embeddings
    np.testing.assert_allclose(
        scores(checkpoint, inputs), logits[inputs["padding_mask"] == 1], atol=TOLERANCE
    )
    assert describe(directory)["parameters"] == parameters
    huggingface.write(checkpoint, tmp_path / "back")
    assert set(load_file(tmp_path / "back" / "model.safetensors")) == set(
        load_file(directory / "model.safetensors")
    )


def test_a_weight_is_found_under_its_other_name(tied, tmp_path):
    directory, inputs, logits, words, head = tied
    change(directory, lambda t: {**{n: v for n, v in t.items() if n != words}, head: t[words]})
    checkpoint = store.load(directory)
    np.testing.assert_allclose(
        scores(checkpoint, inputs), logits[inputs["padding_mask"] == 1], atol=TOLERANCE
    )
    huggingface.write(checkpoint, tmp_path / "back")
    assert set(load_file(tmp_path / "back" / "model.safetensors")) == set(
        load_file(directory / "model.safetensors")
    )


def test_different_tensors_are_two_weights(tied, tmp_path, caplog):
    """The logits come of their own matrix, here the embeddings times two: twice the logits but
    for the biases."""
    directory, inputs, _, words, head = tied
    whole = load_file(directory / "model.safetensors")
    before = scores(store.load(directory), inputs)
    change(directory, lambda t: {**t, head: t[words] * 2})
    checkpoint = store.load(directory)
    assert not checkpoint.config.tie_embeddings
    assert f"{head} differs from {words}" in caplog.text
    bias = next(
        (np.asarray(w) for w in checkpoint.model.weights if w.path == "token_bias/bias"), 0.0
    )
    np.testing.assert_allclose(scores(checkpoint, inputs), 2 * before - bias, atol=TOLERANCE)

    store.save(checkpoint, tmp_path / "ours")
    huggingface.write(store.load(tmp_path / "ours"), tmp_path / "back")
    after = load_file(tmp_path / "back" / "model.safetensors")
    assert set(after) == {*whole, head}
    np.testing.assert_array_equal(after[head], 2 * after[words])
    again = store.load(tmp_path / "back")
    np.testing.assert_array_equal(scores(again, inputs), scores(checkpoint, inputs))
    size = whole[words].size
    assert describe(directory)["parameters"] == sum(t.size for t in whole.values()) + size


def test_a_decoder_says_afterwards_what_its_tensors_are(golden, tmp_path):
    """Older readers believe `tie_word_embeddings`, and would drop the matrix."""
    directory, _, _ = golden("decoders", "smollm2")
    change(directory, lambda t: {**t, "lm_head.weight": t["model.embed_tokens.weight"] + 1})
    huggingface.write(store.load(directory), tmp_path / "back")
    before, after = (
        json.loads((place / "config.json").read_text()) for place in (directory, tmp_path / "back")
    )
    assert after == before | {"tie_word_embeddings": False}


@pytest.mark.parametrize(
    ("model", "config", "said"),
    [
        (("decoders", "smollm2"), "lm_head.weight", r"no lm_head.weight.*tie_word_embeddings"),
        (("bert", "masked_lm"), "", r"no cls.predictions.decoder.weight.*tie_word_embeddings"),
    ],
)
def test_untied_logits_that_are_not_there(golden, model, config, said):
    directory, _, _ = golden(*model)
    change(directory, dict, tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match=said):
        store.load(directory)


def test_t5_is_tied_whatever_its_configuration_says(golden):
    """There the key says how logits are scaled."""
    directory, _, _ = golden("encoder_decoders", "t5")
    change(directory, dict, tie_word_embeddings=False)
    assert store.load(directory).config.tie_embeddings


@pytest.mark.parametrize(
    ("family", "first", "other"),
    [
        ("bert", "cls.predictions.bias", "cls.predictions.decoder.bias"),
        ("roberta", "lm_head.bias", "lm_head.decoder.bias"),
    ],
)
def test_of_two_biases_the_layers_own_is_added(golden, tmp_path, family, first, other):
    directory, inputs, logits = golden(family, "masked_lm")
    bias = load_file(directory / "model.safetensors")[first]
    change(directory, lambda t: {**t, first: t[first] + 5, other: bias})
    checkpoint = store.load(directory)
    np.testing.assert_allclose(
        scores(checkpoint, inputs), logits[inputs["padding_mask"] == 1], atol=TOLERANCE
    )
    huggingface.write(checkpoint, tmp_path / "back")
    after = load_file(tmp_path / "back" / "model.safetensors")
    np.testing.assert_array_equal(after[first], bias + 5)
    np.testing.assert_array_equal(after[other], bias)
    change(directory, lambda t: {n: v for n, v in t.items() if n != first})
    np.testing.assert_allclose(
        scores(store.load(directory), inputs), logits[inputs["padding_mask"] == 1], atol=TOLERANCE
    )


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_other_embeddings_for_sources_are_refused(golden, name):
    directory, _, _ = golden("encoder_decoders", name)
    prefix = "" if name == "t5" else "model."

    def edit(tensors):
        words = tensors[f"{prefix}shared.weight"]
        return {**tensors, f"{prefix}encoder.embed_tokens.weight": words + 1}

    change(directory, edit)
    with pytest.raises(CheckpointError, match=r"encoder.embed_tokens.weight and .*shared.weight"):
        store.load(directory)


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_shared_embeddings_under_a_sides_name(golden, name):
    directory, inputs, logits = golden("encoder_decoders", name)
    prefix = "" if name == "t5" else "model."

    def edit(tensors):
        words = tensors.pop(f"{prefix}shared.weight")
        return {**tensors, f"{prefix}decoder.embed_tokens.weight": words}

    change(directory, edit)
    np.testing.assert_allclose(
        scores(store.load(directory), inputs), logits[inputs["padding_mask"] == 1], atol=TOLERANCE
    )
