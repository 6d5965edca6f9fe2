"""One trial: a `tfllm train` in a process of its own, whose measurements are read while it runs."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tfllm.tasks.metric_directions import Direction
from tfllm.training import directory
from tfllm.training.monitoring.logs import read_log
from tfllm.training.validation import is_better

COMMAND = (sys.executable, "-m", "tfllm", "train")
PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
KILLED_AFTER = 60  # seconds that a trial has to save its state when it is asked to stop


@dataclass(frozen=True)
class TrialFiles:
    """The files of one trial: NNNN.yaml (its recipe), NNNN.log, NNNN.lock and NNNN/ (its run)."""

    folder: Path
    number: int

    def path(self, ending: str = "") -> Path:
        """Return the path of one of the files."""
        return self.folder / f"{self.number:04d}{ending}"

    @property
    def run(self) -> Path:
        """The run's directory."""
        return self.path()

    def measurements(self, measure: str) -> list[float | None]:
        """Return the run's measurements so far, in order; None where undefined."""
        lines = read_log(self.run / directory.METRICS)
        name = f"validation_{measure}"
        return [line[name] for line in lines if name in line]

    def last_log_line(self) -> str:
        """Return the last line of the log that is not empty, such as the run's error."""
        try:
            text = self.path(".log").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return lines[-1].removeprefix("tfllm: ") if lines else ""

    def remove_state(self, keep_checkpoint: bool) -> None:
        """Remove a finished trial's states and, unless it is the best, its weights."""
        names = (
            [directory.STATE]
            if keep_checkpoint
            else [directory.STATE, directory.CHECKPOINT, directory.ADAPTER]
        )
        for name in names:
            shutil.rmtree(self.run / name, ignore_errors=True)


def trial_value(
    direction: Direction, measurements: list[float | None], keeps_best: bool
) -> float | None:
    """Return the value of a trial; None without a defined measurement.

    Args:
        direction: Whether a higher or a lower value is better.
        measurements: In their order.
        keeps_best: Whether the run keeps its best weights, and so its best measurement, or its
            last.
    """
    if not keeps_best:
        return measurements[-1] if measurements else None
    best = None
    for value in measurements:
        if is_better(direction, value, best):
            best = value
    return best


class TrialProcess:
    """A running `tfllm train`.

    It inherits the open file `lock`, whose lock marks the trial as claimed: no other process claims
    it while it runs, even when this one has ended.
    """

    def __init__(self, files: TrialFiles, lock: int, environment: Mapping[str, str]):
        self.files = files
        command = [*COMMAND, str(files.path(".yaml")), "--output", str(files.run)]
        if (files.run / directory.RECIPE).exists():
            command.append("--resume")
        elif files.run.exists():
            shutil.rmtree(files.run)  # it was stopped before it had begun
        with files.path(".log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={**os.environ, **environment},
                pass_fds=(lock,),
                start_new_session=True,  # Ctrl-C reaches this process, which passes it on once
                preexec_fn=_terminate_with_parent,
            )  # fmt: skip

    @property
    def status(self) -> int | None:
        """The exit status (negative: the signal that killed it); None while it runs."""
        return self._process.poll()

    def stop(self) -> None:
        """Ask it to save its state and end."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def wait(self) -> None:
        """Wait for its end; kill it after KILLED_AFTER seconds."""
        try:
            self._process.wait(KILLED_AFTER)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _terminate_with_parent() -> None:
    """Have Linux send the trial SIGTERM, at which it saves its state, when its parent is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def slot_environment(slot: int, processes: int) -> dict[str, str]:
    """Return the environment variables of one of several trials that run at once.

    Each has its share of the cores, and one of the GPUs.

    Args:
        slot: The trial's number among them, from 0.
        processes: How many run at once.
    """
    if processes == 1:
        return {}
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    names = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS")
    chosen = {name: threads for name in names if name not in os.environ}
    gpus = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu.strip()]
    if len(gpus) > 1:
        chosen["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
    return chosen
