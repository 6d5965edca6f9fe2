"""`tfllm launch`: workers begin and end together; a run goes on after one was lost."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from tests.helpers import recipes
from tests.helpers.waiting import wait_for
from tests.training.strategy_runs import ROOT, environment
from tfllm.cli import launch, main

SECONDS = 400  # for a start or an end, on a machine with other work
# One heartbeat of TensorFlow's workers is not waited for: a lost connection is told at once.
STOP_SECONDS = 60


@pytest.fixture
def recipe(tmp_path):
    folder = recipes.write_data(tmp_path / "data")
    settings = recipes.settings(folder, data={"validation": None})
    settings["train"] |= {"epochs": 400, "checkpoint_every": 5, "log_every": 1}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def start(recipe, output, *more, workers=2):
    return subprocess.Popen(
        [sys.executable, "-m", "tfllm", "launch", "--workers", str(workers), str(recipe),
         "--output", str(output), *more],
        cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def lines(output):
    path = output / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def workers_of(process):
    """Process ids by worker."""
    found = {}
    for entry in os.listdir("/proc"):
        try:
            if (
                entry.isdigit()
                and int(open(f"/proc/{entry}/stat").read().rsplit(")", 1)[1].split()[1])
                == process.pid
            ):
                variables = open(f"/proc/{entry}/environ").read().split("\0")
                text = next(v for v in variables if v.startswith("TF_CONFIG="))
                found[json.loads(text.partition("=")[2])["task"]["index"]] = int(entry)
        except (OSError, StopIteration):
            continue
    return found


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_worker_ends_the_others_and_the_run_goes_on_exactly(recipe, tmp_path, lost):
    short = ("--set", "train.epochs=6")
    process = start(recipe, tmp_path / "run", *short)
    wait_for(lambda: lines(tmp_path / "run") >= 12, process)
    os.kill(workers_of(process)[lost], signal.SIGKILL)
    killed = time.monotonic()
    out, error = process.communicate(timeout=SECONDS)
    assert time.monotonic() - killed < STOP_SECONDS
    assert process.returncode == 1
    last = error.splitlines()[-1]
    assert f"worker {lost} was ended by signal 9 (SIGKILL); the others were stopped" in last
    assert f"--output {tmp_path / 'run'} --resume" in last
    told = error if lost else (tmp_path / "run/workers/worker-1.log").read_text()
    assert "Traceback" not in told
    for output, more in (("run", ("--resume",)), ("straight", ())):
        process = start(recipe, tmp_path / output, *short, *more)
        out, error = process.communicate(timeout=SECONDS)
        assert process.returncode == 0, error
        assert out.splitlines()[-1] == str(tmp_path / output)
    one, two = (
        load_file(tmp_path / name / "checkpoint" / "model.safetensors")
        for name in ("run", "straight")
    )
    assert all(np.array_equal(one[name], two[name]) for name in two)


@pytest.mark.slow
@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_saves_on_all_workers_and_ends(recipe, tmp_path, number, status):
    process = start(recipe, tmp_path / "run")
    wait_for(lambda: lines(tmp_path / "run") >= 3, process)
    process.send_signal(number)
    _, error = process.communicate(timeout=SECONDS)
    assert process.returncode == status, error
    assert "stopped; the state is saved" in error and "Traceback" not in error
    assert list((tmp_path / "run" / "state").glob("step-*"))
    text = (tmp_path / "run" / "workers" / "worker-1.log").read_text()
    assert "stopped; the state is saved" in text


@pytest.mark.slow
def test_a_signal_to_one_worker_stops_all(recipe, tmp_path):
    process = start(recipe, tmp_path / "run")
    wait_for(lambda: lines(tmp_path / "run") >= 3, process)
    os.kill(workers_of(process)[1], signal.SIGTERM)
    _, error = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, error
    assert "stopped; the state is saved" in error


@pytest.mark.slow
def test_workers_end_when_the_launcher_is_killed(recipe, tmp_path):
    process = start(recipe, tmp_path / "run")
    wait_for(lambda: lines(tmp_path / "run") >= 3, process)
    workers = workers_of(process)
    assert set(workers) == {0, 1}
    process.kill()
    process.communicate(timeout=SECONDS)
    end = time.monotonic() + STOP_SECONDS
    while any(os.path.exists(f"/proc/{pid}") for pid in workers.values()):
        assert time.monotonic() < end
        time.sleep(0.2)


def test_a_worker_that_fails_is_told_with_its_last_lines(tmp_path, capsys, monkeypatch):
    """A fault of one worker alone: its lines, its status, the way to go on."""
    program = "import json, os, sys, time; i = json.loads(os.environ['TF_CONFIG'])['task']['index']"
    program += "; print('worker', i, 'here', flush=True); time.sleep(0 if i else 600); sys.exit(3)"
    (tmp_path / "tfllm.py").write_text(program.replace("; ", "\n"))
    monkeypatch.setattr(launch, "GRACE_SECONDS", 0.5)
    monkeypatch.chdir(tmp_path)  # `python -m tfllm` is the program there
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    status = launch._run_workers(
        ["train"], 2, tmp_path / "workers", ["tfllm", "launch", "--resume"]
    )
    error = capsys.readouterr().err
    assert status == 3
    assert "[worker 1] worker 1 here" in error
    assert "worker 1 ended with status 3; the others were stopped" in error
    assert error.rstrip().endswith("tfllm launch --resume")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["{recipe}", "--workers", "2", "--set", "train.epoch=1"], "Did you mean 'epochs'"),
        (["{recipe}", "--workers", "2", "--output", "{folder}"], "is not empty"),
        (["{recipe}", "--workers", "2", "--output", "{folder}/x", "--resume"], "no run to resume"),
    ],
)
def test_wrong_input_is_told_before_anything_starts(recipe, tmp_path, capsys, arguments, message):
    given = [text.format(recipe=recipe, folder=tmp_path) for text in arguments]
    with pytest.raises(SystemExit) as stop:
        main(["launch", *given])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
