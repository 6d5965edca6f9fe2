"""The workers of a run and which of them this process is: from TF_CONFIG, or Slurm's variables.

TF_CONFIG is TensorFlow's own convention, set by `tfllm launch`, Kubernetes' TFJob and Ray:
`{"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}`. Nothing here
imports TensorFlow.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tfllm.errors import SettingError

VARIABLE = "TF_CONFIG"
# The first may be named "chief"; both train. No other task takes part in synchronous training.
TRAINING_TASKS = ("chief", "worker")
SHAPE = (
    'It should look like {"cluster": {"worker": ["host:port", "host:port"]}, '
    '"task": {"type": "worker", "index": 0}}.'
)
LAST_PORT = 2**16 - 1
# Slurm's jobs share hosts, so a job's first port is its number modulo SLURM_PORTS, from here on.
SLURM_FIRST_PORT, SLURM_PORTS = 20_000, 30_000


@dataclass(frozen=True)
class Cluster:
    """The workers of a run, the chief first, and the index of this process among them."""

    addresses: tuple[str, ...]
    index: int
    source: str = field(default=VARIABLE, compare=False)
    """Where the addresses come from, for messages."""

    @property
    def is_chief(self) -> bool:
        """Whether this process writes the run directory."""
        return self.index == 0

    def __len__(self) -> int:
        return len(self.addresses)

    def tf_config(self, index: int | None = None) -> str:
        """Return the value of TF_CONFIG for the worker `index`, or for this process."""
        task = {"type": "worker", "index": self.index if index is None else index}
        return json.dumps({"cluster": {"worker": list(self.addresses)}, "task": task})


def find_cluster(environment: Mapping[str, str]) -> Cluster | None:
    """Find the cluster that TF_CONFIG, else Slurm's step, describes; None for a single process.

    Raises:
        SettingError: TF_CONFIG, or Slurm's variables, are not usable.
    """
    if environment.get(VARIABLE, "").strip():
        cluster = from_tf_config(environment[VARIABLE])
    else:
        cluster = from_slurm(environment)
    return cluster if cluster is not None and len(cluster) > 1 else None


def from_tf_config(text: str) -> Cluster | None:
    """Parse a TF_CONFIG; None where it names no workers.

    Raises:
        SettingError: It is not valid.
    """
    try:
        data = json.loads(text)
    except ValueError as error:
        raise SettingError(f"{VARIABLE} is not readable ({error}). {SHAPE}") from None
    jobs = _part(data, "cluster") if data else {}
    names = {name: _addresses(name, jobs[name]) for name in jobs}
    addresses = [address for name in TRAINING_TASKS for address in names.get(name, [])]
    if not addresses:
        return None
    for address in addresses:
        host_and_port(address)
        if addresses.count(address) > 1:
            raise SettingError(
                f"{VARIABLE} names the address '{address}' twice. Give every worker its own."
            )
    if "ps" in names:
        raise SettingError(
            f"{VARIABLE} names parameter servers (ps), which Keras 3 cannot train with. "
            "Name workers only."
        )
    kind, index = _task(data, alone=len(addresses) == 1)
    if kind not in TRAINING_TASKS:
        raise SettingError(
            f"{VARIABLE} says that this process is the task '{kind}', which takes no part in "
            "training. Start `tfllm train` on the tasks chief and worker only."
        )
    position = index + (len(names.get("chief", [])) if kind == "worker" else 0)
    if not 0 <= index < len(names.get(kind, [])):
        raise SettingError(
            f"{VARIABLE} says that this process is {kind} {index}, but names "
            f"{len(names.get(kind, []))} of them."
        )
    return Cluster(tuple(addresses), position)


def host_and_port(address: str, source: str = VARIABLE) -> tuple[str, int]:
    """Split `host:port` or `[IPv6]:port`.

    Args:
        address: The address.
        source: Where it is from, for messages.

    Raises:
        SettingError: It is no such address.
    """
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
    if not (host and colon and port.isdecimal() and 0 < int(port) <= LAST_PORT):
        raise SettingError(
            f"{source}: the address '{address}' is not host:port with a port from 1 to "
            f"{LAST_PORT}. Correct it for all workers."
        )
    return host, int(port)


def _part(data: Any, name: str) -> dict[str, Any]:
    part = data.get(name) if isinstance(data, dict) else data
    if part is None:
        return {}
    if not isinstance(part, dict):
        where = f"'{name}'" if isinstance(data, dict) else "it"
        raise SettingError(
            f"{VARIABLE} is not readable ({where} is {part!r}, not an object). {SHAPE}"
        )
    return part


def _addresses(name: str, value: Any) -> list[str]:
    if isinstance(value, list) and all(isinstance(address, str) for address in value):
        return value
    raise SettingError(
        f"{VARIABLE}: the addresses of '{name}' are {value!r}, not a list of texts. {SHAPE}"
    )


def _task(data: dict[str, Any], alone: bool) -> tuple[str, int]:
    """Kind and index of this process; they may be left out where it is the only one."""
    task = _part(data, "task")
    if alone:
        task = {"type": "worker" if "worker" in data["cluster"] else "chief", "index": 0} | task
    if missing := [name for name in ("type", "index") if task.get(name) is None]:
        raise SettingError(
            f"{VARIABLE} names several workers, but not which of them this process is (no "
            f"{' and no '.join(missing)} in 'task'). {SHAPE}"
        )
    index = task["index"]
    if isinstance(index, str) and index.isdecimal():
        index = int(index)
    if not isinstance(index, int) or isinstance(index, bool):
        raise SettingError(
            f"{VARIABLE}: the index {task['index']!r} in 'task' is no whole number. {SHAPE}"
        )
    return str(task["type"]), index


def from_slurm(environment: Mapping[str, str]) -> Cluster | None:
    """Find the cluster of a Slurm job step (`srun`), one worker per task; None outside of one.

    Args:
        environment: SLURM_STEP_NODELIST, SLURM_STEP_TASKS_PER_NODE, SLURM_PROCID and SLURM_JOB_ID
            are read.

    Raises:
        SettingError: A variable is not readable.
    """
    required = ("SLURM_STEP_NODELIST", "SLURM_STEP_TASKS_PER_NODE", "SLURM_PROCID", "SLURM_JOB_ID")
    if any(not environment.get(name) for name in required):
        return None
    nodes, tasks, process, job = (environment[name] for name in required)
    try:
        first = SLURM_FIRST_PORT + int(job) % SLURM_PORTS
        hosts, counts, index = host_names(nodes), task_counts(tasks), int(process)
    except ValueError as error:
        raise SettingError(
            f"Slurm's variables {', '.join(required)} are not readable ({error}). Start the "
            f"workers with srun, or name them in {VARIABLE}."
        ) from None
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
    if not 0 <= index < len(addresses):
        raise SettingError(
            f"SLURM_PROCID is {index}, but the step has {len(addresses)} tasks. Start the workers "
            "with srun."
        )
    return Cluster(tuple(addresses), index, "Slurm's step")


def host_names(text: str) -> list[str]:
    """Expand Slurm's host list: `gpu[01-03,7],login` is gpu01 gpu02 gpu03 gpu7 login."""
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
    """Expand Slurm's tasks per node: `2(x3),1` is 2 2 2 1."""
    counts: list[int] = []
    for part in text.split(","):
        count, _, times = part.partition("(x")
        counts += [int(count)] * int(times.rstrip(")") or 1)
    return counts
