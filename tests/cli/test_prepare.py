"""`tfllm prepare` as a user runs it: results, what is said, and what is left after a failure."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.commands import run
from tests.helpers.waiting import wait_for
from tfllm.data.corpora.corpus import open_corpus

ROOT = Path(__file__).parent.parent.parent
RECIPE = ROOT / "models" / "bert" / "corpus.yaml"


def recipe(tmp_path, data="", size=200):
    text = f"tokenizer: {{kind: wordpiece, vocabulary_size: {size}}}\ndata:\n{data}"
    (tmp_path / "r.yaml").write_text(text)
    return tmp_path / "r.yaml"


def test_the_recipe_of_the_manual(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    output = tmp_path / "corpus"
    status, out, err = run(capsys, "prepare", RECIPE, "--output", output)
    assert status == 0, err
    assert out == f"{output}\n"
    corpus = open_corpus(output)
    corpus.verify()
    assert f"{corpus.manifest['documents']:,} documents" in err and "next: tfllm train" in err
    assert (output / "lengths.png").is_file()
    assert (output / "validation" / "manifest.json").is_file()
    assert run(capsys, "prepare", RECIPE, "--output", output)[0] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


def test_bad_lines_are_said(capsys, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "good one"}\n{"text": 1}\n\xff\n')
    settings = recipe(tmp_path, f"  train: {tmp_path}/a.jsonl\n")
    status, _, err = run(capsys, "prepare", settings, "--output", tmp_path / "out")
    assert status == 0
    assert "left out: 2 bad lines" in err and str(tmp_path / "out" / "rejected.jsonl") in err
    rows = [json.loads(row)["line"] for row in (tmp_path / "out" / "rejected.jsonl").open()]
    assert rows == [2, 3]
    strict = ["--set", "data.prepare.max_bad_lines=0"]
    status, out, err = run(capsys, "prepare", settings, *strict, "--output", tmp_path / "strict")
    assert status == 2 and f"{tmp_path}/a.jsonl:2: " in err and out == ""
    assert not list(tmp_path.glob("strict*"))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("  train: none.txt\n", "There is no data file"),
        ("  train: a.xyz\n", "says no format"),
        ("  train: a.txt\n  prepare: {sentences: words}\n", "data.prepare.sentences"),
    ],
)
def test_what_is_wrong_is_one_line(data, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.xyz").write_text("x")
    (tmp_path / "a.txt").write_text("x")
    status, out, err = run(capsys, "prepare", recipe(tmp_path, data), "--output", "out")
    assert status == 2 and out == "" and said in err and err.count("\n") == 1
    assert not list(tmp_path.glob("out*"))


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_ended_by_a_signal_it_goes_on_to_the_same_bytes(number, tmp_path):
    (tmp_path / "a.txt").write_text(
        "".join(f"document {n} has words. they are {n * 7919 % 9973}.\n" for n in range(120_000))
    )
    settings = recipe(tmp_path, f"  train: {tmp_path}/a.txt\n  prepare: {{shard_megabytes: 1}}\n")
    command = [sys.executable, "-m", "tfllm", "prepare", str(settings), "--workers", "2"]
    subprocess.run([*command, "--output", str(tmp_path / "whole")], check=True, timeout=300)
    work = tmp_path / "out.unfinished"
    for shards in (1, 3):
        process = subprocess.Popen(
            [*command, "--output", str(tmp_path / "out")], stderr=subprocess.PIPE, text=True
        )
        try:
            wait_for(lambda: len([*work.glob("shard*.json")]) >= shards, process)  # noqa: B023
        finally:
            process.send_signal(number)
            _, err = process.communicate(timeout=60)
        assert process.returncode in (-number, 128 + number)
        if number == signal.SIGINT:
            assert "The same command continues" in err and "Traceback" not in err
    subprocess.run([*command, "--output", str(tmp_path / "out")], check=True, timeout=300)
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert os.listdir(tmp_path / "out") and not work.exists()
