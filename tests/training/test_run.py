"""A run: its directory, its resumption bit by bit, and all that may go wrong."""

import json
import os
import signal

import keras
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.helpers import recipes
from tfllm import config
from tfllm.checkpoints import store
from tfllm.errors import DataError, SettingError, StorageError, TrainingFailed
from tfllm.training.monitoring.logs import read_log
from tfllm.training.recipe import Recipe
from tfllm.training.run import train


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return recipes.write_data(tmp_path_factory.mktemp("data"))


class At(keras.callbacks.Callback):
    """Does something after a step, as Ctrl-C would."""

    def __init__(self, step, act):
        super().__init__()
        self.step, self.act, self.done = step, act, 0

    def on_train_batch_end(self, batch, logs=None):
        self.done += 1
        if self.done == self.step:
            self.act()


def weights(directory):
    return load_file(directory / "checkpoint" / "model.safetensors")


def losses(directory):
    keys = ("step", "epoch", "loss", "gradient_norm", "learning_rate", "padding")
    return [
        [line.get(key) for key in keys] for line in read_log(directory / "metrics.jsonl")
    ]  # fmt: skip


def same(one, two):
    assert set(one) == set(two)
    assert all(np.array_equal(one[name], two[name]) for name in one)


@pytest.fixture(scope="module")
def straight(folder, tmp_path_factory):
    """An unbroken run, and its directory."""
    directory = tmp_path_factory.mktemp("runs") / "straight"
    return train(recipes.recipe(folder), directory, progress=False)


def test_the_run_directory(straight, folder):
    names = {path.name for path in straight.directory.iterdir()}
    assert names == {
        "recipe.yaml", "metrics.jsonl", "logs", "state", "checkpoint", "summary.json"
    }  # fmt: skip
    resolved = config.load(straight.directory / "recipe.yaml", Recipe)
    assert resolved.task.labels == ("bad", "good")
    summary = json.loads((straight.directory / "summary.json").read_text())
    assert summary["steps"] == 14 and summary["examples"] == 400 and summary["epochs"] == 2
    assert summary["validation"]["accuracy"] > 0.9
    assert {"versions", "git_commit", "machine", "seconds", "tokens", "padding"} <= set(summary)
    assert any((straight.directory / "logs").iterdir())


def test_metrics_have_all_columns(straight):
    lines = read_log(straight.directory / "metrics.jsonl")
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [2, 4, 6, 8, 10, 12, 14]
    assert {
        "step", "epoch", "loss", "learning_rate", "tokens_per_second", "padding", "gradient_norm",
    } <= set(steps[0])  # fmt: skip
    assert steps[-1]["loss"] < steps[0]["loss"]
    measured = [line for line in lines if "validation_accuracy" in line]
    assert [line["epoch"] for line in measured] == [1.0, 2.0]
    # The loss, Keras' own metric of the task, and what `measure` adds.
    assert {"validation_loss", "validation_accuracy", "validation_f1_macro"} <= set(measured[0])


def test_the_checkpoint_loads_as_a_plain_model(straight, folder):
    checkpoint = store.load(straight.directory)
    features = checkpoint.task.features([{"text": "red is the one"}], checkpoint.tokenizer)
    inputs, _ = features.batch([0])
    assert checkpoint.model(inputs).shape == (1, 2)


@pytest.mark.parametrize(
    "step", [10, pytest.param(3, marks=pytest.mark.slow), pytest.param(7, marks=pytest.mark.slow)]
)
def test_a_stopped_run_goes_on_bit_by_bit(straight, folder, tmp_path, step):
    stop = At(step, lambda: os.kill(os.getpid(), signal.SIGINT))
    recipe = recipes.recipe(folder)
    stopped = train(recipe, tmp_path / "run", progress=False, callbacks=[stop])
    assert stopped.signal == signal.SIGINT
    assert not (tmp_path / "run" / "summary.json").exists()
    done = train(recipe, tmp_path / "run", resume=True, progress=False)
    same(weights(straight.directory), weights(tmp_path / "run"))
    after = [line for line in losses(straight.directory) if line[0] > step + 2]
    assert [line for line in losses(tmp_path / "run") if line[0] > step + 2] == after
    assert done.summary["tokens"] == straight.summary["tokens"]
    assert [line[0] for line in losses(tmp_path / "run")] == [
        line[0] for line in losses(straight.directory)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("kernels", ["auto", "compiled"])
def test_a_killed_run_goes_on_from_its_last_state(straight, folder, tmp_path, kernels):
    class Killed(Exception):
        pass

    def kill():
        raise Killed

    recipe = recipes.recipe(folder, train={"checkpoint_every": 4, "kernels": kernels})
    whole = straight.directory
    if kernels == "compiled":
        whole = train(recipe, tmp_path / "whole", progress=False).directory
    with pytest.raises(Killed):
        train(recipe, tmp_path / "run", progress=False, callbacks=[At(11, kill)])
    train(recipe, tmp_path / "run", resume=True, progress=False)
    same(weights(whole), weights(tmp_path / "run"))


def test_resume_after_the_end_changes_nothing(straight, folder):
    before = (straight.directory / "summary.json").stat().st_mtime_ns
    again = train(recipes.recipe(folder), straight.directory, resume=True, progress=False)
    assert again.summary["steps"] == 14
    assert (straight.directory / "summary.json").stat().st_mtime_ns == before


def test_an_existing_directory_is_not_touched(straight, folder, tmp_path):
    with pytest.raises(StorageError, match="not empty.*resume=True"):
        train(recipes.recipe(folder), straight.directory, progress=False)
    (tmp_path / "mine.txt").write_text("no run")
    for directory in (tmp_path, tmp_path / "missing"):
        with pytest.raises(StorageError, match="no run to resume"):
            train(recipes.recipe(folder), directory, resume=True, progress=False)


def test_resuming_with_other_settings_or_data_is_refused(folder, tmp_path):
    mine = recipes.write_data(tmp_path / "data")
    stop = At(2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    recipe = recipes.recipe(mine)
    stopped = train(recipe, tmp_path / "run", progress=False, callbacks=[stop])
    assert stopped.signal == signal.SIGTERM
    other = recipes.recipe(mine, train={"learning_rate": 0.1})
    with pytest.raises(SettingError, match="train.learning_rate is 0.1.*0.01"):
        train(other, tmp_path / "run", resume=True, progress=False)
    recipes.write_data(tmp_path / "data", train=99)
    with pytest.raises(DataError, match="not what the run was started with"):
        train(recipe, tmp_path / "run", resume=True, progress=False)


def test_best_checkpoint_and_early_stopping(folder, tmp_path):
    recipe = recipes.recipe(
        folder,
        train={"epochs": 30},
        evaluate={"best": "accuracy", "patience": 2},
    )
    run = train(recipe, tmp_path / "run", progress=False)
    assert run.summary["steps"] < 30 * 7
    best = run.summary["best"]
    measured = {
        line["step"]: line["validation_accuracy"]
        for line in read_log(tmp_path / "run" / "metrics.jsonl")
        if "validation_accuracy" in line
    }
    assert best["value"] == max(measured.values()) == measured[best["step"]]
    assert run.summary["steps"] == best["step"] + 2 * 7


def test_a_measure_that_does_not_exist_is_found_before_training(folder, tmp_path):
    recipe = recipes.recipe(folder, evaluate={"best": "acuracy"})
    with pytest.raises(SettingError, match="Did you mean 'accuracy'"):
        train(recipe, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_no_number_names_step_and_last_state(folder, tmp_path):
    recipe = recipes.recipe(
        folder,
        train={"checkpoint_every": 2, "learning_rate": 1e30, "warmup": 4, "clip_norm": None},
    )
    with pytest.raises(
        TrainingFailed, match=r"at step \d+\. Its batch: .*train.tsv:\d+.*train.learning_rate"
    ):
        train(recipe, tmp_path / "run", progress=False)
    for path in (tmp_path / "run" / "state").glob("step-*/variables.safetensors"):
        assert all(np.isfinite(a).all() for a in load_file(path).values() if a.dtype.kind == "f")


def test_a_full_disk_keeps_the_state_before(folder, tmp_path, monkeypatch):
    import safetensors.numpy

    real, calls = safetensors.numpy.save_file, []

    def full(arrays, path, *more, **options):
        calls.append(path)
        if "step-00000008" in str(path):
            raise OSError(28, "No space left on device")
        return real(arrays, path, *more, **options)

    monkeypatch.setattr("safetensors.numpy.save_file", full)
    recipe = recipes.recipe(folder, train={"checkpoint_every": 4})
    with pytest.raises(StorageError, match="step-00000004 is intact"):
        train(recipe, tmp_path / "run", progress=False)
    monkeypatch.undo()
    run = train(recipe, tmp_path / "run", resume=True, progress=False)
    assert run.summary["steps"] == 14


def test_faults_of_data_leave_nothing_behind(folder, tmp_path):
    bad = tmp_path / "bad.tsv"
    bad.write_text("sentence\tlabel\nred\tgood\nblue\tugly\n")
    recipe = recipes.recipe(
        folder, data={"train": str(bad)}, task={"labels": ["bad", "good"]}
    )  # fmt: skip
    with pytest.raises(DataError, match=r"bad.tsv:3: unknown label 'ugly'"):
        train(recipe, tmp_path / "run", progress=False)
    recipe = recipes.recipe(
        folder, data={"columns": {"text": "sentence"}}, task={"labels": ["a", "b"]}
    )
    with pytest.raises(DataError, match="no labels to train on"):
        train(recipe, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_lora_trains_adapters_and_saves_a_merged_checkpoint(folder, tmp_path):
    base = train(recipes.recipe(folder), tmp_path / "base", progress=False)
    data = recipes.settings(folder)
    data["model"] = {"from": str(base.directory), "lora": {"rank": 2}}
    del data["tokenizer"]
    data["train"]["epochs"] = 1
    recipe = config.build(data, Recipe)
    run = train(recipe, tmp_path / "lora", progress=False)
    assert run.summary["trainable_parameters"] < run.summary["parameters"] / 4
    assert (tmp_path / "lora" / "adapter" / "adapter.safetensors").is_file()
    merged, before = weights(tmp_path / "lora"), weights(base.directory)
    assert set(merged) == set(before)
    changed = {name for name in before if not np.array_equal(merged[name], before[name])}
    assert all("query/kernel" in n or "value/kernel" in n or n.startswith(("pooler", "classifier"))
               for n in changed)  # fmt: skip
    assert any("query" in name for name in changed)
    assert (
        store.load(tmp_path / "lora").model.count_params()
        == store.load(base.directory).model.count_params()
    )


def test_settings_of_the_step(folder, tmp_path):
    """Accumulation, class weights, smoothing, a token budget and bfloat16 all train."""
    recipe = recipes.recipe(
        folder,
        train={
            "steps": 10, "accumulate": 2, "class_weights": "balanced", "label_smoothing": 0.1,
            "batch_tokens": 256, "precision": "bfloat16", "schedule": "cosine", "epochs": None,
        },
    )  # fmt: skip
    run = train(recipe, tmp_path / "run", progress=False)
    assert run.summary["steps"] == 10 and run.summary["precision"] == "bfloat16"
    assert all(array.dtype == np.float32 for array in weights(tmp_path / "run").values())
    assert keras.config.dtype_policy().name == "float32"


REFUSED = {
    "no family": ({"model": {"family": "brt"}}, "Did you mean 'bert'"),
    "shape": ({"model": {"num_layer": 2}}, "Did you mean 'num_layers'"),
    "both": ({"model": {"from": "x"}}, "either `from`"),
    "tokenizer": ({"tokenizer": None}, "needs one"),
    "strategy": ({"train": {"strategy": "parameter_server"}}, "train.strategy"),
    "length": ({"task": {"max_length": 64}}, "task.max_length is 64"),
    "patience": ({"evaluate": {"patience": 2}}, "patience needs `best`"),
    "validation": ({"data": {"validation": None}, "evaluate": {"best": "loss"}}, "validation data"),
    "micro-batches": ({"train": {"accumulate": 99}}, "accumulate"),
    "epochs and steps": ({"train": {"steps": 5}}, "either epochs or steps"),
    "class weights": ({"train": {"class_weights": {"goood": 2.0}}}, "Did you mean 'good'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_impossible_settings_are_refused_before_anything_is_written(folder, tmp_path, case):
    parts, message = REFUSED[case]
    with pytest.raises(SettingError) as raised:
        train(recipes.recipe(folder, **parts), tmp_path / "run", progress=False)
    assert message in str(raised.value)
    assert not (tmp_path / "run").exists()
