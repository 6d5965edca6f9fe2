"""The same recipe with Keras on JAX, over four devices, and back to TensorFlow for export."""

import json
import subprocess
import sys

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from tests.helpers import recipes
from tests.training.strategy_runs import ROOT, environment
from tfllm import config
from tfllm.checkpoints import store
from tfllm.errors import SettingError
from tfllm.training import backend, jax_model
from tfllm.training.distribution import jax_devices
from tfllm.training.recipe import Recipe, TrainSettings
from tfllm.training.run import train

# Two libraries round differently: float32, three steps of AdamW at 0.01 with epsilon 1e-4.
LOSS_NOISE = 1e-5
WEIGHT_NOISE = 5e-5
FOUR = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
SECONDS = 1200
EXAMPLES = 34  # batches of 16, 16 and 2: the last does not divide by four devices


def write_recipe(folder, **parts):
    """From a checkpoint, so that both start with the same weights; rows of one length."""
    recipes.write_data(folder)
    lines = ["sentence\tlabel"]
    for number in range(EXAMPLES):
        word, label = (recipes.GOOD, "good") if number % 2 else (recipes.BAD, "bad")
        lines.append(f"the {word[number % 6]} {recipes.OTHER[number % 5]} a\t{label}")
    (folder / "train.tsv").write_text("\n".join(lines) + "\n")
    (folder / "validation.tsv").write_text("\n".join(lines[:9]) + "\n")
    settings = recipes.settings(folder)
    settings["model"] |= {"dropout": 0.0, "attention_dropout": 0.0}
    settings["train"] |= {"steps": 1, "epochs": None}
    train(config.build(settings, Recipe), folder / "start", progress=False)
    del settings["tokenizer"]
    settings["model"] = {"from": str(folder / "start")}
    settings["train"] |= {
        "steps": 3, "batch_size": 16, "epsilon": 1e-4, "log_every": 1, "clip_norm": 0.5,
        "weight_decay": 0.1, "kernels": "plain", **parts,
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(settings))
    return folder / "recipe.yaml"


def command(recipe, output, *settings, **variables):
    options = [part for setting in settings for part in ("--set", setting)]
    return subprocess.run(
        [sys.executable, "-m", "tfllm", "train", recipe, "--output", output, *options],
        cwd=ROOT, env=environment(**FOUR, **variables), capture_output=True, text=True,
        timeout=SECONDS,
    )  # fmt: skip


def losses(directory):
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [line[key] for line in lines for key in ("loss", "gradient_norm", "validation_loss")
            if key in line]  # fmt: skip


@pytest.fixture(scope="module")
def on_tensorflow(tmp_path_factory):
    """The recipe and its run on one device of TensorFlow."""
    pytest.importorskip("jax")
    recipe = write_recipe(tmp_path_factory.mktemp("data"))
    run = train(config.load(recipe, Recipe), recipe.parent / "run", progress=False)
    return recipe, run.directory


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        ("train.strategy=data_parallel",),
        ("train.strategy=model_parallel", "train.model_devices=2"),
        ("train.strategy=data_parallel", "train.accumulate=2"),
    ],
    ids=["data", "model", "data, accumulation"],
)
def test_jax_trains_the_same_model_which_tensorflow_exports(on_tensorflow, tmp_path, settings):
    recipe, before = on_tensorflow
    done = command(recipe, tmp_path / "run", *settings)
    assert done.returncode == 0, done.stderr[-3000:]
    expected = losses(before)
    assert len(expected) == 7
    np.testing.assert_allclose(losses(tmp_path / "run"), expected, rtol=LOSS_NOISE)
    one, two = (
        load_file(d / "checkpoint" / "model.safetensors") for d in (before, tmp_path / "run")
    )
    assert set(one) == set(two)
    for name in one:
        np.testing.assert_allclose(two[name], one[name], atol=WEIGHT_NOISE, rtol=0, err_msg=name)
    checkpoint = store.load(tmp_path / "run")
    features = checkpoint.task.features([{"text": "red is the one"}], checkpoint.tokenizer)
    assert checkpoint.model(features.batch([0])[0]).shape == (1, 2)


@pytest.mark.slow
def test_a_run_on_jax_goes_on_exactly_and_is_exported(on_tensorflow, tmp_path):
    from tfllm.cli.export import export

    recipe, _ = on_tensorflow
    more = ("train.strategy=data_parallel", "train.checkpoint_every=1")
    straight = command(recipe, tmp_path / "straight", *more)
    assert straight.returncode == 0, straight.stderr[-3000:]
    state = sorted((tmp_path / "straight" / "state").iterdir())[0]
    assert state.name == "step-00000002"
    resumed = tmp_path / "resumed"
    (resumed / "state").mkdir(parents=True)
    state.rename(resumed / "state" / state.name)
    (tmp_path / "straight" / "recipe.yaml").rename(resumed / "recipe.yaml")
    done = subprocess.run(
        [sys.executable, "-m", "tfllm", "train", recipe, "--output", resumed, "--resume",
         "--set", more[0], "--set", more[1]],
        cwd=ROOT, env=environment(**FOUR), capture_output=True, text=True, timeout=SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (
        load_file(d / "checkpoint" / "model.safetensors") for d in (tmp_path / "straight", resumed)
    )
    assert all(np.array_equal(one[name], two[name]) for name in one)
    export(str(resumed), "savedmodel", str(tmp_path / "exported"))
    assert (tmp_path / "exported" / "1" / "saved_model.pb").is_file()


@pytest.mark.slow
def test_a_setting_that_jax_has_not_is_refused(tmp_path):
    pytest.importorskip("jax")
    folder = recipes.write_data(tmp_path / "data")
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(recipes.settings(folder, train={"ema": 0.9})))
    done = command(recipe, tmp_path / "run", "train.strategy=data_parallel")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "train.ema: 0.9 is not available with Keras on JAX" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name, chosen", [("data_parallel", "jax"), ("mirrored", None)])
def test_the_strategy_chooses_the_backend(tmp_path, monkeypatch, name, chosen):
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    monkeypatch.setattr("os.environ", dict(backend.os.environ))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("train: {strategy: one}\n")
    backend.choose_backend(recipe, [f"train.strategy={name}"])
    assert backend.os.environ.get("KERAS_BACKEND") == chosen


def test_a_backend_that_the_user_chose_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("train: {strategy: data_parallel}\n")
    backend.choose_backend(recipe, [])
    assert backend.os.environ["KERAS_BACKEND"] == "tensorflow"


UNSUPPORTED = {
    "ema": 0.9, "rematerialize": True, "steps_per_execution": 2, "kernels": "fused",
    "precision": "float16",
}  # fmt: skip


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_jax_has_not_is_named(name):
    with pytest.raises(SettingError, match=f"train.{name}: .*KERAS_BACKEND=tensorflow"):
        jax_model.check_settings(TrainSettings(**{name: UNSUPPORTED[name]}))
    jax_model.check_settings(TrainSettings())


@pytest.mark.parametrize(
    "path, shape, axes",
    [
        ("layer_0/attention/query/kernel", (8, 2, 4), [None, "model", None]),
        ("layer_0/attention/query/bias", (2, 4), ["model", None]),
        ("layer_0/attention/attention_output/kernel", (2, 4, 8), ["model", None, None]),
        ("layer_0/attention/attention_output/bias", (8,), [None]),
        ("layer_0/up/kernel", (8, 32), [None, "model"]),
        ("layer_0/down/kernel", (32, 8), ["model", None]),
        ("token_embedding/embeddings", (10, 8), ["model", None]),
        ("token_embedding/embeddings", (9, 8), [None, None]),
        ("embedding_norm/gamma", (8,), [None]),
        ("seed_generator_state", (2,), [None]),
    ],
)
def test_which_axis_of_a_weight_is_divided(path, shape, axes):
    assert jax_devices.sharded_axes(path, shape, 2) == axes


def test_rows_are_added_until_they_divide():
    x, y = {"token_ids": np.arange(6).reshape(3, 2)}, np.array([7, 8, 9])
    (x, y, real), *_ = jax_devices.pad_batches(iter([(x, y)]), 4)
    assert x["token_ids"].shape == (4, 2) and y.tolist() == [7, 8, 9, 7]
    assert real.shape == (4, 3)
