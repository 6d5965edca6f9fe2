"""`tfllm tune` as a user calls it, with real trials."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.helpers import recipes
from tfllm import config
from tfllm.training.recipe import Recipe
from tfllm.training.tuning import space

pytest.importorskip("optuna")

ROOT = Path(__file__).parents[2]


def call(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "tfllm", *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=900,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
    )  # fmt: skip


def files(folder, text, **parts):
    recipes.write_data(folder, train=60)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipes.settings(folder, **parts)))
    (folder / "space.yaml").write_text(text)
    return [folder / "recipe.yaml", "--space", folder / "space.yaml", "--output", folder / "study"]


def test_help_says_what_it_does_and_loads_nothing_heavy():
    done = call("tune", "--help")
    assert done.returncode == 0
    assert "--space" in done.stdout and "tiny_space.yaml" in done.stdout


def test_an_unknown_key_is_one_line(tmp_path):
    done = call("tune", *files(tmp_path, "train.learning_rte: {low: 0.1, high: 0.2}\n"))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "space.yaml:1" in done.stderr
    assert "Did you mean 'learning_rate'" in done.stderr
    assert not (tmp_path / "study").exists()


def test_the_example_space_fits_its_recipe():
    folder = ROOT / "models" / "bert"
    recipe, _ = config.read_yaml(folder / "tiny.yaml")
    found = space.read_space(folder / "tiny_space.yaml", recipe)
    own = space.recipe_values(config.build(recipe, Recipe), found)
    assert own is not None, "the first trial is the recipe as it is"


@pytest.mark.slow
def test_a_search_trains_and_its_best_recipe_does_too(tmp_path):
    text = "train.learning_rate: {low: 1.0e-4, high: 1.0e-1, log: true}\n"
    given = files(tmp_path, text, train={"epochs": 1}, evaluate={"best": "accuracy"})
    done = call("tune", *given, "--trials", 3, "--processes", 2, "--set", "train.epochs=2")
    assert done.returncode == 0, done.stderr
    best = Path(done.stdout.strip())
    assert best == tmp_path / "study" / "best.yaml"
    assert "the recipe as it is" in done.stderr
    rows = json.loads((tmp_path / "study" / "trials.json").read_text())["trials"]
    assert len(rows) == 3 and all(row["state"] in ("done", "pruned") for row in rows)
    assert config.load(best, Recipe).train.epochs == 2
    done = call("train", best, "--output", tmp_path / "best-run")
    assert done.returncode == 0, done.stderr
    value = json.loads((tmp_path / "best-run" / "summary.json").read_text())["best"]["value"]
    found = json.loads((tmp_path / "study" / "trials.json").read_text())
    assert value == max(row["value"] for row in found["trials"] if row["value"] is not None)
