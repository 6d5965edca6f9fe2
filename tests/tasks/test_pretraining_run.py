"""BERT's objective through the whole of tfllm: a run from texts and from a corpus, what it leaves,
fine-tuning from it, Hugging Face's BertForPreTraining both ways."""

import json

import numpy as np
import pytest
import yaml

from tests.tasks.test_pretraining import WORDS
from tfllm import config
from tfllm.checkpoints import huggingface, store
from tfllm.checkpoints.weights import variables_of
from tfllm.cli import main
from tfllm.errors import DataError, SettingError
from tfllm.training.recipe import Recipe
from tfllm.training.run import train

MICRO_BATCHES = 2e-4  # three steps of Adam at 0.01 on sums in another order; weights are near 0.3
PARITY = 1e-4  # float32, and two libraries that add in another order


def verb(*arguments):
    """`tfllm ...`, which must succeed."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert ended.value.code == 0


def settings(folder, **parts):
    data = {
        "name": "tiny",
        "model": {"family": "bert", "num_layers": 1, "num_heads": 2, "hidden_dim": 16,
                  "max_sequence_length": 32, "initializer_range": 0.3},
        "task": {"kind": "pretraining", "max_length": 32},
        "tokenizer": {"path": str(folder / "vocab.txt")},
        "data": {"train": str(folder / "texts.txt"), "validation_share": 0.2},
        "train": {"steps": 6, "batch_size": 8, "learning_rate": 0.01, "precision": "float32",
                  "log_every": 2, "checkpoint_every": 3},
    }  # fmt: skip
    for key, changes in parts.items():
        data[key] = {**data[key], **changes} if isinstance(changes, dict) else changes
    return data


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """texts.txt: a document a line; vocab.txt; recipe.yaml."""
    folder = tmp_path_factory.mktemp("pretraining")
    chance = np.random.default_rng(3)
    lines = [
        " ".join(
            " ".join(chance.choice(WORDS, chance.integers(2, 9))).capitalize() + "."
            for _ in range(6)
        )
        for _ in range(60)
    ]
    (folder / "texts.txt").write_text("\n".join(lines) + "\n")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (folder / "vocab.txt").write_text("\n".join([*special, *WORDS, "."]) + "\n")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(settings(folder)))
    return folder


@pytest.fixture(scope="module")
def run(folder):
    recipe = config.build(settings(folder), Recipe)
    return train(recipe, folder / "run", progress=False)


@pytest.fixture(scope="module")
def corpus(folder):
    verb("prepare", folder / "recipe.yaml", "--output", folder / "corpus")
    return str(folder / "corpus")


def test_a_run_measures_both(run):
    assert {"loss", "masked_accuracy", "perplexity", "next_sentence_accuracy"} <= set(
        run.summary["validation"]
    )
    checkpoint = store.load(run.directory)
    assert checkpoint.task.kind == "pretraining"
    assert set(checkpoint.model.output) == {"tokens", "next_sentence"}


def test_both_means_are_over_the_whole_batch(folder, tmp_path):
    """Whatever its micro-batches, which have other shares of hidden tokens and of pairs."""
    weights = []
    for parts in (1, 3):
        shape = {"dropout": 0.0, "attention_dropout": 0.0}
        steps = {"steps": 3, "accumulate": parts}
        recipe = config.build(settings(folder, model=shape, train=steps), Recipe)
        found = train(recipe, tmp_path / str(parts), progress=False)
        weights.append([np.asarray(weight) for weight in store.load(found.directory).model.weights])
    for first, second in zip(*weights, strict=True):
        np.testing.assert_allclose(first, second, atol=MICRO_BATCHES)


def test_a_prepared_corpus_trains_the_same_model(folder, run, corpus):
    recipe = config.build(settings(folder, data={"train": corpus}), Recipe)
    again = train(recipe, folder / "from_corpus", progress=False)
    theirs, ours = store.load(run.directory).model, store.load(again.directory).model
    for first, second in zip(theirs.weights, ours.weights, strict=True):
        np.testing.assert_array_equal(first, second)
    assert again.summary["validation"] == run.summary["validation"]


def test_what_does_not_go_with_a_corpus(folder, corpus, tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nother\n")
    cases = [
        ({"tokenizer": {"path": str(tmp_path / "vocab.txt")}}, "another vocabulary"),
        ({"task": {"kind": "classification"}}, "needs more"),
        ({"data": {"validation_tail": 0.1, "validation_share": None}}, "validation_tail"),
        ({"data": {"limit": 3}}, "data.limit is 3"),
        ({"data": {"train": [corpus, str(folder / "texts.txt")]}}, "must be named alone"),
    ]
    for changes, message in cases:
        data = {"train": corpus, **changes.get("data", {})}
        recipe = config.build(settings(folder, **{**changes, "data": data}), Recipe)
        with pytest.raises((SettingError, DataError), match=message):
            train(recipe, tmp_path / "run", progress=False)
        assert not (tmp_path / "run").exists()


def test_other_tasks_read_a_corpus(folder, corpus, tmp_path):
    data = {"train": corpus}
    for kind, family in (("masked_lm", "bert"), ("causal_lm", "gpt2")):
        shape = {"family": family, "num_layers": 1, "num_heads": 2, "hidden_dim": 16,
                 "max_sequence_length": 32}  # fmt: skip
        plain = settings(folder, data=data)
        plain |= {"model": shape, "task": {"kind": kind, "max_length": 32}, "tokenizer": None}
        found = train(config.build(plain, Recipe), tmp_path / kind, progress=False)
        assert found.summary["validation"]["perplexity"] > 1


def test_fine_tuning_begins_with_it(folder, run, tmp_path):
    """The encoder and the pooler, which the pairs' head has taught."""
    lines = [f"{word}\t{'yes' if n % 2 else 'no'}" for n, word in enumerate(WORDS)]
    (tmp_path / "train.tsv").write_text("text\tlabel\n" + "\n".join(lines) + "\n")
    plain = settings(folder, train={"steps": 1, "learning_rate": 1e-9})
    plain |= {
        "model": {"from": str(run.directory)},
        "task": {"kind": "classification", "pooling": "first", "max_length": 32},
        "data": {"train": str(tmp_path / "train.tsv")},
    }
    del plain["tokenizer"]
    tuned = train(config.build(plain, Recipe), tmp_path / "run", progress=False)
    before = variables_of(store.load(run.directory).model)
    after = variables_of(store.load(tuned.directory).model)
    assert set(after) - set(before) == {"classifier/kernel", "classifier/bias"}
    for path in set(after) & set(before):
        np.testing.assert_allclose(after[path], before[path], atol=1e-6)


def test_verbs(folder, run, capsys, tmp_path):
    directory = str(run.directory)
    verb("inspect", directory, "--json")
    assert json.loads(capsys.readouterr().out)["task"]["kind"] == "pretraining"

    verb("predict", directory, "the [MASK] was good")
    answer = json.loads(capsys.readouterr().out)
    assert len(answer["masks"]) == 1 and "label" not in answer
    pair = '{"text": "the [MASK]", "text_pair": "was good"}'
    verb("predict", directory, pair)
    assert json.loads(capsys.readouterr().out)["label"] in ("is_next", "not_next")

    recipe = folder / "recipe.yaml"
    verb("prepare", recipe, "--set", "data.validation_share=null", "--output", folder / "whole")
    found = []
    for data in (folder / "texts.txt", folder / "whole"):
        out = tmp_path / "results.json"
        verb("evaluate", directory, "--data", data, "--output", out)
        found.append(json.loads(out.read_text())["metrics"])
    assert found[0] == found[1]  # from memory and from the disk
    assert set(found[0]) == {
        "accuracy_at_1", "accuracy_at_5", "perplexity", "tokens", "next_sentence_accuracy", "pairs",
    }  # fmt: skip


@pytest.mark.slow
def test_it_is_exported_as_a_masked_language_model(run, capsys, tmp_path):
    out = str(tmp_path / "out")
    verb("export", str(run.directory), "--to", "savedmodel", "--output", out)
    capsys.readouterr()
    verb("predict", out, "the [MASK] was good")
    served = json.loads(capsys.readouterr().out)
    verb("predict", str(run.directory), "the [MASK] was good")
    assert served["text"] == json.loads(capsys.readouterr().out)["text"]


@pytest.mark.parity
def test_hugging_face_reads_both_heads(run, tmp_path):
    torch = pytest.importorskip("torch", reason="install the extra [parity]")
    transformers = pytest.importorskip("transformers", reason="install the extra [parity]")
    checkpoint = store.load(run.directory)
    huggingface.write(checkpoint, tmp_path / "theirs")
    written = json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert written["architectures"] == ["BertForPreTraining"]
    model, report = transformers.BertForPreTraining.from_pretrained(
        tmp_path / "theirs", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]

    chance = np.random.default_rng(0)
    ids = chance.integers(5, checkpoint.tokenizer.vocabulary_size, (3, 12)).astype(np.int32)
    mask = (np.arange(12) < np.array([[12], [7], [9]])).astype(np.int32)
    types = (np.arange(12) >= 5).astype(np.int32) * mask
    with torch.no_grad():
        theirs = model.eval()(
            input_ids=torch.tensor(ids).long(),
            token_type_ids=torch.tensor(types).long(),
            attention_mask=torch.tensor(mask).long(),
        )
    ours = checkpoint.model({"token_ids": ids, "segment_ids": types, "padding_mask": mask})
    kept = mask == 1
    np.testing.assert_allclose(
        np.asarray(ours["tokens"])[kept], theirs.prediction_logits.numpy()[kept], atol=PARITY
    )
    np.testing.assert_allclose(
        ours["next_sentence"], theirs.seq_relationship_logits.numpy(), atol=PARITY
    )

    back = store.load(tmp_path / "theirs")
    assert back.task.kind == "pretraining"
    again = back.model({"token_ids": ids, "segment_ids": types, "padding_mask": mask})
    for name, values in ours.items():
        np.testing.assert_array_equal(again[name], values)
