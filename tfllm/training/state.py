"""All that a run needs to continue as if it had not stopped: weights, moments, seeds and progress.

`state/step-00000120/` holds variables.safetensors, progress.json and checksums.json. It is written
under a temporary name and renamed; older ones are removed after it. `StateWriter` writes while
training continues: a step only waits for copies of the variables. The seeds of dropout are among
the model's variables, which is why neither Keras' weights file nor tf.train.Checkpoint would do.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
import re
import shutil
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from tfllm.errors import CheckpointError, StorageError

COUNT = re.compile(r"_\d+(?=/|$)")
VARIABLES, PROGRESS, CHECKSUMS = "variables.safetensors", "progress.json", "checksums.json"
STATES, DAMAGED, INCOMPLETE = "step-*", "damaged-", ".step-*.tmp"
KEEP = 2

log = logging.getLogger(__name__)


@dataclass
class TrainingProgress:
    """How far a run has come. `step` steps are done; the next batch is `epoch_step` of `epoch`."""

    step: int = 0
    epoch: int = 0
    epoch_step: int = 0
    seconds: float = 0.0
    tokens: int = 0
    slots: int = 0
    """Tokens with padding."""
    examples: int = 0
    best: float | None = None
    best_step: int | None = None
    measurements_since_best: int = 0
    stopped_early: bool = False
    metrics: dict[str, float | None] = field(default_factory=dict)
    """The last validation metrics; None: undefined."""
    data: str = ""
    """Digest of the training rows, in states of older versions."""
    inputs: dict[str, str] = field(default_factory=dict)
    """Digests of what the run was started with; see `training.resuming`."""
    resolved: dict[str, str] = field(default_factory=dict)
    """How `auto` was resolved where the run was started: precision, kernels."""
    replicas: int = 1
    """Devices that the steps so far were computed on."""
    backend: str = ""
    """Keras' backend that they were computed by."""

    def __post_init__(self) -> None:
        if self.data and not self.inputs:
            self.inputs = {"data": self.data}

    @property
    def padding(self) -> float:
        """The share of padding in all tokens so far."""
        return 1 - self.tokens / self.slots if self.slots else 0.0


def variables(model: keras.Model) -> dict[str, Any]:
    """Model and optimizer variables, seeds and averages included, by "index path".

    Keras numbers unnamed layers through a process, so such numbers are left out of the path.
    """
    averages = getattr(model, "averages", None)
    ordered = [*model.variables, *model.optimizer.variables, *(averages.values if averages else [])]
    return {
        f"{index:05d} {COUNT.sub('', variable.path)}": variable
        for index, variable in enumerate(ordered)
    }


def snapshot(model: keras.Model) -> dict[str, np.ndarray]:
    """Copy all variables, by name; the next step does not change the copies."""
    # `numpy()` has copied already.
    return {
        name: np.asarray(variable.numpy(), order="C") for name, variable in variables(model).items()
    }


def save(directory: Path, model: keras.Model, progress: TrainingProgress, keep: int = KEEP) -> Path:
    """Write `directory/step-N`, then remove all but the newest `keep` states.

    Args:
        directory: The run's `state/`.
        model: The compiled model, with its optimizer.
        progress: The position in the run.
        keep: Number of states that stay.

    Returns:
        The state's directory.

    Raises:
        StorageError: It cannot be written; the state before it is intact.
    """
    return write(directory, snapshot(model), progress, keep)


def write(
    directory: Path, arrays: dict[str, np.ndarray], progress: TrainingProgress, keep: int = KEEP
) -> Path:
    """Write copies of variables as `save` does.

    Args:
        directory: The run's `state/`.
        arrays: Variables by path.
        progress: The position in the run.
        keep: Number of states that stay.

    Returns:
        The state's directory.

    Raises:
        StorageError: It cannot be written; the state before it is intact.
    """
    target = directory / f"step-{progress.step:08d}"
    temporary = directory / f".{target.name}.tmp"
    try:
        for path in directory.glob(INCOMPLETE):  # of a process that was killed
            shutil.rmtree(path, ignore_errors=True)
        temporary.mkdir(parents=True)
        safetensors.numpy.save_file(arrays, temporary / VARIABLES)
        (temporary / PROGRESS).write_text(json.dumps(asdict(progress)))
        sums = {name: file_sha256(temporary / name) for name in (VARIABLES, PROGRESS)}
        (temporary / CHECKSUMS).write_text(json.dumps(sums))
        for name in (*sums, CHECKSUMS):
            _sync(temporary / name)
        shutil.rmtree(target, ignore_errors=True)
        os.rename(temporary, target)
        _sync(directory)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        previous = newest_state(directory)
        raise StorageError(
            f"Cannot write the state of step {progress.step} to '{directory}': "
            f"{disk_error(error)}. "
            + (f"The state of {previous.name} is intact. " if previous else "")
            + "Free some space and resume with --resume."
        ) from None
    for old in complete_states(directory)[keep:]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def complete_states(directory: Path) -> list[Path]:
    """List the states that were written completely, the newest first."""
    paths = [path for path in directory.glob(STATES) if (path / PROGRESS).is_file()]
    return sorted(paths, reverse=True)


def newest_state(directory: Path) -> Path | None:
    """Return the newest state that was written completely, or None."""
    return next(iter(complete_states(directory)), None)


def newest_undamaged(directory: Path) -> Path | None:
    """Find the newest state whose checksums are right; None where there is no state at all.

    Damaged ones are renamed and logged.

    Raises:
        CheckpointError: All states are damaged.
    """
    states = complete_states(directory)
    for index, path in enumerate(states):
        try:
            verify(path)
        except CheckpointError as error:
            aside = path.with_name(DAMAGED + path.name)
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            older = states[index + 1] if index + 1 < len(states) else None
            log.warning(
                "%s It is now '%s'; resuming from %s.",
                error.cli_message, aside.name, older.name if older else "nothing",
            )  # fmt: skip
            continue
        return path
    if states:
        raise CheckpointError(
            f"No state in '{directory}' is undamaged. Start again with another --output."
        )
    return None


def verify(path: Path) -> None:
    """Compare the files of a state with its checksums.

    Raises:
        CheckpointError: A file is not what was written.
    """
    try:
        sums = json.loads((path / CHECKSUMS).read_text())
        wrong = [name for name, value in sums.items() if file_sha256(path / name) != value]
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"'{path}' is damaged ({disk_error(error)}).") from None
    if wrong or set(sums) != {VARIABLES, PROGRESS}:
        raise CheckpointError(f"'{path / (wrong or [CHECKSUMS])[0]}' is damaged (checksum).")


def file_sha256(path: Path) -> str:
    """Compute the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def newest_progress(directory: Path) -> TrainingProgress | None:
    """Read the progress of the newest readable state, or None; nothing is verified or renamed."""
    for path in complete_states(directory):
        try:
            return read_progress(path)
        except CheckpointError:
            continue
    return None


def read_progress(path: Path) -> TrainingProgress:
    """Read the progress of a state.

    Raises:
        CheckpointError: The file is not readable.
    """
    try:
        return TrainingProgress(**json.loads((path / PROGRESS).read_text()))
    except (OSError, ValueError, TypeError):
        raise CheckpointError(
            f"'{path / PROGRESS}' is not readable. Remove '{path}' and start again "
            "without --resume."
        ) from None


def restore(path: Path, model: keras.Model) -> None:
    """Set every variable of model and optimizer.

    Args:
        path: A state's directory.
        model: The compiled model.

    Raises:
        CheckpointError: The state is of another model, or cannot be read.
    """
    expected = variables(model)
    try:
        with safe_open(path / VARIABLES, framework="numpy") as file:
            stored = set(file.keys())
            if stored != set(expected):
                different = sorted(stored ^ set(expected))[0].split(" ")[1]
                raise CheckpointError(
                    f"'{path}' belongs to another model (first difference: {different}). "
                    "Give the recipe that the run was started with."
                )
            for name, variable in expected.items():
                variable.assign(file.get_tensor(name))
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(
            f"'{path}' cannot be read ({error}). Remove it and start again without --resume."
        ) from None


def disk_error(error: Exception) -> str:
    """Describe what went wrong with the disk."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return "the disk is full" if "os error 28" in str(error) else str(error)


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a directory, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class StateWriter:
    """Writes one state after the other in a background thread.

    An error is raised by the next call of `check`, `save` or `wait`.
    """

    def __init__(self, directory: Path, keep: int = KEEP):
        self.directory, self.keep = directory, keep
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(self, model: keras.Model, progress: TrainingProgress) -> None:
        """Copy the model's variables and start to write them, after those before.

        Args:
            model: The compiled model, with its optimizer.
            progress: The position in the run.
        """
        self.wait()
        arrays, progress = snapshot(model), copy.deepcopy(progress)
        self._start(lambda: write(self.directory, arrays, progress, self.keep))

    def check(self) -> None:
        """Raise what has gone wrong in the background so far, once."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def wait(self) -> None:
        """Return when the last state is on the disk; raise what went wrong."""
        self.join()
        self.check()

    def join(self) -> None:
        """Wait without raising, for a run that ends by an error of its own."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _start(self, work: Callable[[], object]) -> None:
        def run() -> None:
            try:
                work()
            except BaseException as error:  # whatever it is, `check` raises it in the main thread
                self._error = error

        # Not a daemon: an interpreter that ends waits for the state.
        self._thread = threading.Thread(target=run, name="state")
        self._thread.start()
