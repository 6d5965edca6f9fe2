"""What a resumed run must have in common with its start, and what keeps two runs apart."""

import os
import signal
import subprocess
import sys

import pytest
import yaml

from tests.helpers import recipes
from tests.training.test_run import At
from tfllm import config
from tfllm.cli import main
from tfllm.errors import DataError, SettingError, StorageError
from tfllm.training import directory as files
from tfllm.training import resuming, state
from tfllm.training.acceleration import precision
from tfllm.training.recipe import Recipe
from tfllm.training.run import train

STEPS = {"epochs": None, "steps": 2, "log_every": 1, "clip_norm": None}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished run from nothing, and one from its checkpoint."""
    folder = recipes.write_data(tmp_path_factory.mktemp("data"), train=64)
    first = train(recipes.recipe(folder, train=STEPS), folder / "first", progress=False)
    second = train(further(folder), folder / "second", progress=False)
    return folder, first, second


def further(folder, **parts):
    data = recipes.settings(folder, **{"train": STEPS, **parts})
    data["model"] = {"from": str(folder / "first")}
    del data["tokenizer"]
    return config.build(data, Recipe)


def resumed(recipe, directory):
    return train(recipe, directory, resume=True, progress=False)


def test_a_finished_run_is_left_as_it_is(done):
    folder, first, second = done
    before = {path: path.stat().st_mtime_ns for path in sorted(first.directory.rglob("*"))}
    again = resumed(recipes.recipe(folder, train={**STEPS, "log_every": 7}), first.directory)
    assert again.summary == first.summary
    after = {path: path.stat().st_mtime_ns for path in sorted(first.directory.rglob("*"))}
    assert {path for path in after if before.get(path) != after[path]} <= {first.directory}
    assert resumed(further(folder), second.directory).summary["steps"] == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 4}, r"train\.steps is 4.*is finished.*model\.from"),
        ({"learning_rate": 0.5}, r"train\.learning_rate is 0\.5"),
        ({"clip_norm": 1.0}, r"train\.clip_norm is 1\.0, but the run .* started with None"),
    ],
)
def test_a_finished_run_with_other_settings_is_refused(done, changes, message):
    folder, first, _ = done
    with pytest.raises(SettingError, match=message):
        resumed(recipes.recipe(folder, train={**STEPS, **changes}), first.directory)


def test_the_command_refuses_it_with_status_2(done, tmp_path, capsys):
    folder, first, _ = done
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(recipes.settings(folder, train=STEPS)))
    arguments = ["train", str(recipe), "--output", str(first.directory), "--resume"]
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--set", "train.steps=3"])
    assert stop.value.code == 2 and "train.steps is 3" in capsys.readouterr().err


def other_label(text):
    """The first example with the other label: the same texts, the same two labels."""
    head, first, rest = text.split("\n", 2)
    sentence, label = first.split("\t")
    return f"{head}\n{sentence}\t{'good' if label == 'bad' else 'bad'}\n{rest}"


CHANGED = {
    "labels": ("train.tsv", other_label, "first", "training data's labels are not what"),
    "texts": ("train.tsv", lambda t: t.replace("red", "blue"), "first", "training data is not"),
    "validation": ("validation.tsv", other_label, "first", "validation data is not what"),
    "vocabulary": ("vocab.txt", lambda t: t + "new\n", "first", "tokenizer is not what"),
    "checkpoint": ("first/checkpoint/tfllm.json", lambda t: t + "\n", "second",
                   "checkpoint of model.from is not what"),
}  # fmt: skip


@pytest.mark.parametrize("case", CHANGED)
def test_other_files_under_the_same_name_are_refused(done, case):
    folder, first, second = done
    name, change, run, message = CHANGED[case]
    path = folder / name
    text = path.read_text()
    path.write_text(change(text))
    try:
        recipe = recipes.recipe(folder, train=STEPS) if run == "first" else further(folder)
        with pytest.raises(DataError, match=message):
            resumed(recipe, folder / run)
    finally:
        path.write_text(text)


def test_an_unfinished_run_with_other_labels_is_refused(tmp_path):
    folder = recipes.write_data(tmp_path / "data", train=64)
    stop = At(1, lambda: os.kill(os.getpid(), signal.SIGTERM))
    recipe = recipes.recipe(folder, train={**STEPS, "steps": 4})
    assert train(recipe, tmp_path / "run", progress=False, callbacks=[stop]).signal
    path = folder / "train.tsv"
    text = path.read_text()
    path.write_text(other_label(text))
    with pytest.raises(DataError, match="training data's labels are not what"):
        resumed(recipe, tmp_path / "run")
    path.write_text(text)
    assert resumed(recipe, tmp_path / "run").summary["steps"] == 4


def test_workers_must_have_the_same(done):
    folder, _, _ = done
    digests = dict.fromkeys(resuming.INPUTS, "a")
    resuming.check_worker(digests, digests)
    with pytest.raises(DataError, match="labels are not the same for this worker"):
        resuming.check_worker(digests, {**digests, "targets": "b"})
    own = files.result_settings(recipes.recipe(folder, train=STEPS))
    elsewhere = {**own, "data.train": "/elsewhere/train.tsv"}
    files.check_worker(elsewhere, own)
    other = files.result_settings(recipes.recipe(folder, train={**STEPS, "batch_size": 8}))
    with pytest.raises(SettingError, match=r"train\.batch_size is 32 for this worker, but 8"):
        files.check_worker(other, own)


def test_a_state_of_an_older_version_is_compared_as_far_as_it_goes():
    progress = state.TrainingProgress(data="a")
    now = dict.fromkeys(resuming.INPUTS, "a")
    resuming.check_resumed(progress.inputs, now)
    with pytest.raises(DataError, match="training data is not what"):
        resuming.check_resumed(progress.inputs, {**now, "data": "b"})


def test_what_auto_came_to_is_kept_on_another_machine(tmp_path, monkeypatch, caplog):
    folder = recipes.write_data(tmp_path / "data", train=64)
    recipe = recipes.recipe(folder, train={**STEPS, "steps": 4, "precision": "auto"})
    monkeypatch.setattr(precision, "has_bfloat16", lambda: True)
    stop = At(1, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert train(recipe, tmp_path / "run", progress=False, callbacks=[stop]).signal
    chosen = state.newest_progress(tmp_path / "run" / "state").resolved
    assert chosen == {"precision": "bfloat16", "kernels": "fused"}
    monkeypatch.setattr(precision, "has_bfloat16", lambda: False)
    assert resumed(recipe, tmp_path / "run").summary["precision"] == "bfloat16"
    assert "started in bfloat16 and continues in it" in caplog.text
    assert precision.choose("auto", {}) == "float32"
    assert precision.choose("float16", {"precision": "bfloat16"}) == "float16"


def test_two_runs_do_not_share_a_directory(tmp_path, capsys):
    folder = recipes.write_data(tmp_path / "data", train=64)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(recipes.settings(folder, train=STEPS)))
    output = tmp_path / "new" / "run"
    with files.locked(output):
        with pytest.raises(StorageError, match="Another process is training into"):
            train(recipes.recipe(folder, train=STEPS), output, progress=False)
        with pytest.raises(SystemExit) as stop:
            main(["train", str(recipe), "--output", str(output)])
        assert stop.value.code == 2 and "Another process is training" in capsys.readouterr().err
        assert [path.name for path in output.iterdir()] == [files.LOCK]
    assert not (tmp_path / "new").exists()


def test_the_lock_of_a_killed_process_keeps_nobody_out(tmp_path):
    (tmp_path / "run").mkdir()
    program = (
        "import fcntl, sys, time; file = open(sys.argv[1], 'w'); "
        "fcntl.flock(file, fcntl.LOCK_EX); print('locked', flush=True); time.sleep(60)"
    )
    path = tmp_path / "run" / files.LOCK
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(StorageError, match="Another process"):
            with files.locked(tmp_path / "run"):
                pass
    finally:
        process.kill()
        process.wait()
    assert path.exists()
    files.check_free(tmp_path / "run", resume=False)
    with files.locked(tmp_path / "run"):
        assert path.exists()
    assert not path.exists() and (tmp_path / "run").is_dir()
