"""`tfllm train` as a user calls it: exit status, messages, Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.helpers import recipes
from tests.helpers.waiting import wait_for
from tfllm.cli import main

ROOT = Path(__file__).parents[2]


def write_recipe(folder, **parts):
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipes.settings(folder, **parts)))
    return path


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "tfllm", "train", *map(str, arguments)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
    )  # fmt: skip


@pytest.mark.slow
def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path):
    recipes.write_data(tmp_path / "data")
    recipe = write_recipe(tmp_path / "data", train={"epochs": 500})
    output = tmp_path / "run"
    process = start(recipe, "--set", "train.log_every=1", "--output", output)
    wait_for(lambda: (output / "metrics.jsonl").exists(), process)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=120)
    assert process.returncode == 130, error
    assert "Traceback" not in error
    assert f"--set train.log_every=1 --output {output} --resume" in error
    assert list((output / "state").glob("step-*"))
    process = start(recipe, "--set", "train.log_every=1", "--output", output, "--resume")
    progress = max((output / "state").glob("step-*/progress.json"))
    before = json.loads(progress.read_text())["step"]
    lines = (output / "metrics.jsonl").read_text().splitlines()
    wait_for(lambda: len((output / "metrics.jsonl").read_text().splitlines()) > len(lines), process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 0  # as schedulers want it: nothing is lost
    progress = max((output / "state").glob("step-*/progress.json"))
    assert json.loads(progress.read_text())["step"] > before


def test_a_recipe_typo_is_one_line_with_file_and_line(tmp_path):
    recipes.write_data(tmp_path)
    recipe = write_recipe(tmp_path, train={"epoch": 2})
    process = start(recipe, "--output", tmp_path / "run")
    out, error = process.communicate(timeout=120)
    assert process.returncode == 2
    assert error.count("\n") == 1
    assert "recipe.yaml:" in error and "Did you mean 'epochs'" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_recipe_exports_after_training(tmp_path):
    recipes.write_data(tmp_path)
    profiles = ["tflite-float32", str(ROOT / "export" / "savedmodel.yaml")]
    recipe = write_recipe(tmp_path, export=profiles, train={"epochs": 1})
    process = start(recipe, "--output", tmp_path / "run")
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    assert out.splitlines()[-1] == str(tmp_path / "run")
    assert (tmp_path / "run" / "export" / "tflite-float32" / "model.tflite").is_file()
    assert (tmp_path / "run" / "export" / "savedmodel" / "1" / "saved_model.pb").is_file()


def test_a_wrong_export_is_told_before_training(tmp_path, capsys):
    recipes.write_data(tmp_path)
    recipe = write_recipe(tmp_path, export=["savedmodle"])
    with pytest.raises(SystemExit) as stop:
        main(["train", str(recipe), "--output", str(tmp_path / "run")])
    assert stop.value.code == 2 and "Did you mean 'savedmodel'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


RECIPES = sorted(
    path for path in (ROOT / "models").glob("*/*.yaml") if not path.stem.endswith("_space")
)  # a space is what `tfllm tune` searches


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_valid_and_say_what_to_run(path):
    from tfllm import config
    from tfllm.training.recipe import Recipe

    recipe = config.load(path, Recipe)
    assert recipe.name == path.stem
    header = path.read_text().split("\nname:")[0]
    assert all(line.startswith("#") for line in header.splitlines())
    assert f"tfllm train models/{path.parent.name}/{path.name}" in header
