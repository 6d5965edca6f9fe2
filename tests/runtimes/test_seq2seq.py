"""A checkpoint of sources and targets through evaluate and predict, on random weights."""

import json

import numpy as np
import pytest

from tfllm.checkpoints import store
from tfllm.cli import main
from tfllm.errors import DataError, SettingError
from tfllm.evaluation.harness import evaluate
from tfllm.models.transformer import Config
from tfllm.runtimes.opening import open_model
from tfllm.tasks import Seq2Seq
from tfllm.tokenizers.characters import from_characters
from tfllm.tokenizers.train import append_eos

LOGIT = 1e-4  # float32 sums in another order

EXAMPLES = [
    {"source": "abc", "target": "cba", "_where": "f:1"},
    {"source": "", "target": "a", "_where": "f:2"},
    {"source": "b" * 9, "target": ["ab", "ba"], "_where": "f:3"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    tokenizer = append_eos(from_characters("abc", ("<pad>", "</s>")))
    config = Config(
        vocabulary_size=5, num_layers=1, num_heads=2, hidden_dim=16, max_sequence_length=16
    )
    task = Seq2Seq(max_length=6, max_source_length=12)
    made = store.create("transformer", config, tokenizer, task, seed=3)
    for weight in made.model.weights:
        weight.assign(np.random.default_rng(len(weight.path)).normal(0, 0.5, weight.shape))
    return store.save(made, tmp_path_factory.mktemp("seq2seq") / "checkpoint")


@pytest.fixture(scope="module")
def predictor(folder):
    return open_model(folder)


def test_one_text_for_each_source_in_order(predictor):
    found = predictor.predict(EXAMPLES)
    assert [set(answer) for answer in found] == [{"text"}] * 3
    assert found[1]["text"] == "", "there is nothing to translate"
    assert [predictor.predict([example])[0] for example in EXAMPLES] == found
    assert predictor.predict([{"text": "abc"}]) == found[:1]


def test_given_settings_stand_for_the_checkpoints(predictor):
    (beams,) = predictor.predict(EXAMPLES[:1], num_beams=3, num_return_sequences=2)
    assert len(beams["candidates"]) == 2 and beams["text"] == beams["candidates"][0]["text"]
    scores = [candidate["score"] for candidate in beams["candidates"]]
    assert scores == sorted(scores, reverse=True)
    (short,) = predictor.predict(EXAMPLES[:1], max_new_tokens=1, min_new_tokens=1)
    assert len(short["text"]) <= 1
    with pytest.raises(SettingError, match="num_beams"):
        predictor.predict(EXAMPLES, num_beams=2, num_return_sequences=3)


def test_targets_are_told_as_the_model_gives_them(predictor):
    found = predictor.score(EXAMPLES)
    assert [answer["token_count"] for answer in found] == [4, 0, 3]
    model, ids = predictor.checkpoint.model, {"a": 2, "b": 3, "c": 4}
    target = [ids[letter] for letter in "cba"] + [1]
    source = np.array([[2, 3, 4, 1]])
    logits = np.asarray(
        model(
            {"source_ids": source, "source_padding_mask": np.ones_like(source),
             "token_ids": np.array([[0, *target[:-1]]]), "padding_mask": np.ones((1, 4), int)}
        )
    )[0]  # fmt: skip
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = sum(logs[place, token] for place, token in enumerate(target))
    assert found[0]["log_probability"] == pytest.approx(expected, abs=LOGIT)
    assert found[0]["correct"] == (logits.argmax(-1) == target).sum()


def test_evaluate_has_everything(predictor):
    found = evaluate(predictor, EXAMPLES, generation={"num_beams": 2})
    assert {"bleu", "chrf", "ter", "rouge_l", "length_ratio", "loss", "perplexity"} <= set(found)
    assert found["generation"]["num_beams"] == 2 and len(found["samples"]) == 3


def test_long_sources(predictor):
    long = [{"source": "a" * 30, "target": "a", "_where": "f:7"}]
    with pytest.raises(DataError, match=r"^f:7: the source has 31 tokens.*truncate=True"):
        predictor.predict(long)
    (cut,) = predictor.predict(long, truncate=True)
    assert cut == predictor.predict([{"source": "a" * 11}])[0]
    with pytest.raises(DataError, match="'target' is missing"):
        evaluate(predictor, [{"source": "a", "_where": "f:8"}])


def run(*arguments):
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return ended.value.code


def test_the_verbs(folder, tmp_path, capsys):
    (tmp_path / "v.x").write_text("abc\n\nb\n")
    (tmp_path / "v.y").write_text("c\nb\na b\n")
    pair = str(tmp_path / "v.{x,y}")
    assert run("predict", str(folder), "--input", str(tmp_path / "v.x")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and json.loads(lines[1]) == {"text": ""}
    assert run("predict", str(folder), "abc", "--set", "num_beams=2") == 0
    assert set(json.loads(capsys.readouterr().out)) == {"text", "score"}
    assert run("predict", str(folder), "a" * 30, "--truncate") == 0
    result = str(tmp_path / "r.json")
    assert (
        run("evaluate", str(folder), "--data", pair, "--tokenize", "char", "--output", result) == 0
    )
    shown = capsys.readouterr().out
    assert "bleu" in shown and "  source  abc" in shown
    written = json.loads((tmp_path / "r.json").read_text())
    assert "tok:char" in written["metrics"]["bleu_signature"] and written["examples"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("predict", "a" * 30), "argument 1: the source has 31 tokens"),
        (("predict", "a", "--set", "num_beams=0"), "num_beams"),
        (("predict", "a", "--set", "columns.source=x"), "Give --input FILE"),
        (("predict", '{"target": "a"}'), "argument 1: the field 'source' is missing"),
    ],
    ids=["long", "beams", "columns", "field"],
)
def test_one_clear_line(folder, arguments, message, capsys):
    verb, *rest = arguments
    assert run(verb, str(folder), *rest) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_settings_of_texts_are_for_texts(tiny_checkpoint, capsys):
    assert run("predict", str(tiny_checkpoint), "a", "--set", "num_beams=2") == 2
    assert "num_beams is for models that write texts" in capsys.readouterr().err
