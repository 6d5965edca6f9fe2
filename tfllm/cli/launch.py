"""`tfllm launch`: the workers of one run on this machine, which begin and end together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Annotated

import typer

from tfllm.cli.options import Overrides, RecipeFile, Resume, RunDirectory
from tfllm.training import stopping
from tfllm.training.distribution import cluster as clusters
from tfllm.training.distribution.cluster import Cluster

EXAMPLES = """
Examples:

  tfllm launch --workers 2 models/bert/sst2.yaml --output runs/sst2

  tfllm launch --workers 2 models/bert/sst2.yaml --output runs/sst2 --resume

  tfllm launch --workers 2 --ray models/bert/sst2.yaml --output /shared/runs/sst2

What follows the recipe goes to every worker's tfllm train. The first worker's output is shown, that
of worker N is in OUTPUT/workers/worker-N.log. --ray asks a Ray cluster for the workers.
"""

# After one worker has failed, the others have this long to end by themselves.
GRACE_SECONDS = 10.0
POLL_SECONDS = 0.2
SIGNAL_STATUS = 128  # a shell's status for a command that a signal ended: 128 + its number
SHOWN_LINES = 5  # of a failed worker's file
LOOPBACK = "127.0.0.1"


def launch(
    recipe: RecipeFile,
    workers: Annotated[int, typer.Option(min=1, help="Number of worker processes.")],
    overrides: Overrides = [],  # noqa: B006
    output: RunDirectory = None,
    resume: Resume = False,
    ray: Annotated[bool, typer.Option("--ray", help="Let Ray Train place the workers.")] = False,
) -> None:
    """Train a model from a recipe with several worker processes."""
    from tfllm import config
    from tfllm.training import directory as files
    from tfllm.training.recipe import Recipe

    settings = config.load(recipe, Recipe, overrides)
    directory = output or Path("runs") / settings.name
    files.check_free(directory, resume)
    again = ["tfllm", "launch", "--workers", str(workers), str(recipe)]
    options = [part for override in overrides for part in ("--set", override)]
    options += ["--output", str(directory)]
    if ray:
        from tfllm.training.distribution import ray_train

        print(ray_train.run(settings, directory, workers, resume))
        return
    train = ["train", str(recipe), *options, *(["--resume"] if resume else [])]
    folder = directory / files.WORKERS
    with files.locked(directory):  # the first worker takes the lock itself
        pass
    with files.locked(folder):
        status = _run_workers(train, workers, folder, [*again, *options, "--resume"])
    if status:
        raise typer.Exit(status)


def _run_workers(arguments: Sequence[str], count: int, folder: Path, again: Sequence[str]) -> int:
    """Run the command as `count` workers until all have ended; return the exit status."""
    cluster = Cluster(tuple(f"{LOOPBACK}:{port}" for port in _free_ports(count)), 0)
    signals: list[int] = []  # signals from outside
    before = {
        number: signal.signal(number, lambda number, _: signals.append(number))
        for number in stopping.stop_signals()
    }
    processes: list[subprocess.Popen] = []
    try:
        for index in range(count):
            processes.append(_start(arguments, cluster, index, folder))
        failed = _wait(processes, signals)
    finally:
        for process in processes:
            process.kill()
            process.wait()
        for number, handler in before.items():
            signal.signal(number, handler)
    if failed is None:
        # A worker that had not begun to train ends by the signal, one that had with its state.
        return max((abs(process.returncode) for process in processes), default=0) and (
            SIGNAL_STATUS + signals[0]
        )
    return _report_failure(failed, processes[failed].returncode, folder, again)


def _start(
    arguments: Sequence[str], cluster: Cluster, index: int, folder: Path
) -> subprocess.Popen:
    """Start one worker, in a session of its own: Ctrl-C reaches it through this process alone."""
    # TensorFlow's own notes about a lost worker would hide the message about it.
    quiet = {} if os.environ.get("TFLLM_VERBOSE") else {"TF_CPP_MIN_LOG_LEVEL": "3"}
    log: IO[bytes] | None = None
    if index:
        folder.mkdir(parents=True, exist_ok=True)
        log = (folder / f"worker-{index}.log").open("wb")
    try:
        return subprocess.Popen(
            [sys.executable, "-m", "tfllm", *arguments],
            env={**os.environ, **quiet, clusters.VARIABLE: cluster.tf_config(index)},
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )
    finally:
        if log is not None:
            log.close()


def _end_with_parent() -> None:
    """Have Linux send this process SIGTERM when its parent has ended in any way."""
    import ctypes

    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _wait(processes: Sequence[subprocess.Popen], signals: list[int]) -> int | None:
    """Wait until all have ended; return the first that failed, which ends the others, or None."""
    failed, passed, sent = None, float("inf"), 0
    while any(process.poll() is None for process in processes):
        if signals[sent:]:
            stopping.detach_lost_terminal()
        for number in signals[sent:]:
            for process in processes:
                if process.poll() is None:
                    process.send_signal(number)
        sent = len(signals)
        if failed is None:
            failed = _first_failed(processes, signals)
            passed = time.monotonic() if failed is not None else passed
        elif time.monotonic() - passed > GRACE_SECONDS:
            for process in processes:
                process.kill()
        time.sleep(POLL_SECONDS)
    return _first_failed(processes, signals) if failed is None else failed


def _first_failed(processes: Sequence[subprocess.Popen], signals: list[int]) -> int | None:
    """The worker that failed. Killed ones come first: the failures of others follow from them."""
    fine = {None, 0, *(status for n in signals for status in (-n, SIGNAL_STATUS + n))}
    ended = [i for i, process in enumerate(processes) if process.poll() not in fine]
    return min(ended, key=lambda i: (processes[i].returncode >= 0, i), default=None)


def _report_failure(worker: int, status: int, folder: Path, again: Sequence[str]) -> int:
    """Print which worker failed and how to resume; return the exit status."""
    lines: list[str] = []
    if worker and (folder / f"worker-{worker}.log").is_file():
        text = (folder / f"worker-{worker}.log").read_text(errors="replace")
        lines = [f"[worker {worker}] {line}" for line in text.splitlines()[-SHOWN_LINES:]]
    end = (
        f"was ended by signal {-status} ({signal.Signals(-status).name})"
        if status < 0
        else f"ended with status {status}"
    )
    lines.append(
        f"tfllm: worker {worker} {end}; the others were stopped. "
        f"Resume from the last state with: {' '.join(again)}"
    )
    print("\n".join(lines), file=sys.stderr)
    return status if status > 0 else 1


def _free_ports(count: int) -> list[int]:
    """Free ports of the loopback interface."""
    import socket

    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind((LOOPBACK, 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


COMMANDS = {"": launch}
