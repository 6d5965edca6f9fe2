"""evaluate, predict, inspect and benchmark of a language model, from the command line."""

import json

import pytest

from tests.helpers.commands import run
from tfllm.checkpoints import store
from tfllm.cli.benchmark import table
from tfllm.models import gpt2
from tfllm.tasks import CausalLM
from tfllm.tokenizers.characters import from_characters


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    tokenizer = from_characters("abcdefghij \n", specials=("<s>", "</s>"))
    config = gpt2.Config(
        vocabulary_size=tokenizer.vocabulary_size, num_layers=1, num_heads=2, hidden_dim=8,
        max_sequence_length=16,
    )  # fmt: skip
    made = store.create("gpt2", config, tokenizer, CausalLM(max_length=16), seed=1)
    return store.save(made, tmp_path_factory.mktemp("language") / "checkpoint")


def test_evaluate(checkpoint, tmp_path, capsys):
    data, result = tmp_path / "text.txt", tmp_path / "result.json"
    data.write_text("abc def\nghij abc\n")
    arguments = ("evaluate", checkpoint, "--data", data, "--output", result)
    code, out, _ = run(capsys, *arguments, "--set", "format=document", "--set", "stride=4")
    assert code == 0 and "bits_per_byte" in out
    whole = json.loads(result.read_text())
    assert whole["examples"] == 1 and whole["metrics"]["tokens"] == 17
    code, out, _ = run(capsys, *arguments, "--set", "measure=last_word")
    metrics = json.loads(result.read_text())["metrics"]
    assert code == 0 and list(metrics)[0] == "last_word_accuracy" and metrics["tokens"] == 8
    code, _, error = run(capsys, *arguments, "--set", "stride=40")
    assert code == 2 and "stride=40" in error and "Traceback" not in error


def test_predict(checkpoint, tmp_path, capsys):
    code, out, _ = run(capsys, "predict", checkpoint, "abc", '{"prompt": "abc"}')
    one, two = map(json.loads, out.splitlines())
    assert code == 0 and one == two and set(one) == {"text"}
    code, _, error = run(capsys, "predict", checkpoint, '{"messages": "hello"}')
    assert code == 2 and "not a conversation" in error


def test_inspect_and_benchmark(checkpoint, capsys):
    code, out, _ = run(capsys, "inspect", checkpoint, "--json")
    assert code == 0 and json.loads(out)["task"]["kind"] == "causal_lm"
    code, out, _ = run(
        capsys, "benchmark", checkpoint, "--seconds", "0", "--length", "8", "--batch-sizes", "2",
        "--new-tokens", "4", "--json",
    )  # fmt: skip
    result = json.loads(out)
    (row,) = result["rows"]
    assert (row["batch_size"], row["prompt_tokens"], row["new_tokens"]) == (2, 8, 4)
    assert row["written_tokens_per_second"] > 0 and row["first_token_ms"] > 0
    assert "ms/token" in table(result)[1]
