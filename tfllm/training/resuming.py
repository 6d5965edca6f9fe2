"""Resuming a run from its newest undamaged state, on all workers, and the checks of its inputs.

A recipe names files, and their content may change under the same name: a resumed run and every
worker must have the same inputs, which are compared by digest.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfllm.data.corpora.corpus import Corpus, file_digest, files_of
from tfllm.errors import DataError
from tfllm.tasks import Features
from tfllm.tasks.features import Example
from tfllm.tokenizers.base import Tokenizer
from tfllm.training import directory as files
from tfllm.training import state
from tfllm.training.acceleration import precision
from tfllm.training.distribution.strategies import Devices
from tfllm.training.initial_model import InitialModel
from tfllm.training.recipe import Recipe
from tfllm.training.state import TrainingProgress
from tfllm.training.validation import Validation

SHOWN_EXAMPLES = 8  # in an error message about a batch

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreviousRun:
    """What the chief finds in the run's directory, and decides for all workers."""

    resume: bool
    """Whether there is a run to resume."""
    summary: dict[str, Any] | None
    """Of a run that is finished."""
    started: float
    """When it was last started or resumed, as the file system says."""
    inputs: dict[str, str]
    """Digests of what it was started with, by the keys of INPUTS."""
    resolved: dict[str, str]
    """How `auto` is resolved: precision and, of a run to resume, kernels."""


def read_previous_run(
    recipe: Recipe, directory: Path, resume: bool, devices: Devices
) -> PreviousRun:
    """Read the run's directory on the chief and return the result on every worker.

    Args:
        recipe: The recipe.
        directory: The run's directory.
        resume: Whether a run in it is resumed.
        devices: The devices of the run.

    Raises:
        StorageError: The directory is not free.
    """
    fields = {}
    if devices.is_chief:
        files.check_free(directory, resume)
        resume = resume and (directory / files.RECIPE).is_file()
        summary = directory / files.SUMMARY
        last = state.newest_progress(directory / files.STATE) if resume else None
        before = last.resolved if last is not None else {}
        fields = {
            "resume": resume,
            "summary": json.loads(summary.read_text()) if resume and summary.is_file() else None,
            "started": (directory / files.RECIPE).stat().st_mtime if resume else 0.0,
            "inputs": last.inputs if last is not None else {},
            "resolved": {**before, "precision": precision.choose(recipe.train.precision, before)},
        }
    return PreviousRun(**json.loads(devices.broadcast_from_chief(json.dumps(fields).encode())))


def check_inputs(
    previous: PreviousRun, recipe: Recipe, digests: dict[str, str], devices: Devices
) -> None:
    """Compare this worker's recipe and files with the chief's, and a resumed run's with its start.

    Args:
        previous: The run to resume.
        recipe: The recipe.
        digests: Of `input_digests`.
        devices: The devices of the run.

    Raises:
        SettingError: This worker has another recipe than the chief.
        DataError: It has other files, or the run was started with other ones.
    """
    own = {"recipe": files.result_settings(recipe), "digests": digests}
    chief = json.loads(devices.broadcast_from_chief(json.dumps(own).encode()))
    files.check_worker(chief["recipe"], own["recipe"])
    check_worker(chief["digests"], digests)
    check_resumed(previous.inputs, digests)


def restore_or_start(
    directory: Path | None, model: keras.Model, start: TrainingProgress, devices: Devices
) -> TrainingProgress:
    """Restore model and progress from the newest state of a run.

    The chief reads the state; the other workers get its variables from it and need not see the
    directory.

    Args:
        directory: The directory of the run to resume, or None.
        model: The compiled model, whose variables are set.
        start: The progress of a new run.
        devices: The devices of the run.

    Returns:
        The restored progress, or `start` where there is no state.
    """
    newest = None
    if directory is not None and devices.is_chief:
        newest = state.newest_undamaged(directory / files.STATE)
    text = json.dumps(asdict(state.read_progress(newest))).encode() if newest else b""
    text = devices.broadcast_from_chief(text)
    if not text:
        return start
    progress = TrainingProgress(**json.loads(text))
    progress.inputs, progress.resolved = start.inputs, start.resolved
    if newest is not None:
        state.restore(newest, model)
    if devices.cluster is not None:
        _broadcast_variables(model, devices)
    if progress.replicas != devices.replicas:
        log.warning(
            "the run was on %d devices and continues on %d: equal up to rounding, and dropout "
            "draws other masks",
            progress.replicas, devices.replicas,
        )  # fmt: skip
        progress.replicas = devices.replicas
    if progress.backend and progress.backend != start.backend:
        log.warning(
            "the run was computed by Keras on %s and continues on %s: equal up to rounding, and "
            "dropout draws other masks",
            progress.backend, start.backend,
        )  # fmt: skip
    progress.backend = start.backend
    return progress


def _broadcast_variables(model: keras.Model, devices: Devices) -> None:
    """Set every variable to the chief's, bit by bit."""
    for variable in state.variables(model).values():
        own = np.array(variable.numpy(), order="C")
        data = devices.broadcast_from_chief(own.tobytes())
        if not devices.is_chief:
            variable.assign(np.frombuffer(data, own.dtype).reshape(own.shape))


def describe_rows(rows: np.ndarray, features: Features, examples: Sequence[Example]) -> str:
    """Name the examples that rows came from, as file:line where known, for a message.

    Args:
        rows: Indices of rows: int [B].
        features: The rows.
        examples: What they were made from.
    """
    indices = list(dict.fromkeys(int(features.example[row]) for row in rows))
    if len(indices) == 1 and len(rows) > 1:  # one long text
        names = [f"row {row}" for row in rows]
    else:
        names = [str(examples[index].get("_where") or f"example {index}") for index in indices]
    more = len(names) - SHOWN_EXAMPLES
    return ", ".join(names[:SHOWN_EXAMPLES]) + (f" and {more} more" if more > 0 else "")


# What each digest is of, in the order of reporting: the first difference explains the others.
INPUTS = {
    "checkpoint": "checkpoint of model.from is",
    "tokenizer": "tokenizer is",
    "data": "training data is",
    "targets": "training data's labels are",
    "validation": "validation data is",
}

# A checkpoint directory may also hold notes and pictures, which change nothing.
CHECKPOINT_FILES = (".json", ".safetensors", ".model", ".txt", ".bin", ".spm", ".bpe", ".jinja")

DIGITS = 16


def input_digests(
    features: Features, validation: Validation | None, initial: InitialModel
) -> dict[str, str]:
    """Return digests of a run's inputs by the keys of INPUTS; "" for what the run does not have.

    Args:
        features: The training rows.
        validation: The validation data, or None.
        initial: The model that the run starts from.
    """
    return {
        "checkpoint": _checkpoint_digest(initial.checkpoint.path),
        "tokenizer": _vocabulary_digest(initial.tokenizer),
        "data": features.digest or _token_digest(features),
        "targets": "" if features.digest else _target_digest(features),
        "validation": "" if validation is None else _validation_digest(validation),
    }


def check_resumed(before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Compare a resumed run's inputs with those that it was started with.

    Args:
        before: Digests at the start. A state of an older version does not have all keys.
        now: Digests of `input_digests`.

    Raises:
        DataError: An input has changed.
    """
    for key, name in INPUTS.items():
        if key in before and before[key] != now[key]:
            raise DataError(
                f"The {name} not what the run was started with. Put the old files back, or start a "
                "new run with another --output."
            )


def check_worker(chief: Mapping[str, str], own: Mapping[str, str]) -> None:
    """Compare a worker's inputs with the chief's.

    Args:
        chief: The chief's digests.
        own: This worker's.

    Raises:
        DataError: An input differs.
    """
    for key, name in INPUTS.items():
        if chief[key] != own[key]:
            raise DataError(
                f"The {name} not the same for this worker as for the first one. Give all workers "
                "the same files, or one shared directory."
            )


def check_shards(examples: Sequence[Any], since: float) -> None:
    """Verify all of a prepared corpus if a file of it was changed.

    Args:
        examples: The training data; anything but a corpus is not checked.
        since: A time in seconds since the epoch.

    Raises:
        DataError: The corpus is no longer what its manifest says.
    """
    corpus: Corpus | None = getattr(examples, "corpus", None)
    if corpus is None:
        return
    stats = [(corpus.directory / name).stat() for name in files_of(corpus.manifest)]
    if any(max(stat.st_mtime, stat.st_ctime) > since for stat in stats):
        corpus.verify()


def _checkpoint_digest(path: Path | None) -> str:
    if path is None:
        return ""
    files = [path] if path.is_file() else sorted(path.iterdir())
    digest = hashlib.sha256()
    for file in files:
        if file.is_file() and file.suffix in CHECKPOINT_FILES:
            digest.update(f"{file.name} {file_digest(file)}\n".encode())
    return digest.hexdigest()[:DIGITS]


def _vocabulary_digest(tokenizer: Tokenizer) -> str:
    digest = hashlib.sha256()
    for side in (tokenizer, tokenizer.target):
        digest.update("\n".join(side.vocabulary).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:DIGITS]


def _token_digest(features: Features) -> str:
    digest = hashlib.sha256(features.lengths.tobytes())
    for ids in features.token_ids:
        digest.update(ids.tobytes())
    return digest.hexdigest()[:DIGITS]


def _target_digest(features: Features) -> str:
    """The digest of targets, and of what else beside a row's tokens takes part in the loss."""
    digest = hashlib.sha256()
    for values in (features.targets, features.segment_ids, features.document_ids):
        digest.update(b"none" if values is None else b"rows")
        for value in values if values is not None else ():
            digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()[:DIGITS]


def _validation_digest(validation: Validation) -> str:
    features = validation.features
    if features.digest is not None and getattr(validation.examples, "corpus", None) is not None:
        return features.digest
    digest = hashlib.sha256(_token_digest(features).encode())
    for example in validation.examples:
        fields = {name: value for name, value in example.items() if name != "_where"}
        digest.update(json.dumps(fields, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:DIGITS]
