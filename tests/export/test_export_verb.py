"""The verb `tfllm export`: the table on stdout, exit statuses, clear errors."""

import pytest

from tfllm.checkpoints import store
from tfllm.cli import main


@pytest.fixture(scope="module")
def checkpoint(classifier, tmp_path_factory):
    return str(store.save(classifier, tmp_path_factory.mktemp("verb") / "checkpoint"))


def run(*arguments):
    with pytest.raises(SystemExit) as stopped:
        main(["export", *map(str, arguments)])
    return stopped.value.code


def test_the_checks_and_the_files_are_printed(checkpoint, tmp_path, capsys):
    data = tmp_path / "dev.tsv"
    data.write_text("sentence\tlabel\nthe film was good\tgood\nbad\tbad\n")
    columns = ["--set", "data.columns={text: sentence, label: label}"]
    status = run(
        checkpoint, "--to", "tflite-float32", "--output", tmp_path / "out", "--data", data, *columns
    )
    shown = capsys.readouterr().out
    assert status == 0
    assert "accuracy on 2 examples" in shown and "NO" not in shown.split()
    assert "model.tflite" in shown


def test_a_failed_check_leaves_nothing_and_status_1(checkpoint, tmp_path, capsys):
    output = tmp_path / "out"
    strict = ["--set", "tolerance.abs_difference=1e-12"]
    assert run(checkpoint, "--to", "tflite-float32", "--output", output, *strict) == 1
    printed = capsys.readouterr()
    assert "NO" in printed.out.split()
    assert "Nothing was written" in printed.err and "Traceback" not in printed.err
    assert not output.exists()


def test_a_runs_recipe_says_how_its_files_are_read(classifier, tmp_path, capsys):
    store.save(classifier, tmp_path / "run" / "checkpoint")
    recipe = "data: {train: train.tsv, columns: {text: sentence, label: mood}}\n"
    (tmp_path / "run" / "recipe.yaml").write_text(recipe)
    data = tmp_path / "dev.tsv"
    data.write_text("sentence\tmood\nthe film was good\tgood\n")
    to = ["--to", "tflite-float32", "--output", tmp_path / "out"]
    assert run(tmp_path / "run", *to, "--data", data) == 0
    assert "accuracy on 1 examples" in capsys.readouterr().out


def test_data_without_gold_answers_is_refused_first(checkpoint, tmp_path, capsys):
    data = tmp_path / "dev.tsv"
    data.write_text("text\nthe film was good\n")
    to = ["--to", "tflite-float32", "--output", tmp_path / "out"]
    assert run(checkpoint, *to, "--data", data) == 2
    assert "dev.tsv:2: the field 'label' is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "savedmodl"], "Did you mean 'savedmodel'"),
        (["--to", "savedmodel", "--set", "speed=9"], "unknown key 'speed'"),
        (["--to", "savedmodel", "--data", "missing.tsv"], "missing.tsv"),
    ],
)
def test_wrong_input_is_status_2(checkpoint, tmp_path, capsys, arguments, message):
    assert run(checkpoint, *arguments, "--output", tmp_path / "out") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
