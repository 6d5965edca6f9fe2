"""The files that start runs on clusters: what the worker's script says and does."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml

from tests.helpers import recipes
from tests.training.strategy_runs import ROOT, environment
from tfllm import config
from tfllm.training.distribution import cluster
from tfllm.training.recipe import Recipe

FOLDER = ROOT / "serving" / "kubernetes" / "training"
SECONDS = 60
# Stands in for `tfllm`: tells how it was called, and ends as it is told.
PROGRAM = """#!/bin/bash
trap 'echo saved >> "$RUN/called"; exit 0' TERM
echo "$TF_CONFIG" "$@" >> "$RUN/called"
case "$MODE" in
  done) touch "$RUN/recipe.yaml" "$RUN/summary.json"; exit 0;;
  fail) exit 3;;
  wait) sleep 60 & wait;;
esac
"""


@pytest.fixture
def worker(tmp_path):
    """Starts worker.sh as a pod of jobset.yaml would."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "tfllm").write_text(PROGRAM)
    (tmp_path / "bin" / "tfllm").chmod(0o755)
    (tmp_path / "run").mkdir()
    variables = {entry["name"]: entry["value"] for entry in container()["env"]}
    variables |= {"RUN": str(tmp_path / "run"), "JOB_COMPLETION_INDEX": "2"}
    variables["PATH"] = f"{tmp_path / 'bin'}:{os.environ['PATH']}"

    def start(mode, **more):
        return subprocess.Popen(
            ["bash", FOLDER / "worker.sh", "--set", "train.seed=3"],
            env={**variables, "MODE": mode, **more}, start_new_session=True,
        )  # fmt: skip

    return start


def container():
    jobset = yaml.safe_load((FOLDER / "jobset.yaml").read_text())
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    return job["template"]["spec"]["containers"][0]


def called(tmp_path):
    path = tmp_path / "run" / "called"
    return path.read_text().splitlines() if path.exists() else []


def test_a_pod_names_all_workers_and_itself(worker, tmp_path):
    assert worker("done").wait(SECONDS) == 0
    text, _, arguments = called(tmp_path)[0].partition("} train")
    found = cluster.from_tf_config(text + "}")
    assert found.index == 2
    assert found.addresses == tuple(f"pretrain-workers-0-{i}.pretrain:2222" for i in range(4))
    assert "--resume" not in arguments and "--set train.seed=3" in arguments
    assert worker("done").wait(SECONDS) == 0
    assert "--resume" in called(tmp_path)[1]


def test_a_tf_config_that_is_there_is_kept(worker, tmp_path):
    worker("done", TF_CONFIG="{}").wait(SECONDS)
    assert called(tmp_path)[0].startswith("{} train")


def test_a_pod_fails_with_its_worker_and_after_a_stop_in_good_order(worker, tmp_path):
    assert worker("fail").wait(SECONDS) == 3
    process = worker("wait")
    end = time.monotonic() + SECONDS
    while len(called(tmp_path)) < 2 and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(SECONDS) == 75
    assert called(tmp_path)[-1] == "saved"


def test_the_files_fit_the_script():
    jobset = yaml.safe_load((FOLDER / "jobset.yaml").read_text())
    job = jobset["spec"]["replicatedJobs"][0]
    variables = {entry["name"]: entry["value"] for entry in container()["env"]}
    assert job["name"] == "workers" and job["replicas"] == 1
    template = job["template"]["spec"]
    assert int(variables["WORKERS"]) == template["completions"] == template["parallelism"]
    assert variables["JOBSET"] == jobset["metadata"]["name"]
    assert int(variables["PORT"]) == container()["ports"][0]["containerPort"]
    tfjob = yaml.safe_load((FOLDER / "tfjob.yaml").read_text())
    spec = tfjob["spec"]["tfReplicaSpecs"]["Worker"]["template"]["spec"]["containers"][0]
    assert spec["name"] == "tensorflow" and spec["command"] == container()["command"]


def test_the_slurm_script_is_a_shell_script():
    script = FOLDER / "slurm.sbatch"
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    assert "srun" in script.read_text()


@pytest.mark.slow
def test_slurm_tasks_train_together(tmp_path):
    """Two processes with the variables that srun sets."""
    folder = recipes.write_data(tmp_path / "data")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(recipes.settings(folder, data={"validation": None})))
    slurm = {
        "SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_TASKS_PER_NODE": "2",
        "SLURM_JOB_ID": str(os.getpid()),
    }  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tfllm", "train", recipe, "--output", tmp_path / "run"],
            cwd=ROOT, env=environment(SLURM_PROCID=str(index), **slurm),
            stderr=subprocess.PIPE, text=True,
        )
        for index in range(2)
    ]  # fmt: skip
    for process in processes:
        error = process.communicate(timeout=600)[1]
        assert process.returncode == 0, error
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["replicas"] == 2 and summary["steps"] == 14


@pytest.mark.slow
def test_ray_train_runs_the_recipe(tmp_path, monkeypatch):
    """Two workers placed by Ray end with the weights of one device, up to rounding."""
    ray = pytest.importorskip("ray")
    import numpy as np
    from safetensors.numpy import load_file

    from tests.training import strategy_runs
    from tfllm.training.distribution import ray_train
    from tfllm.training.run import train

    monkeypatch.setenv("RAY_TRAIN_V2_ENABLED", "1")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    folder = recipes.write_data(tmp_path / "data", train=strategy_runs.ROWS)
    recipe = config.build(strategy_runs.recipe(folder, "plain", "auto"), Recipe)
    train(recipe, tmp_path / "one", progress=False)
    # More processors than there are: Ray's own processes want some.
    ray.init(num_cpus=4, include_dashboard=False, runtime_env={
        "env_vars": {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "-1"}})  # fmt: skip
    try:
        ray_train.run(recipe, tmp_path / "run", 2)
    finally:
        ray.shutdown()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["replicas"] == 2 and summary["steps"] == 8
    one, two = (
        load_file(tmp_path / name / "checkpoint" / "model.safetensors") for name in ("one", "run")
    )
    for name in one:  # as in test_strategies.py
        np.testing.assert_allclose(two[name], one[name], atol=2e-5, rtol=0)
