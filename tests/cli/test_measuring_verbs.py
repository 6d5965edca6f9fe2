"""evaluate, predict and benchmark from the command line, over a model that is a plain function."""

import gzip
import io
import json
import sys

import numpy as np
import pytest

import tfllm.model
from tests.helpers.commands import run
from tfllm.cli import output
from tfllm.cli.evaluate import table
from tfllm.runtimes.token_predictor import TokenPredictor
from tfllm.tasks import Classification
from tfllm.tokenizers.wordpiece import WordPiece

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", "坏", "好"]


def count(inputs):
    """Raw scores [B, 2]: how often "bad" or "坏", "good" or "好" stand in a row."""
    ids = inputs["token_ids"]
    scores = [np.isin(ids, [6, 8]).sum(1), np.isin(ids, [5, 9]).sum(1)]
    return np.stack(scores, axis=1).astype(np.float32)


@pytest.fixture(autouse=True)
def model(monkeypatch):
    task = Classification(labels=("bad", "good"), max_length=32)
    facts = {"kind": "test", "path": "m", "family": "bert", "task": task.kind, "size_bytes": 1}
    made = TokenPredictor(task, WordPiece.from_vocabulary(VOCABULARY), facts, 2, count)
    monkeypatch.setattr(tfllm.model, "open_model", lambda source: made)
    return made


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


GOLD = "sentence\tgold\ngood film\tgood\nbad bad\tbad\ngood\tbad\n"
COLUMNS = ("--set", "columns.text=sentence", "--set", "columns.label=gold")


def test_evaluate_knows_how_much_there_is_to_do(tmp_path, capsys, monkeypatch):
    bars = []

    class Noted(output.Bar):
        def __init__(self):
            bars.append(self)
            self.total, self.amounts = None, []

        def set_total(self, total):
            self.total = total

        def __call__(self, amount):
            self.amounts.append(amount)

    monkeypatch.setattr(output, "Bar", Noted)
    data = write(tmp_path / "dev.tsv", GOLD)
    assert run(capsys, "evaluate", "m", "--data", data, *COLUMNS, "--limit", "2")[0] == 0
    assert [(bar.total, sum(bar.amounts)) for bar in bars] == [(2, 2)]


def test_a_bar_with_a_total_shows_the_time_left(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with output.progress_bar("measured") as bar:
        bar.set_total(8)
        bar(4)
    assert "4/8" in terminal.getvalue()


def test_evaluate_writes_what_the_interface_says(tmp_path, capsys):
    data = write(tmp_path / "dev.tsv", GOLD)
    result, pictures = tmp_path / "results.json", tmp_path / "plots"
    code, out, err = run(
        capsys, "evaluate", "m", "--data", data, *COLUMNS, "--output", result, "--plots", pictures
    )
    assert (code, err) == (0, "")
    written = json.loads(result.read_text())
    assert set(written) == {"metrics", "examples", "seconds", "model", "data", "versions"}
    assert written["metrics"]["accuracy"] == pytest.approx(2 / 3)
    assert (written["examples"], written["model"], written["data"]) == (3, "m", str(data))
    assert "accuracy" in out and "0.6667" in out and "gold \\ predicted" in out
    assert sorted(p.name for p in pictures.iterdir()) == ["calibration.png", "confusion_matrix.png"]
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_evaluate_reads_compressed_files_and_stops_at_the_limit(tmp_path, capsys):
    data = write(tmp_path / "dev.tsv.gz", gzip.compress(GOLD.encode()))
    code, out, _ = run(capsys, "evaluate", "m", "--data", data, *COLUMNS, "--limit", 2)
    assert code == 0 and "2 examples" in out and "1.0000" in out


def test_columns_come_from_the_run(tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    write(
        folder / "recipe.yaml",
        "data: {train: x.tsv, columns: {text: sentence, label: gold}}\n",
    )
    data = write(tmp_path / "dev.tsv", GOLD)
    for model in (folder, folder / "checkpoint"):
        assert run(capsys, "evaluate", model, "--data", data)[0] == 0
    other = write(tmp_path / "dev.jsonl", '{"text": "good", "label": "good"}\n')
    assert run(capsys, "evaluate", folder, "--data", other)[0] == 0
    code, _, err = run(capsys, "evaluate", folder, "--data", data, "--set", "columns.label=odd")
    assert code == 2 and "no column 'odd'" in err


def test_columns_come_from_the_artifact(tmp_path, capsys):
    recorded = {"profile": {"data": {"columns": {"text": "sentence", "label": "gold"}}}}
    write(tmp_path / "tfllm.json", json.dumps(recorded))
    data = write(tmp_path / "dev.tsv", GOLD)
    for model in (tmp_path, tmp_path / "model.tflite"):
        assert run(capsys, "evaluate", model, "--data", data)[0] == 0


@pytest.mark.parametrize(
    ("content", "options", "said"),
    [
        (GOLD, [], "dev.tsv:2: none of the columns 'sentence', 'gold' is a known field"),
        (GOLD, ["--set", "columns.text=sentence"], "dev.tsv:2: the field 'label' is missing"),
        (GOLD, ["--set", "colums.text=x"], "unknown key 'colums'. Did you mean 'columns'?"),
        (GOLD, ["--set", "columns"], "write it as key=value"),
        (GOLD + "x\todd\n", COLUMNS, "dev.tsv:5: unknown label 'odd'"),
        (GOLD + "x\n", COLUMNS, "dev.tsv:5: 1 field, but the header names 2"),
        (b"sentence\tgold\nbad\xff\tbad\n", COLUMNS, "dev.tsv:2: byte 4 of the line is not UTF-8"),
        (b"", COLUMNS, "dev.tsv: the file is empty"),
        (b"\x00\x01\x02\n", COLUMNS, "dev.tsv:1: this is binary data"),
        (GOLD, [*COLUMNS, "--plots", __file__], "is a file. Name a directory"),
        (GOLD, [*COLUMNS, "--output", "/nowhere/r.json"], "there is no directory '/nowhere'"),
    ],
)
def test_evaluate_names_what_is_wrong(tmp_path, capsys, content, options, said):
    data = write(tmp_path / "dev.tsv", content)
    code, out, err = run(capsys, "evaluate", "m", "--data", data, *options)
    assert (code, out) == (2, "")
    assert said in err and err.startswith("tfllm: ") and err.count("\n") == 1


def test_a_missing_data_file(tmp_path, capsys):
    code, _, err = run(capsys, "evaluate", "m", "--data", tmp_path / "none.tsv")
    assert code == 2 and "There is no data file" in err


def test_the_table_lines_up_chinese_labels():
    counts = {"labels": ["体育", "cars"], "counts": [[1, 0], [0, 12]]}
    result = {"model": "m", "data": "d", "examples": 1, "seconds": 0.1}
    lines = table({**result, "metrics": {"auc": None, "confusion_matrix": counts}})
    assert "undefined" in lines[1]
    assert lines[-3:] == [
        "  gold \\ predicted  体育  cars",
        "  体育                 1     0",
        "  cars                 0    12",
    ]


def answers(out):
    return [json.loads(line) for line in out.splitlines()]


def test_predict_texts(capsys):
    code, out, err = run(capsys, "predict", "m", "good film", '{"text": "bad"}', "好")
    assert (code, err) == (0, "")
    assert [answer["label"] for answer in answers(out)] == ["good", "bad", "good"]
    assert set(answers(out)[0]["scores"]) == {"bad", "good"}


def test_predict_keeps_the_order_of_a_long_file(tmp_path, capsys):
    wanted = ["good" if n % 3 else "bad" for n in range(500)]
    lines = [f"{label} " + "film " * (n % 17) for n, label in enumerate(wanted)]
    path = write(tmp_path / "in.txt", "\n".join(lines))
    target = tmp_path / "out.jsonl"
    code, out, _ = run(
        capsys, "predict", "m", "--input", path, "--output", target, "--batch-size", 3
    )
    assert (code, out) == (0, "")
    assert [answer["label"] for answer in answers(target.read_text())] == wanted


def test_predict_from_standard_input(capsys, monkeypatch):
    raw = io.BufferedReader(io.BytesIO("bad\n\n好\n".encode()))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(raw))
    code, out, _ = run(capsys, "predict", "m", "--input", "-")
    assert code == 0 and len(answers(out)) == 3
    assert answers(out)[2]["label"] == "good"


def test_predict_reads_the_columns_of_a_table(tmp_path, capsys):
    path = write(tmp_path / "in.tsv", GOLD)
    code, out, _ = run(capsys, "predict", "m", "--input", path, "--set", "columns.text=sentence")
    assert code == 0 and len(answers(out)) == 3


def test_a_broken_line_leaves_an_older_result_alone(tmp_path, capsys):
    path = write(tmp_path / "in.txt", b"good\n" * 200 + b"b\xff\n")
    target = write(tmp_path / "out.jsonl", "older\n")
    code, _, err = run(
        capsys, "predict", "m", "--input", path, "--output", target, "--batch-size", 1
    )
    assert code == 2 and "in.txt:201:" in err
    assert target.read_text() == "older\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.txt", "out.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Give either texts or --input FILE"),
        (["a text", "--input", "in.txt"], "Give either texts or --input FILE"),
        (["a text", "--set", "format=text"], "--set says how --input is read"),
        (["--input", "none.txt"], "There is no data file 'none.txt'"),
        (['{"question": "q", "context": "c"}'], "argument 1: the field 'text' is missing"),
    ],
)
def test_predict_names_what_is_wrong(capsys, arguments, said):
    code, out, err = run(capsys, "predict", "m", *arguments)
    assert (code, out) == (2, "")
    assert said in err and err.count("\n") == 1


def test_benchmark_as_table_and_as_json(tmp_path, capsys):
    quick = ("--seconds", 0, "--batch-sizes", "1,4")
    code, out, err = run(capsys, "benchmark", "m", *quick)
    assert (code, err) == (0, "")
    assert len(out.splitlines()) == 2 + 2 * 2 and "p99 ms" in out
    code, out, _ = run(capsys, "benchmark", "m", *quick, "--length", "8", "--json")
    result = json.loads(out)
    assert code == 0 and [row["batch_size"] for row in result["rows"]] == [1, 4]
    assert {"size_bytes", "load_seconds", "peak_memory_bytes", "versions", "machine"} <= set(result)
    lines = write(tmp_path / "in.txt", "good\nbad film\n")
    code, out, _ = run(capsys, "benchmark", "m", *quick, "--input", lines, "--json")
    assert code == 0 and json.loads(out)["rows"][0]["length"] == "as given"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--batch-sizes", "1,x"], "--batch-sizes: '1,x' is not a list of numbers"),
        (["--batch-sizes", "0"], "--batch-sizes: '0'"),
        (["--length", "64"], "--length: 64 tokens, but the model's rows have at most 32"),
    ],
)
def test_benchmark_names_what_is_wrong(capsys, options, said):
    code, out, err = run(capsys, "benchmark", "m", *options)
    assert (code, out) == (2, "") and said in err
