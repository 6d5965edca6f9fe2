"""Which workers take part in a run and which of them this process is: TF_CONFIG, or Slurm's names.

TF_CONFIG is TensorFlow's own convention, set by `tfllm launch`, Kubernetes' TFJob and Ray:
`{"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}`. Nothing here
imports TensorFlow.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tfllm.errors import SettingError

VARIABLE = "TF_CONFIG"
# The first may be named "chief"; both train. All others do no part of synchronous training.
TRAINING_TASKS = ("chief", "worker")
# Slurm's jobs share hosts, so a job's first port is its number modulo SLURM_PORTS, from here on.
SLURM_FIRST_PORT, SLURM_PORTS = 20_000, 30_000


@dataclass(frozen=True)
class Cluster:
    """The workers of a run, the chief first, and the index of this process among them."""

    addresses: tuple[str, ...]
    index: int

    @property
    def is_chief(self) -> bool:
        """Whether this process writes the run directory."""
        return self.index == 0

    def __len__(self) -> int:
        return len(self.addresses)

    def tf_config(self, index: int | None = None) -> str:
        """The value of TF_CONFIG for the worker `index`, or for this process."""
        task = {"type": "worker", "index": self.index if index is None else index}
        return json.dumps({"cluster": {"worker": list(self.addresses)}, "task": task})


def found(environment: Mapping[str, str]) -> Cluster | None:
    """The cluster that TF_CONFIG, else Slurm's step, describes; None where there is one process.

    Raises SettingError for a TF_CONFIG that makes no sense.
    """
    if environment.get(VARIABLE, "").strip():
        cluster = from_tf_config(environment[VARIABLE])
    else:
        cluster = from_slurm(environment)
    return cluster if cluster is not None and len(cluster) > 1 else None


def from_tf_config(text: str) -> Cluster | None:
    """The cluster of a TF_CONFIG; None where it names no workers. Raises SettingError."""
    try:
        data = json.loads(text)
        jobs: Any = data.get("cluster") or {}
        task = data.get("task") or {}
        kind, index = str(task.get("type", "worker")), int(task.get("index", 0))
        names = {name: [str(address) for address in jobs[name]] for name in jobs}
    except (ValueError, TypeError, AttributeError) as error:
        raise SettingError(
            f"{VARIABLE} is not readable ({error}). It should look like "
            '{"cluster": {"worker": ["host:port", "host:port"]}, '
            '"task": {"type": "worker", "index": 0}}.'
        ) from None
    addresses = [address for name in TRAINING_TASKS for address in names.get(name, [])]
    if not addresses:
        return None
    if "ps" in names:
        raise SettingError(
            f"{VARIABLE} names parameter servers (ps), which Keras 3 cannot train with. "
            "Name workers only."
        )
    if kind not in TRAINING_TASKS:
        raise SettingError(
            f"{VARIABLE} says that this process is the task '{kind}', which takes no part in "
            "training. Start `tfllm train` on the tasks chief and worker only."
        )
    place = index + (len(names.get("chief", [])) if kind == "worker" else 0)
    if not 0 <= index < len(names.get(kind, [])):
        raise SettingError(
            f"{VARIABLE} says that this process is {kind} {index}, but names "
            f"{len(names.get(kind, []))} of them."
        )
    return Cluster(tuple(addresses), place)


def from_slurm(environment: Mapping[str, str]) -> Cluster | None:
    """The cluster of a Slurm job step (`srun`), one worker per task; None outside of one.

    Reads SLURM_STEP_NODELIST, SLURM_STEP_TASKS_PER_NODE, SLURM_PROCID and SLURM_JOB_ID.
    """
    needed = ("SLURM_STEP_NODELIST", "SLURM_STEP_TASKS_PER_NODE", "SLURM_PROCID", "SLURM_JOB_ID")
    if any(not environment.get(name) for name in needed):
        return None
    nodes, tasks, process, job = (environment[name] for name in needed)
    first = SLURM_FIRST_PORT + int(job) % SLURM_PORTS
    hosts = host_names(nodes)
    counts = task_counts(tasks)
    if len(hosts) != len(counts):
        raise SettingError(
            f"SLURM_STEP_NODELIST names {len(hosts)} hosts ({nodes}), "
            f"SLURM_STEP_TASKS_PER_NODE counts {len(counts)} ({tasks})."
        )
    addresses = [
        f"{host}:{first + task}"
        for host, count in zip(hosts, counts, strict=True)
        for task in range(count)
    ]
    return Cluster(tuple(addresses), int(process))


def host_names(text: str) -> list[str]:
    """Slurm's host list: `gpu[01-03,7],login` is gpu01 gpu02 gpu03 gpu7 login."""
    names = []
    for part in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", text):
        bracket = re.search(r"\[([^\]]*)\]", part)
        if bracket is None:
            names.append(part)
            continue
        for item in bracket.group(1).split(","):
            low, _, high = item.partition("-")
            for number in range(int(low), int(high or low) + 1):
                inside = str(number).zfill(len(low))
                names += host_names(part[: bracket.start()] + inside + part[bracket.end() :])
    return names


def task_counts(text: str) -> list[int]:
    """Slurm's tasks per node: `2(x3),1` is 2 2 2 1."""
    counts: list[int] = []
    for part in text.split(","):
        count, _, times = part.partition("(x")
        counts += [int(count)] * int(times.rstrip(")") or 1)
    return counts
