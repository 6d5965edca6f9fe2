"""A model family is one file of four names and one line: a toy family, added inside the test."""

import ast
import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from safetensors.numpy import save_file

import tfllm
from tests.helpers import recipes
from tfllm import models
from tfllm.checkpoints import store
from tfllm.errors import CheckpointError
from tfllm.models.weight_map import WeightMap, linear
from tfllm.runtimes.opening import open_model

PACKAGE = Path(__file__).parents[2] / "tfllm"


@dataclass(frozen=True)
class Config:
    vocabulary_size: int = 1000
    hidden_dim: int = 16
    max_sequence_length: int = 64
    pad_token_id: int = 0


def backbone(config):
    """Every token's embedding plus what a dense layer makes of it."""
    token_ids = keras.Input((None,), dtype="int32", name="token_ids")
    mask = keras.Input((None,), dtype="int32", name="padding_mask")
    x = keras.layers.Embedding(config.vocabulary_size, config.hidden_dim, name="token_embedding")(
        token_ids
    )
    x = x + keras.layers.Dense(config.hidden_dim, activation="tanh", name="mixer")(x)
    return keras.Model({"token_ids": token_ids, "padding_mask": mask}, x, name="bag")


def from_hf(hf_config):
    if hf_config.get("gated"):
        raise CheckpointError("config.json: gated is true.")
    return Config(hf_config["vocab_size"], hf_config["hidden_size"])


WEIGHTS = {
    "bag": WeightMap(
        prefix="bag.",
        backbone={
            "token_embedding/embeddings": "bag.embedding.weight",
            **linear("mixer", "bag.mixer"),
        },
        heads={"embedding": {}},
        architectures={"embedding": ("BagModel",)},
    )
}
FAMILY = SimpleNamespace(Config=Config, backbone=backbone, from_hf=from_hf, WEIGHTS=WEIGHTS)


def test_a_family_is_one_file_and_one_line(monkeypatch, tmp_path):
    """New model, training, saving, loading, prediction and export; and a Hugging Face directory."""
    monkeypatch.setitem(models.FAMILIES, "bag", FAMILY)
    folder = recipes.write_data(tmp_path / "data")
    settings = recipes.settings(
        folder,
        task={"kind": "classification", "labels": ["bad", "good"], "pooling": "mean",
              "max_length": 32},
    )  # fmt: skip
    settings["model"] = {"family": "bag", "hidden_dim": 32}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(settings))
    tfllm.train(recipe, output=tmp_path / "run", overrides=["train.epochs=3"])

    path = tmp_path / "run" / "checkpoint"
    checkpoint = store.load(path)
    assert (checkpoint.family, checkpoint.config.hidden_dim) == ("bag", 32)
    store.save(checkpoint, tmp_path / "again")
    again = store.load(tmp_path / "again")
    for one, other in zip(checkpoint.model.weights, again.model.weights, strict=True):
        np.testing.assert_array_equal(one, other)

    texts = ["red and green", "one is two"]
    answers = tfllm.load(path).predict(texts)
    assert [answer["label"] for answer in answers] == ["good", "bad"]
    validation = folder / "validation.tsv"
    tfllm.export(path, "savedmodel", tmp_path / "exported", data=validation)
    served = open_model(tmp_path / "exported").predict([{"text": text} for text in texts])
    for answer, other in zip(served, answers, strict=True):
        assert answer["scores"] == pytest.approx(other["scores"], abs=1e-5)

    hf = write_hf(checkpoint, tmp_path / "hf")
    read = tfllm.load(hf)
    assert (read.checkpoint.family, read.task.kind) == ("bag", "embedding")
    names = [variable.path for variable in read.keras.weights]
    values = {variable.path: np.asarray(variable) for variable in checkpoint.model.weights}
    for variable in read.keras.weights:
        np.testing.assert_array_equal(variable, values[variable.path])
    assert names and len(read.predict(texts)[0]["embedding"]) == 32
    (hf / "config.json").write_text(json.dumps({**hf_config(checkpoint), "gated": True}))
    with pytest.raises(CheckpointError, match="gated"):
        store.load(hf)


def hf_config(checkpoint):
    return {
        "model_type": "bag", "architectures": ["BagModel"], "hidden_size": 32,
        "vocab_size": checkpoint.config.vocabulary_size,
    }  # fmt: skip


def write_hf(checkpoint, folder):
    """The backbone as a directory of Hugging Face's."""
    folder.mkdir()
    values = {variable.path: np.asarray(variable) for variable in checkpoint.model.weights}
    tensors = {
        "embedding.weight": values["token_embedding/embeddings"],
        "mixer.weight": values["mixer/kernel"].T.copy(),
        "mixer.bias": values["mixer/bias"],
    }
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(hf_config(checkpoint)))
    checkpoint.tokenizer.save(folder)
    return folder


# Hugging Face's names of tokenizer classes, and llama.cpp's of architectures and vocabularies, some
# of which are names of families too.
OTHER_NAMES = {
    "tokenizers/tokenizer_config.py", "tokenizers/gguf_vocabulary.py", "checkpoints/gguf.py",
}  # fmt: skip


@pytest.mark.parametrize(
    "path",
    [path for path in sorted(PACKAGE.rglob("*.py")) if not path.is_relative_to(PACKAGE / "models")],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_no_other_file_lists_families(path):
    if str(path.relative_to(PACKAGE)) not in OTHER_NAMES:
        assert list(families_named(ast.parse(path.read_text()))) == []


def families_named(tree):
    """Lines that compare something called family or variant with a name of one, or list several."""

    def names(node):
        parts = node.elts if isinstance(node, ast.Tuple | ast.List | ast.Set) else [node]
        return [p for p in parts if isinstance(p, ast.Constant) and p.value in models.FAMILIES]

    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            called = {getattr(side, "attr", getattr(side, "id", "")) for side in sides}
            if called & {"family", "variant", "model_type"} and any(map(names, sides)):
                yield node.lineno
        elif isinstance(node, ast.Tuple | ast.List | ast.Set) and len(names(node)) > 1:
            yield node.lineno
        elif isinstance(node, ast.Dict):
            if len([key for key in node.keys if key is not None and names(key)]) > 1:
                yield node.lineno


def test_a_list_of_families_is_found():
    for line in (
        'config.family == "bert"',
        'variant in ("gpt2", "other")',
        'T = ("bert", "t5")',
        'T = {"llama": 1, "bart": 2}',
    ):
        assert list(families_named(ast.parse(line))) == [1]
    assert list(families_named(ast.parse('path = {"bert": folder}'))) == []
