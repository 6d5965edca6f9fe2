"""The same tiny recipes on one device, on two, and in two worker processes.

`python -m tests.training.strategy_runs STRATEGY DATA OUTPUT CASE...` trains every case into
OUTPUT/CASE. With "mirrored" the CPU is shown as two devices; "multi_worker" is told by TF_CONFIG.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from tests.helpers import recipes

ROOT = Path(__file__).parents[2]
SECONDS = 900  # for all cases of a process, on a machine with other work

# 46 rows in batches of 15: every epoch ends with a batch of one row, so that a replica has none.
ROWS, BATCH = 46, 15
STILL = {"dropout": 0.0, "attention_dropout": 0.0}
MASKED = {"task": {"kind": "masked_lm", "max_length": 32, "mask_probability": 0.3}}

# Feature of the equality table -> what differs from the plain recipe.
CASES = {
    "plain": {},
    "accumulation": {"train": {"accumulate": 4}},
    "clipping": {"train": {"clip_norm": 0.05}},
    "averages": {"train": {"ema": 0.9}},
    "weight decay": {"train": {"weight_decay": 0.3}},
    "validation and best": {"evaluate": {"every": 3, "best": "loss", "patience": 9}},
    "steps per execution": {"train": {"steps_per_execution": 3, "checkpoint_every": 4}},
    "bfloat16": {"train": {"precision": "bfloat16"}},
    "float16": {"train": {"precision": "float16"}},
    "compiled kernels": {"train": {"kernels": "compiled"}},
    "masked loss": MASKED,
    "class weights": {"train": {"class_weights": {"good": 1.0, "bad": 5.0}}},
    "all together": {
        **MASKED,
        "train": {
            "accumulate": 2, "clip_norm": 0.5, "ema": 0.9, "weight_decay": 0.3,
            "steps_per_execution": 3,
        },
        "evaluate": {"every": 3, "best": "loss"},
    },
    # Quick enough for every run of the tests.
    "steps of all kinds": {
        **MASKED,
        "train": {"accumulate": 2, "clip_norm": 0.5, "ema": 0.9, "weight_decay": 0.3, "epochs": 1},
        "data": {"validation": None},
    },
    "dropout": {"model": {"dropout": 0.3, "attention_dropout": 0.3}},
}  # fmt: skip


def recipe(folder, case, strategy):
    """A recipe of eight steps; a line of metrics for each."""
    parts = CASES[case]
    data = recipes.settings(folder, task=parts.get("task", {}), evaluate=parts.get("evaluate", {}))
    data["model"] |= {**STILL, **parts.get("model", {})}
    # AdamW makes steps of the learning rate's size from gradients of any size above epsilon, so a
    # gradient that is zero but for rounding (of a key's bias) needs a larger one to stay at zero.
    data["train"] |= {"batch_size": BATCH, "epsilon": 1e-4, "log_every": 1, "samples": 0}
    data["train"]["strategy"] = strategy
    data["train"] |= parts.get("train", {})
    if "task" in parts:
        data["task"] = parts["task"]
        data["data"] |= {"columns": {"text": "sentence"}}
    data["data"] |= parts.get("data", {})
    return data


def command(strategy, folder, output, cases):
    return [
        sys.executable, "-m", "tests.training.strategy_runs", strategy, str(folder), str(output),
        *cases,
    ]  # fmt: skip


def environment(**more):
    return {
        **os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", "CUDA_VISIBLE_DEVICES": "-1",
        "TF_NUM_INTRAOP_THREADS": "1", **more,
    }  # fmt: skip


def free_ports(count):
    """Ports of the loopback that nobody listened to a moment ago."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def start_workers(command, count=2, **options):
    """The same command as `count` workers over the loopback."""
    addresses = [f"127.0.0.1:{port}" for port in free_ports(count)]
    return [
        subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=environment(TF_CONFIG=json.dumps(
                {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
            )), **options,
        )
        for index in range(count)
    ]  # fmt: skip


def start(strategy, folder, output, cases):
    """Processes that train the cases under a strategy."""
    line = command(strategy, folder, output, cases)
    if strategy == "multi_worker":
        return start_workers(line)
    return [
        subprocess.Popen(
            line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=environment(),
        )
    ]  # fmt: skip


def finish(processes, seconds=SECONDS):
    """Waits for all; their texts. AssertionError when one failed."""
    texts = []
    try:
        for process in processes:
            texts.append(process.communicate(timeout=seconds)[0])
    finally:
        for process in processes:
            process.kill()
    for process, text in zip(processes, texts, strict=True):
        assert process.returncode == 0, text[-4000:]
    return texts


def two_devices():
    """Shows the CPU as two devices; before anything else is computed."""
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)


def main(strategy, folder, output, *cases):
    if strategy == "mirrored":
        two_devices()
    from tfllm import config
    from tfllm.training.recipe import Recipe
    from tfllm.training.run import train

    for case in cases:
        settings = config.build(recipe(Path(folder), case, strategy), Recipe)
        train(settings, Path(output) / case, progress=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
