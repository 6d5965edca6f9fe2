"""All that a run needs to go on as if it had not stopped: weights, moments, seeds and the place.

`state/step-00000120/` holds variables.safetensors, place.json and checksums.json. It is written
under a temporary name and renamed; older ones are removed after it. The seeds of dropout are among
the model's variables, which is why neither Keras' weights file nor tf.train.Checkpoint would do.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tfllm.errors import CheckpointError, StorageError

COUNT = re.compile(r"_\d+(?=/|$)")
VARIABLES, PLACE, CHECKSUMS = "variables.safetensors", "place.json", "checksums.json"
STATES, DAMAGED, HALF = "step-*", "damaged-", ".step-*.tmp"
KEEP = 2

log = logging.getLogger(__name__)


@dataclass
class Place:
    """Where a run is. `step` steps are done; the next batch is `epoch_step` of `epoch`."""

    step: int = 0
    epoch: int = 0
    epoch_step: int = 0
    seconds: float = 0.0
    tokens: int = 0
    slots: int = 0
    examples: int = 0
    best: float | None = None
    best_step: int | None = None
    since_best: int = 0
    stopped_early: bool = False
    measured: dict[str, float | None] = field(default_factory=dict)
    """The last validation measures; None: undefined."""
    data: str = ""
    """Digest of the training rows, in states of older versions."""
    inputs: dict[str, str] = field(default_factory=dict)
    """Digests of what the run was started with; see `training.inputs`."""
    chosen: dict[str, str] = field(default_factory=dict)
    """What `auto` came to where the run was started: precision, kernels."""
    replicas: int = 1
    """Devices that the steps so far were computed on."""
    backend: str = ""
    """Keras' backend that they were computed by."""

    def __post_init__(self) -> None:
        if self.data and not self.inputs:
            self.inputs = {"data": self.data}

    @property
    def padding(self) -> float:
        """The part of all token slots so far that was padding."""
        return 1 - self.tokens / self.slots if self.slots else 0.0


def variables(model: Any) -> dict[str, Any]:
    """Model and optimizer variables, seeds and averages included, by "number path".

    Keras counts nameless things up through a process, so such counts are left out of the path.
    """
    averages = getattr(model, "averages", None)
    ordered = [*model.variables, *model.optimizer.variables, *(averages.values if averages else [])]
    return {
        f"{index:05d} {COUNT.sub('', variable.path)}": variable
        for index, variable in enumerate(ordered)
    }


def snapshot(model: Any) -> dict[str, np.ndarray]:
    """Copies of all variables by name, which the next step does not change."""
    # `numpy()` has copied already.
    return {
        name: np.asarray(variable.numpy(), order="C") for name, variable in variables(model).items()
    }


def save(directory: Path, model: Any, place: Place, keep: int = KEEP) -> Path:
    """Writes `directory/step-N`, then removes all but the newest `keep`."""
    return write(directory, snapshot(model), place, keep)


def write(directory: Path, arrays: dict[str, np.ndarray], place: Place, keep: int = KEEP) -> Path:
    """The same from copies; StorageError when it cannot, with the state before it whole."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    target = directory / f"step-{place.step:08d}"
    temporary = directory / f".{target.name}.tmp"
    try:
        for half in directory.glob(HALF):  # of a process that was killed
            shutil.rmtree(half, ignore_errors=True)
        temporary.mkdir(parents=True)
        save_file(arrays, temporary / VARIABLES)
        (temporary / PLACE).write_text(json.dumps(asdict(place)))
        sums = {name: digest(temporary / name) for name in (VARIABLES, PLACE)}
        (temporary / CHECKSUMS).write_text(json.dumps(sums))
        for name in (*sums, CHECKSUMS):
            _sync(temporary / name)
        shutil.rmtree(target, ignore_errors=True)
        os.rename(temporary, target)
        _sync(directory)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        kept = newest(directory)
        raise StorageError(
            f"Cannot write the state of step {place.step} to '{directory}': {reason(error)}. "
            + (f"The state of {kept.name} is whole. " if kept else "")
            + "Free some space and go on with --resume."
        ) from None
    for old in whole(directory)[keep:]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def whole(directory: Path) -> list[Path]:
    """The states that were written to their end, the newest first."""
    paths = [path for path in directory.glob(STATES) if (path / PLACE).is_file()]
    return sorted(paths, reverse=True)


def newest(directory: Path) -> Path | None:
    """The newest state that was written to its end, or None."""
    return next(iter(whole(directory)), None)


def newest_undamaged(directory: Path) -> Path | None:
    """The newest state whose checksums are right; None where there is no state at all.

    Damaged ones are renamed and told. Raises CheckpointError when none is left.
    """
    states = whole(directory)
    for number, path in enumerate(states):
        try:
            check(path)
        except CheckpointError as error:
            aside = path.with_name(DAMAGED + path.name)
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            before = states[number + 1] if number + 1 < len(states) else None
            log.warning(
                "%s It is now '%s'; going on from %s.",
                error, aside.name, before.name if before else "nothing",
            )  # fmt: skip
            continue
        return path
    if states:
        raise CheckpointError(
            f"No state in '{directory}' is undamaged. Start again with another --output."
        )
    return None


def check(path: Path) -> None:
    """Raises CheckpointError when a file of a state is not what was written."""
    try:
        sums = json.loads((path / CHECKSUMS).read_text())
        wrong = [name for name, value in sums.items() if digest(path / name) != value]
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"'{path}' is damaged ({reason(error)}).") from None
    if wrong or set(sums) != {VARIABLES, PLACE}:
        raise CheckpointError(f"'{path / (wrong or [CHECKSUMS])[0]}' is damaged (checksum).")


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def newest_place(directory: Path) -> Place | None:
    """The place of the newest state that can be read, or None; nothing is checked or renamed."""
    for path in whole(directory):
        try:
            return read_place(path)
        except CheckpointError:
            continue
    return None


def read_place(path: Path) -> Place:
    """The place of a state. Raises CheckpointError."""
    try:
        return Place(**json.loads((path / PLACE).read_text()))
    except (OSError, ValueError, TypeError):
        raise CheckpointError(
            f"'{path / PLACE}' is not readable. Remove '{path}' and start again without --resume."
        ) from None


def restore(path: Path, model: Any) -> None:
    """Sets every variable of model and optimizer. Raises CheckpointError when they are others."""
    from safetensors import SafetensorError, safe_open

    wanted = variables(model)
    try:
        with safe_open(path / VARIABLES, framework="numpy") as file:
            stored = set(file.keys())
            if stored != set(wanted):
                odd = sorted(stored ^ set(wanted))[0]
                raise CheckpointError(
                    f"'{path}' belongs to another model (first difference: {odd.split(' ')[1]}). "
                    "Give the recipe that the run was started with."
                )
            for name, variable in wanted.items():
                variable.assign(file.get_tensor(name))
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(
            f"'{path}' cannot be read ({error}). Remove it and start again without --resume."
        ) from None


def reason(error: Exception) -> str:
    """What went wrong with the disk, in words."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return "the disk is full" if "os error 28" in str(error) else str(error)


def _sync(path: Path) -> None:
    """Waits until a file, or the names in a directory, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
