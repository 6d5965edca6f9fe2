"""From the newest undamaged state back to where a run was, on all of its workers."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfllm.tasks import Features
from tfllm.training import directory as files
from tfllm.training import inputs, state
from tfllm.training.acceleration import precision
from tfllm.training.distribution.strategies import Devices
from tfllm.training.recipe import Recipe
from tfllm.training.state import Place

SHOWN_EXAMPLES = 8  # in an error message about a batch

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Opening:
    """What the chief finds in the run's directory, and chooses for all workers."""

    resume: bool
    """Whether there is a run to go on with."""
    summary: dict[str, Any] | None
    """Of a run that has come to its end."""
    started: float
    """When it was last started or resumed, as the file system says."""
    before: dict[str, str]
    """Digests of what it was started with, see `training.inputs`."""
    chosen: dict[str, str]
    """What `auto` stands for: precision and, of a run that is there, kernels."""


def opening(recipe: Recipe, directory: Path, resume: bool, devices: Devices) -> Opening:
    """The chief's, for every worker. Raises StorageError for a directory that is not free."""
    found = {}
    if devices.is_chief:
        files.check_free(directory, resume)
        resume = resume and (directory / files.RECIPE).is_file()
        summary = directory / files.SUMMARY
        last = state.newest_place(directory / files.STATE) if resume else None
        before = last.chosen if last is not None else {}
        found = {
            "resume": resume,
            "summary": json.loads(summary.read_text()) if resume and summary.is_file() else None,
            "started": (directory / files.RECIPE).stat().st_mtime if resume else 0.0,
            "before": last.inputs if last is not None else {},
            "chosen": {**before, "precision": precision.kept(recipe.train.precision, before)},
        }
    return Opening(**json.loads(devices.of_chief(json.dumps(found).encode())))


def check(opening: Opening, recipe: Recipe, digests: dict[str, str], devices: Devices) -> None:
    """Raises SettingError or DataError where this worker has another recipe or other files than the
    chief, or a resumed run others than it was started with."""
    own = {"recipe": files.computed(recipe), "digests": digests}
    of_chief = json.loads(devices.of_chief(json.dumps(own).encode()))
    files.check_worker(of_chief["recipe"], own["recipe"])
    inputs.check_worker(of_chief["digests"], digests)
    inputs.check_resumed(opening.before, digests)


def place(directory: Path | None, model: Any, start: Place, devices: Devices) -> Place:
    """The `start` of a run, or the place of the newest state, with the model as it was there.

    `directory`: of the run to resume, or None. The chief reads the state; the other workers get its
    variables from it and need not see the directory.
    """
    newest = None
    if directory is not None and devices.is_chief:
        newest = state.newest_undamaged(directory / files.STATE)
    text = json.dumps(asdict(state.read_place(newest))).encode() if newest else b""
    text = devices.of_chief(text)
    if not text:
        return start
    found = Place(**json.loads(text))
    found.inputs, found.chosen = start.inputs, start.chosen
    if newest is not None:
        state.restore(newest, model)
    if devices.cluster is not None:
        _send(model, devices)
    if found.replicas != devices.replicas:
        log.warning(
            "the run was on %d devices and goes on with %d: equal up to rounding, and dropout "
            "draws other masks",
            found.replicas, devices.replicas,
        )  # fmt: skip
        found.replicas = devices.replicas
    if found.backend and found.backend != start.backend:
        log.warning(
            "the run was computed by Keras on %s and goes on with %s: equal up to rounding, and "
            "dropout draws other masks",
            found.backend, start.backend,
        )  # fmt: skip
    found.backend = start.backend
    return found


def _send(model: Any, devices: Devices) -> None:
    """Sets every variable to the chief's, bit by bit."""
    for variable in state.variables(model).values():
        own = np.array(variable.numpy(), order="C")
        data = devices.of_chief(own.tobytes())
        if not devices.is_chief:
            variable.assign(np.frombuffer(data, own.dtype).reshape(own.shape))


def named(rows: np.ndarray, features: Features, examples: Sequence[dict[str, Any]]) -> str:
    """The examples that rows came from, as file:line where known, for a message."""
    numbers = list(dict.fromkeys(int(features.example[row]) for row in rows))
    if len(numbers) == 1 and len(rows) > 1:  # one long text
        names = [f"row {row}" for row in rows]
    else:
        names = [str(examples[number].get("_where") or f"example {number}") for number in numbers]
    more = len(names) - SHOWN_EXAMPLES
    return ", ".join(names[:SHOWN_EXAMPLES]) + (f" and {more} more" if more > 0 else "")
