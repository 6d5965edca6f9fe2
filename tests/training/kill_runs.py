"""Runs that are killed at random moments and resumed, all from one process that has imported all.

`python -m tests.training.kill_runs STRATEGY DATA OUTPUT KILLS SEED` trains OUTPUT/straight without
a stop and then OUTPUT/kill-0, ... each killed once by SIGKILL. Children are forked before
TensorFlow computes anything, so that none waits for imports. The last line is JSON: for every kill
the step after which it came, and whether the weights are those of the straight run, bit by bit.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from tests.training import strategy_runs
from tfllm import config
from tfllm.training.recipe import Recipe
from tfllm.training.run import train

SECONDS = 600  # for one run, on a machine with other work
STEPS = 60
# Dropout, masking, averages, micro-batches, batches of unlike lengths and a state at every step.
PARTS = {
    "task": {"kind": "masked_lm", "max_length": 32, "mask_probability": 0.3},
    "model": {"dropout": 0.2, "attention_dropout": 0.2},
    "train": {"epochs": 15, "ema": 0.9, "accumulate": 2, "checkpoint_every": 1},
}


def recipe(folder, strategy):
    settings = strategy_runs.recipe(folder, "plain", strategy)
    settings["task"] = PARTS["task"]
    settings["model"] |= PARTS["model"]
    settings["train"] |= PARTS["train"]
    settings["data"] = {"train": str(folder / "train.tsv"), "columns": {"text": "sentence"}}
    return config.build(settings, Recipe)


def child(settings, output, cluster):
    """A forked process that trains; its id."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        if cluster:
            os.environ["TF_CONFIG"] = cluster
        if settings.train.strategy == "mirrored":
            strategy_runs.two_devices()
        train(settings, output, resume=output.is_dir(), progress=False)
        status = 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    finally:
        sys.stderr.flush()
        os._exit(status)


def started(settings, output):
    """The processes of a run: two workers, or one."""
    if settings.train.strategy != "multi_worker":
        return [child(settings, output, None)]
    addresses = [f"127.0.0.1:{port}" for port in strategy_runs.free_ports(2)]
    return [
        child(settings, output, json.dumps(
            {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        ))
        for index in range(2)
    ]  # fmt: skip


def ended(processes):
    """Waits until all have ended."""
    left, end = set(processes), time.monotonic() + SECONDS
    while left:
        left -= {process for process in left if os.waitpid(process, os.WNOHANG)[0]}
        if time.monotonic() > end:
            for process in left:
                os.kill(process, signal.SIGKILL)
            raise SystemExit(f"not ended within {SECONDS} s")
        time.sleep(0.01)


def steps_of(output):
    path = output / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def killed(settings, output, dice):
    """Starts a run and kills a process of it at a random moment; the step that was."""
    processes = started(settings, output)
    step, delay = dice.randrange(STEPS - 1), dice.random() * 0.02
    end = time.monotonic() + SECONDS
    while steps_of(output) < step and time.monotonic() < end:
        time.sleep(0.001)
    time.sleep(delay)
    os.kill(dice.choice(processes), signal.SIGKILL)
    ended(processes)
    return steps_of(output)


def main(strategy, folder, output, kills, seed):
    settings, output = recipe(Path(folder), strategy), Path(output)
    dice = random.Random(int(seed))
    ended(started(settings, output / "straight"))
    expected = (output / "straight" / "checkpoint" / "model.safetensors").read_bytes()
    found = []
    for number in range(int(kills)):
        directory = output / f"kill-{number}"
        step = killed(settings, directory, dice)
        ended(started(settings, directory))
        weights = (directory / "checkpoint" / "model.safetensors").read_bytes()
        found.append([step, weights == expected])
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
