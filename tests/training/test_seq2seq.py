"""Runs of a small encoder-decoder: exact resumption, texts that are measured, adapters, spans."""

import json
import os
import signal

import numpy as np
import pytest

from tests.training.test_run import At, same, weights
from tfllm import config
from tfllm.checkpoints import huggingface, store
from tfllm.errors import DataError, SettingError
from tfllm.evaluation.metrics import measure
from tfllm.training import optimizers
from tfllm.training.corpora import CorpusRecipe, prepare_corpus
from tfllm.training.monitoring.logs import read_log
from tfllm.training.monitoring.samples import samples
from tfllm.training.recipe import Recipe
from tfllm.training.run import train
from tfllm.training.validation import Validation

WORDS = {"one": "eins", "two": "zwei", "six": "sechs", "ten": "zehn", "nine": "neun"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Numbers one after another, in two languages."""
    folder = tmp_path_factory.mktemp("pairs")
    dice = np.random.default_rng(1)
    for name, count in (("train", 60), ("validation", 8)):
        rows = [dice.choice(list(WORDS), dice.integers(1, 4)) for _ in range(count)]
        (folder / f"{name}.en").write_text("".join(" ".join(row) + "\n" for row in rows))
        german = (" ".join(WORDS[word] for word in row) for row in rows)
        (folder / f"{name}.de").write_text("".join(line + "\n" for line in german))
    return folder


def recipe(folder, **parts):
    data = {
        "name": "pairs",
        "model": {"family": "transformer", "num_layers": 1, "num_heads": 2, "hidden_dim": 16,
                  "max_sequence_length": 32, "dropout": 0.1},
        "task": {"kind": "seq2seq", "max_length": 20},
        "tokenizer": {"kind": "characters"},
        "data": {"train": str(folder / "train.{en,de}"),
                 "validation": str(folder / "validation.{en,de}")},
        "train": {"steps": 8, "batch_size": 32, "batch_tokens": 640, "learning_rate": 0.01,
                  "schedule": "inverse_sqrt", "warmup": 2, "label_smoothing": 0.1,
                  "precision": "float32", "log_every": 2, "seed": 5},
        "evaluate": {"generate": 0},
    }  # fmt: skip
    for key, changes in parts.items():
        data[key] = {**data[key], **changes} if isinstance(changes, dict) else changes
    return config.build({key: value for key, value in data.items() if value is not None}, Recipe)


@pytest.fixture(scope="module")
def straight(folder, tmp_path_factory):
    return train(recipe(folder), tmp_path_factory.mktemp("runs") / "run", progress=False)


def test_it_learns_and_counts_the_tokens_of_both_sides(straight, folder):
    lines = [line for line in read_log(straight.directory / "metrics.jsonl") if "loss" in line]
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert [line["learning_rate"] for line in lines] == pytest.approx(
        [0.01 * (2 / step) ** 0.5 for step in (2, 4, 6, 8)]
    )
    measured = straight.summary["validation"]
    assert measured["perplexity"] == pytest.approx(np.exp(measured["loss"]), rel=1e-3)
    texts = [(folder / f"train.{side}").read_text() for side in ("en", "de")]
    whole = sum(len(text) for text in texts)  # a line's end is its text's end token
    assert straight.summary["tokens"] / straight.summary["epochs"] == pytest.approx(whole, rel=0.3)
    assert "texts" not in straight.summary


def test_a_stopped_run_goes_on_bit_by_bit(straight, folder, tmp_path):
    stop = At(5, lambda: os.kill(os.getpid(), signal.SIGINT))
    stopped = train(recipe(folder), tmp_path / "run", progress=False, callbacks=[stop])
    assert stopped.signal == signal.SIGINT
    train(recipe(folder), tmp_path / "run", resume=True, progress=False)
    same(weights(straight.directory), weights(tmp_path / "run"))


def test_samples_show_the_source(straight, folder):
    checkpoint = store.load(straight.directory)
    validation = Validation(
        checkpoint.task, [{"source": "two six", "target": "zwei"}], checkpoint.tokenizer, 8
    )
    ((source, expected, answered),) = samples(validation, checkpoint.model, 4)
    assert source.startswith("two six") and expected == "z · w · e · i · ''"
    assert answered.count("·") == 4


def test_a_checkpoint_that_writes(straight):
    checkpoint = store.load(straight.directory)
    assert checkpoint.task.decoder_start_token_id == checkpoint.tokenizer.pad_token_id == 0
    assert checkpoint.eos_token_id == (checkpoint.tokenizer.eos_token_id,)
    assert checkpoint.tokenizer.encode_ids(["one"])[0][-1] == checkpoint.tokenizer.eos_token_id


def test_texts_are_written_measured_and_chosen_by(folder, tmp_path):
    asked = []

    def measure_noting(task, answers, examples):
        asked.append([example["source"] for example in examples])
        return measure(task, answers, examples)

    evaluate = {"every": 2, "generate": 3, "best": "chrf", "generation": {"max_new_tokens": 9}}
    chosen = recipe(folder, train={"steps": 4, "ema": 0.9}, evaluate=evaluate)
    run = train(chosen, tmp_path / "run", progress=False, measure=measure_noting)
    whole = max(asked, key=len)
    assert len(whole) == 8
    assert [whole[0], whole[2], whole[5]] in asked  # evenly spread: a file may be sorted
    lines = [
        line for line in read_log(run.directory / "metrics.jsonl") if "validation_chrf" in line
    ]
    assert [line["step"] for line in lines] == [2, 4]
    assert run.summary["best"]["value"] == max(line["validation_chrf"] for line in lines)
    texts = run.summary["texts"]
    assert texts["examples"] == 8 and texts["generation"] == {"max_new_tokens": 9}
    assert texts["bleu_signature"].startswith("nrefs:1|") and "samples" not in texts
    written = json.loads((run.directory / "checkpoint" / "generation_config.json").read_text())
    assert written == {"max_new_tokens": 9}


def test_adapters_on_attention_to_itself_and_to_the_source(straight, folder, tmp_path):
    data = json.loads(recipe(folder, train={"steps": 2}).model_dump_json(exclude_none=True))
    data["model"] = {"from": str(straight.directory), "lora": {"rank": 2}}
    del data["tokenizer"]
    run = train(config.build(data, Recipe), tmp_path / "lora", progress=False)
    before, merged = weights(straight.directory), weights(run.directory)
    changed = {name for name in before if not np.array_equal(before[name], merged[name])}
    changed = {name.removesuffix("/kernel") for name in changed} - {"token_bias/bias"}
    assert changed == {
        "encoder_layer_0/attention/query", "encoder_layer_0/attention/value",
        "layer_0/attention/query", "layer_0/attention/value",
        "layer_0/cross_attention/query", "cross_0/value",
    }  # fmt: skip


@pytest.mark.slow
def test_from_a_hugging_face_directory(straight, folder, tmp_path):
    """A Marian that starts its targets with another token, which training takes over."""
    checkpoint = store.load(straight.directory)
    huggingface.write(checkpoint, tmp_path / "marian")
    path = tmp_path / "marian" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "decoder_start_token_id": 1}))
    path = tmp_path / "marian" / "generation_config.json"
    settings = {**json.loads(path.read_text()), "decoder_start_token_id": 1, "num_beams": 3}
    path.write_text(json.dumps(settings))
    data = json.loads(recipe(folder, train={"steps": 1}).model_dump_json(exclude_none=True))
    data["model"] = {"from": str(tmp_path / "marian")}
    data["evaluate"]["generation"] = {"length_penalty": 0.6}
    del data["tokenizer"]
    run = train(config.build(data, Recipe), tmp_path / "run", progress=False)
    trained = store.load(run.directory)
    assert trained.task.decoder_start_token_id == trained.decoder_start_token_id == 1
    assert trained.generation["num_beams"] == 3 and trained.generation["length_penalty"] == 0.6
    text = (run.directory / "recipe.yaml").read_text()
    assert "decoder_start_token_id: 1" in text, "what the run has learned with is told"


@pytest.mark.slow
def test_spans_of_plain_texts(folder, tmp_path):
    (tmp_path / "texts.txt").write_text("one two six ten nine\n" * 30)
    spans = recipe(
        folder,
        model={"family": "t5", "num_layers": 1, "num_heads": 2, "hidden_dim": 16,
               "max_sequence_length": 32, "num_buckets": 8},
        task={"objective": "span_corruption", "max_source_length": 20, "max_length": 8},
        tokenizer={"special_tokens": [f"<extra_id_{number}>" for number in range(3)]},
        data={"train": str(tmp_path / "texts.txt"), "validation": None},
        train={"steps": 4},
    )  # fmt: skip
    run = train(spans, tmp_path / "run", progress=False)
    assert store.load(run.directory).tokenizer.token_id("<extra_id_0>") == 2


def test_spans_of_a_prepared_corpus(folder, tmp_path):
    (tmp_path / "texts.txt").write_text("one two six ten nine. two ten.\n" * 30)
    parts = {
        "name": "corpus",
        "model": {"family": "t5", "num_layers": 1, "num_heads": 2, "hidden_dim": 16,
                  "max_sequence_length": 32},
        "task": {"kind": "seq2seq", "objective": "span_corruption", "max_source_length": 20,
                 "max_length": 8},
        "tokenizer": {"kind": "characters", "special_tokens": ["<extra_id_0>", "<extra_id_1>"]},
        "data": {"train": str(tmp_path / "texts.txt")},
        "train": {"steps": 2, "batch_size": 8, "precision": "float32"},
    }  # fmt: skip
    prepare_corpus(config.build(parts, CorpusRecipe), tmp_path / "corpus", workers=1)
    parts["data"] = {"train": str(tmp_path / "corpus")}
    run = train(config.build(parts, Recipe), tmp_path / "run", progress=False)
    assert store.load(run.directory).tokenizer.encode_ids(["one"])[0][-1] == 1
    del parts["task"]["objective"]
    with pytest.raises(SettingError, match="task.objective: span_corruption"):
        train(config.build(parts, Recipe), tmp_path / "no", progress=False)


@pytest.mark.parametrize(
    ("parts", "error", "message"),
    [
        (
            {"task": {"max_length": 6}},
            DataError,
            r"train\.\{en,de\}:\d+: the source has \d+ tokens",
        ),
        ({"task": {"max_length": 40}}, SettingError, "task.max_length is 40"),
        ({"task": {"max_source_length": 40}}, SettingError, "task.max_source_length is 40"),
        ({"data": {"columns": {"source": "en"}}}, DataError, "no column 'en' for data.columns"),
        ({"evaluate": {"best": "bleu"}}, SettingError, "evaluate.best: no measure 'bleu'"),
    ],
    ids=["long", "window", "source window", "column", "best"],
)
def test_refused_before_anything_is_written(folder, tmp_path, parts, error, message):
    with pytest.raises(error, match=message):
        train(recipe(folder, **parts), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_noam():
    """Vaswani et al. 2017: hidden_dim**-0.5 * min(step**-0.5, step * warmup**-1.5)."""
    width, warmup = 512, 4000
    schedule = optimizers.Schedule((width * warmup) ** -0.5, "inverse_sqrt", warmup, 100_000)
    for step in (1, 1000, 4000, 16_000, 100_000):
        paper = width**-0.5 * min(step**-0.5, step * warmup**-1.5)
        assert float(schedule(step)) == pytest.approx(paper, rel=1e-6)
