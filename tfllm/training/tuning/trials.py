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
from tfllm.training import directory as files
from tfllm.training.measuring import is_better
from tfllm.training.monitoring.logs import read

COMMAND = (sys.executable, "-m", "tfllm", "train")
PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
KILLED_AFTER = 60  # seconds that a trial has to save its state when it is asked to stop


@dataclass(frozen=True)
class Place:
    """The files of one trial: NNNN.yaml (its recipe), NNNN.log, NNNN.lock and NNNN/ (its run)."""

    folder: Path
    number: int

    def path(self, ending: str = "") -> Path:
        return self.folder / f"{self.number:04d}{ending}"

    @property
    def run(self) -> Path:
        return self.path()

    def measurements(self, measure: str) -> list[float | None]:
        """What the run has measured so far, in order; None where it was undefined."""
        lines = read(self.run / files.METRICS)
        name = f"validation_{measure}"
        return [line[name] for line in lines if name in line]

    def last_words(self) -> str:
        """The last line that is not empty of what the run told, such as its error."""
        try:
            text = self.path(".log").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return lines[-1].removeprefix("tfllm: ") if lines else ""

    def tidy(self, keep_checkpoint: bool) -> None:
        """Removes what a finished trial needs no more: states, and weights but the best."""
        names = [files.STATE] if keep_checkpoint else [files.STATE, files.CHECKPOINT, files.ADAPTER]
        for name in names:
            shutil.rmtree(self.run / name, ignore_errors=True)


def value_of(
    direction: Direction, measurements: list[float | None], keeps_best: bool
) -> float | None:
    """What a trial counts: the best measurement, or the last where the run keeps its last weights.

    None where there is none, or none that is defined.
    """
    if not keeps_best:
        return measurements[-1] if measurements else None
    best = None
    for value in measurements:
        if is_better(direction, value, best):
            best = value
    return best


class Process:
    """A running trial. `lock`: an open file whose lock says that the trial is being worked on; the
    process holds it too, so that nobody takes up a trial while it runs, whatever became of us."""

    def __init__(self, place: Place, lock: int, environment: Mapping[str, str]):
        self.place = place
        command = [*COMMAND, str(place.path(".yaml")), "--output", str(place.run)]
        if (place.run / files.RECIPE).exists():
            command.append("--resume")
        elif place.run.exists():
            shutil.rmtree(place.run)  # it was stopped before it had begun
        with place.path(".log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={**os.environ, **environment},
                pass_fds=(lock,),
                start_new_session=True,  # Ctrl-C is for us; we hand it on once
                preexec_fn=_die_with_parent,
            )  # fmt: skip

    @property
    def status(self) -> int | None:
        """The exit status (negative: the signal that killed it); None while it runs."""
        return self._process.poll()

    def stop(self) -> None:
        """Asks it to save its state and end."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def wait(self) -> None:
        """Waits for the end, for KILLED_AFTER seconds; then makes it."""
        try:
            self._process.wait(KILLED_AFTER)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _die_with_parent() -> None:
    """Linux sends the trial SIGTERM, at which it saves its state, when its parent is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def share(slot: int, processes: int) -> dict[str, str]:
    """Environment of the trial in a slot of several: its part of the cores, one of the GPUs."""
    if processes == 1:
        return {}
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    names = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS")
    chosen = {name: threads for name in names if name not in os.environ}
    gpus = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu.strip()]
    if len(gpus) > 1:
        chosen["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
    return chosen
