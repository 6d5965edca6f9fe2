"""The forms in which Hugging Face files come: names, shards, dtypes, ties, label maps."""

import dataclasses
import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tfllm.checkpoints import huggingface, store
from tfllm.errors import CheckpointError
from tfllm.tasks.classification import Classification
from tfllm.tasks.embedding import Embedding
from tfllm.tasks.masked_lm import MaskedLM
from tfllm.tasks.next_sentence import NextSentence
from tfllm.tasks.token_classification import TokenClassification

WORDS = "bert.embeddings.word_embeddings.weight"


def change(directory, edit, **config):
    """Rewrites the tensors by `edit` (dict to dict) and entries of the configuration."""
    path = directory / "model.safetensors"
    save_file(edit(load_file(path)), path, metadata={"format": "pt"})
    data = json.loads((directory / "config.json").read_text()) | config
    (directory / "config.json").write_text(json.dumps(data))


def there_and_back(directory, tmp_path):
    """Through tfllm's own format; returns the first checkpoint. Asserts equal names and bytes."""
    checkpoint = store.load(directory)
    store.save(checkpoint, tmp_path / "ours")
    huggingface.write(store.load(tmp_path / "ours"), tmp_path / "back")
    before = load_file(directory / "model.safetensors")
    after = load_file(tmp_path / "back" / "model.safetensors")
    assert set(after) == set(before)
    for name, tensor in before.items():
        assert (after[name].dtype, after[name].tobytes()) == (tensor.dtype, tensor.tobytes()), name
    return checkpoint


def old_names(tensors):
    return {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in tensors.items()
    }


def without_prefix(tensors):
    return {name.removeprefix("bert."): tensor for name, tensor in tensors.items()}


def with_ties(tensors):
    return {
        **tensors,
        "cls.predictions.decoder.weight": tensors[WORDS].copy(),
        "cls.predictions.decoder.bias": tensors["cls.predictions.bias"].copy(),
        "bert.embeddings.position_ids": np.arange(16, dtype=np.int64)[None],
    }


def mixed_dtypes(tensors):
    return {
        name: tensor.astype(np.float16 if name == WORDS else ml_dtypes.bfloat16)
        for name, tensor in tensors.items()
    }


@pytest.mark.parametrize(
    ("head", "edit"),
    [
        ("pretraining", old_names),
        ("classification", without_prefix),
        ("pretraining", with_ties),
        ("question_answering", mixed_dtypes),
    ],
)
def test_a_form_loads_and_comes_back_as_it_was(golden, tmp_path, head, edit):
    directory, inputs, logits = golden("bert", head)
    change(directory, edit)
    checkpoint = there_and_back(directory, tmp_path)
    loose = edit is mixed_dtypes
    scores = checkpoint.model(inputs)
    scores = scores["tokens"] if head == "pretraining" else scores  # the pairs' have a form too
    np.testing.assert_allclose(scores, logits, atol=0.1 if loose else 1e-4)


def test_trained_half_precision_weights_come_back_whole(golden, tmp_path, caplog):
    directory, _, _ = golden("bert", "token_classification")
    change(directory, mixed_dtypes, dtype="bfloat16")
    checkpoint = store.load(directory)
    bias = checkpoint.model.get_layer("classifier").bias
    bias.assign(bias + 1e-6)
    huggingface.write(checkpoint, tmp_path / "back")
    assert "float32" in caplog.text
    tensors = load_file(tmp_path / "back" / "model.safetensors")
    assert {tensor.dtype.name for tensor in tensors.values()} == {"float32"}
    np.testing.assert_array_equal(tensors["classifier.bias"], bias)
    assert json.loads((tmp_path / "back" / "config.json").read_text())["dtype"] == "float32"


def test_shards_with_an_index(golden):
    directory, inputs, logits = golden("electra", "classification")
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    parts = {f"model-0000{i}-of-00002.safetensors": list(tensors)[i - 1 :: 2] for i in (1, 2)}
    for file, names in parts.items():
        save_file({name: tensors[name] for name in names}, directory / file)
    index = {name: file for file, names in parts.items() for name in names}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    np.testing.assert_allclose(store.load(directory).model(inputs), logits, atol=1e-4)

    (directory / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="model-00002-of-00002.safetensors"):
        store.load(directory)


@pytest.mark.parametrize(
    ("head", "labels", "problem"),
    [
        ("classification", ("low", "middle", "high"), "single_label"),
        ("multi_label", ("low", "middle", "high"), "multi_label"),
        ("regression", ("stars",), "regression"),
    ],
)
def test_label_maps_and_problems(golden, tmp_path, head, labels, problem):
    directory, _, _ = golden("bert", head)
    checkpoint = store.load(directory)
    assert checkpoint.task == Classification(labels=labels, problem=problem, max_length=16)
    huggingface.write(checkpoint, tmp_path / "back")
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert config == json.loads((directory / "config.json").read_text())


SINGLE, MULTI = "single_label_classification", "multi_label_classification"


@pytest.mark.parametrize(
    ("size", "named", "problem"),
    [
        (1, None, "multi_label"), (1, SINGLE, "multi_label"), (1, MULTI, "multi_label"),
        (1, "regression", "regression"), (2, None, "single_label"), (2, SINGLE, "single_label"),
        (2, MULTI, "multi_label"), (2, "regression", "regression"),
    ],
)  # fmt: skip
def test_one_label_is_yes_or_no_unless_it_is_a_number(golden, tmp_path, size, named, problem):
    """As transformers' pipelines judge it; a reranker's answer is a sigmoid."""
    directory, inputs, logits = golden("bert", "classification")
    change(
        directory,
        lambda t: {n: v[:size].copy() if n.startswith("classifier") else v for n, v in t.items()},
        id2label={str(i): f"LABEL_{i}" for i in range(size)},
        label2id={f"LABEL_{i}": i for i in range(size)},
        problem_type=named,
    )
    checkpoint = store.load(directory)
    assert checkpoint.task.problem == problem
    answer = checkpoint.task.answer_from_logits(logits[0, :size])
    if problem == "multi_label":
        want = 1 / (1 + np.exp(-logits[0, :size]))
        np.testing.assert_allclose(list(answer["scores"].values()), want, atol=1e-6)
    huggingface.write(checkpoint, tmp_path / "back")
    before, after = (
        json.loads((place / "config.json").read_text()) for place in (directory, tmp_path / "back")
    )
    assert after == before
    bare = dataclasses.replace(checkpoint, origin=None, unused_tensors={})
    huggingface.write(bare, tmp_path / "bare")
    assert store.load(tmp_path / "bare").task.problem == problem


def test_labels_without_names(golden):
    directory, _, _ = golden("bert", "classification")
    change(directory, dict, id2label=None)
    assert store.load(directory).task.labels == ("LABEL_0", "LABEL_1", "LABEL_2")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"id2label": {"0": "a", "2": "b", "3": "c"}}, "without a gap"),
        ({"id2label": {"0": "a", "1": "a", "2": "c"}}, "name none twice"),
        ({"id2label": {"0": "a", "1": "b"}}, "2 labels and the classifier 3 outputs"),
        ({"id2label": ["a", "b", "c"]}, "not a table"),
        ({"problem_type": "multi_label"}, "Known: multi_label_classification"),
        ({"model_type": "BERT"}, "Did you mean 'bert'"),
        ({"model_type": "xlm_roberta"}, "Did you mean 'xlm-roberta'"),
        ({"model_type": "mamba"}, r"tfllm has\. Known: bert, distilbert, electra[^:]*$"),
        ({"model_type": "deberta"}, r"tfllm has\. Known: bert"),
        ({"model_type": None}, "'model_type' is missing"),
        (
            {"architectures": ["BertForMultipleChoice"]},
            r"'BertForMultipleChoice' has no task in tfllm\. Known: BertModel[^:]*model.from\.$",
        ),
        ({"architectures": "BertModel"}, "no list of names"),
        ({"hidden_act": "gelu_fst"}, r"unknown activation 'gelu_fst'\. Known: gelu, gelu_accurate"),
        ({"architectures": None}, "'architectures' is missing"),
        ({"num_hidden_layers": 3}, "missing: bert.encoder.layer.2"),
        ({"num_hidden_layers": 1}, "without a place in the model: bert.encoder.layer.1"),
        ({"intermediate_size": 13}, r"is \[12, 8\] and should be \[13, 8\]"),
        ({"is_decoder": True}, "decoding"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(golden, config, said):
    directory, _, _ = golden("bert", "classification")
    change(directory, dict, **config)
    with pytest.raises(CheckpointError, match=said) as error:
        store.load(directory)
    assert "\n" not in str(error.value)


def test_several_problems_are_named_together(golden):
    directory, _, _ = golden("bert", "masked_lm")

    def edit(tensors):
        del tensors["cls.predictions.bias"]
        tensors["bert.strange.weight"] = np.zeros(3, np.float32)
        tensors[WORDS] = tensors[WORDS][:, :5].copy()
        return tensors

    change(directory, edit)
    with pytest.raises(CheckpointError) as error:
        store.load(directory)
    for said in ("1 tensor missing: cls.predictions.bias", "bert.strange.weight", f"{WORDS} is"):
        assert said in str(error.value)


def test_integer_weights_are_refused(golden):
    directory, _, _ = golden("bert", "embedding")
    change(directory, lambda tensors: {n: t.astype(np.int8) for n, t in tensors.items()})
    with pytest.raises(CheckpointError, match="before quantization"):
        store.load(directory)


def test_heads_that_hugging_face_has_not(golden, tmp_path):
    directory, _, _ = golden("distilbert", "embedding")
    for task in (NextSentence(max_length=16), Embedding(pooling="pooler", max_length=16)):
        checkpoint = store.load(directory, task=task)
        with pytest.raises(CheckpointError, match="has no place for"):
            huggingface.write(checkpoint, tmp_path / "back")
        assert not (tmp_path / "back").exists()


def test_a_new_head_on_the_encoder(golden, tmp_path, caplog):
    """Each part of the old head that means the same goes along, a classifier never."""
    directory, _, _ = golden("bert", "pretraining")
    tensors = load_file(directory / "model.safetensors")
    checkpoint = store.load(directory, task=Classification(labels=("no", "yes"), max_length=16))
    assert "new, to be trained: classifier/bias, classifier/kernel" in caplog.text
    assert "left behind: cls.predictions.bias" in caplog.text
    pooler = checkpoint.model.get_layer("pooler").kernel
    np.testing.assert_array_equal(pooler, tensors["bert.pooler.dense.weight"].T)
    assert not checkpoint.unused_tensors

    huggingface.write(checkpoint, tmp_path / "new")
    again = store.load(tmp_path / "new")
    assert again.task.labels == ("no", "yes")
    written = load_file(tmp_path / "new" / "model.safetensors")
    assert "bert.pooler.dense.weight" in written and "cls.predictions.bias" not in written


@pytest.mark.parametrize(
    ("task", "kept"),
    [
        (NextSentence(max_length=16), "next_sentence"),
        (MaskedLM(max_length=16, top_k=3), "transform"),
    ],
)
def test_a_head_that_the_file_has_is_used(golden, task, kept, caplog):
    directory, _, _ = golden("bert", "pretraining")
    checkpoint = store.load(directory, task=task)
    assert checkpoint.task == task
    assert "new, to be trained" not in caplog.text
    tensors = load_file(directory / "model.safetensors")
    name = {"next_sentence": "cls.seq_relationship", "transform": "cls.predictions.transform.dense"}
    kernel = checkpoint.model.get_layer(kept).kernel
    np.testing.assert_array_equal(kernel, tensors[f"{name[kept]}.weight"].T)


def test_another_kind_with_equal_names_takes_no_classifier(golden):
    directory, inputs, _ = golden("bert", "classification")
    labels = store.load(directory).task.labels
    tagger = store.load(directory, task=TokenClassification(labels=labels, max_length=16), seed=1)
    old = load_file(directory / "model.safetensors")["classifier.weight"].T
    assert not np.array_equal(tagger.model.get_layer("classifier").kernel, old)


def test_an_unknown_head_gives_its_encoder(golden):
    directory, _, _ = golden("bert", "classification")
    change(directory, dict, architectures=["BertForMultipleChoice"])
    task = Classification(labels=("a", "b"), max_length=16)
    assert store.load(directory, task=task).task == task


def test_a_mean_pooled_classifier_stays_in_our_own_form(tiny_checkpoint, tmp_path):
    """Hugging Face has no such head; ours loads and has no pooler."""
    task = store.load(tiny_checkpoint).task.model_copy(update={"pooling": "mean"})
    checkpoint = store.load(tiny_checkpoint, task=task)
    assert not [weight.path for weight in checkpoint.model.weights if "pooler" in weight.path]
    again = store.load(store.save(checkpoint, tmp_path / "mean"))
    assert again.task.pooling == "mean"
    with pytest.raises(CheckpointError, match="task.pooling"):
        huggingface.write(checkpoint, tmp_path / "theirs")
    assert not (tmp_path / "theirs").exists()
