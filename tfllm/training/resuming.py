"""From the newest undamaged state back to where a run was, on all of its workers."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from tfllm.errors import DataError
from tfllm.tasks import Features
from tfllm.training import directory as files
from tfllm.training import state
from tfllm.training.state import Place
from tfllm.training.strategies import Devices

SHOWN_EXAMPLES = 8  # in an error message about a batch

log = logging.getLogger(__name__)


def place(directory: Path | None, model: Any, data: str, devices: Devices) -> Place:
    """The start of a run, or the place of the newest state, with the model as it was there.

    `directory`: of the run to resume, or None. `data` names the training rows. The chief reads the
    state; the other workers get its variables from it and need not see the directory.
    """
    if devices.of_chief(data.encode()).decode() != data:
        raise DataError(
            "This worker reads other training data than the first one. Give all workers the same "
            "files, or one shared directory."
        )
    newest = None
    if directory is not None and devices.is_chief:
        newest = state.newest_undamaged(directory / files.STATE)
    text = json.dumps(asdict(state.read_place(newest))).encode() if newest else b""
    text = devices.of_chief(text)
    if not text:
        return Place(data=data, replicas=devices.replicas)
    found = Place(**json.loads(text))
    if found.data != data:
        raise DataError(
            "The training data is not what the run was started with. Put the old files back, or "
            "start a new run with another --output."
        )
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
