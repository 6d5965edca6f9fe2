"""All that a run needs to go on as if it had not stopped: weights, moments, seeds and the place.

`state/step-00000120/` holds variables.safetensors and place.json; it is written under a temporary
name and renamed, and older ones are removed after it. The seeds of dropout are among the model's
variables, which is why neither Keras' weights file nor tf.train.Checkpoint would do.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tfllm.errors import CheckpointError, StorageError

COUNT = re.compile(r"_\d+(?=/|$)")
VARIABLES, PLACE = "variables.safetensors", "place.json"


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
    measured: dict[str, float] = field(default_factory=dict)
    """The last validation measures."""
    data: str = ""
    """Fingerprint of the training rows."""

    @property
    def padding(self) -> float:
        """The part of all token slots so far that was padding."""
        return 1 - self.tokens / self.slots if self.slots else 0.0


def variables(model: Any) -> dict[str, Any]:
    """Model and optimizer variables, seeds included, by "number path".

    Keras counts nameless things up through a process, so such counts are left out of the path.
    """
    ordered = [*model.variables, *model.optimizer.variables]
    return {
        f"{index:05d} {COUNT.sub('', variable.path)}": variable
        for index, variable in enumerate(ordered)
    }


def save(directory: Path, model: Any, place: Place) -> Path:
    """Writes `directory/step-N`, then removes older ones; StorageError when it cannot."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    target = directory / f"step-{place.step:08d}"
    temporary = directory / f".{target.name}.tmp"
    arrays = {
        name: np.array(variable.numpy(), order="C") for name, variable in variables(model).items()
    }
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        save_file(arrays, temporary / VARIABLES)
        (temporary / PLACE).write_text(json.dumps(asdict(place)))
        _sync(temporary / VARIABLES)
        shutil.rmtree(target, ignore_errors=True)
        os.rename(temporary, target)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        kept = newest(directory)
        raise StorageError(
            f"Cannot write the state of step {place.step} to '{directory}': {reason(error)}. "
            + (f"The state of {kept.name} is whole. " if kept else "")
            + "Free some space and go on with --resume."
        ) from None
    for old in directory.glob("step-*"):
        if old != target:
            shutil.rmtree(old, ignore_errors=True)
    return target


def newest(directory: Path) -> Path | None:
    """The newest whole state, or None."""
    whole = [path for path in directory.glob("step-*") if (path / PLACE).is_file()]
    return max(whole, default=None)


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
    with path.open("rb") as file:
        os.fsync(file.fileno())
