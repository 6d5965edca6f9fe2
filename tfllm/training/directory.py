"""A run's directory: its files, its lock, and the checks before it is written.

recipe.yaml metrics.jsonl logs/ state/ checkpoint/ adapter/ tokenizer/ summary.json
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tfllm import config, machine
from tfllm.errors import SettingError, StorageError
from tfllm.training.recipe import Recipe

RECIPE, METRICS, LOGS, STATE = "recipe.yaml", "metrics.jsonl", "logs", "state"
CHECKPOINT, ADAPTER, SUMMARY = "checkpoint", "adapter", "summary.json"
TOKENIZER = "tokenizer"  # of a run that has trained its own
WORKERS = "workers"  # output of the workers beside the chief, with tfllm launch
LOCK = ".lock"  # held by the process that trains; see `locked`
# What a process may have written before the recipe, which is a run's first file.
LEFTOVERS = {TOKENIZER, WORKERS, LOCK, f".{RECIPE}.tmp"}

# Keys that may change when a run is resumed: they do not change the result.
FREE_KEYS = {
    "name", "train.log_every", "train.checkpoint_every", "train.profile", "train.samples",
    "train.carbon_intensity", "train.keep", "train.strategy", "train.steps_per_execution",
    "train.worker_timeout", "export",
}  # fmt: skip


def check_free(directory: Path, resume: bool) -> None:
    """Check that the directory is free for a new run, or has one to resume.

    Files of a process that was killed before it wrote the recipe are overwritten.

    Args:
        directory: The run's directory.
        resume: Whether the run is resumed.

    Raises:
        StorageError: It is not.
    """
    if directory.exists() and not directory.is_dir():
        raise StorageError(f"'{directory}' is a file. Give another --output.")
    names = {path.name for path in directory.iterdir()} if directory.is_dir() else set()
    if resume and RECIPE not in names and (not directory.is_dir() or names - LEFTOVERS):
        raise StorageError(
            f"'{directory}' holds no run to resume (no {RECIPE}). Start without --resume."
        )
    if not resume and names - LEFTOVERS:
        raise StorageError(
            f"'{directory}' is not empty. Resume the run in it with --resume, or give another "
            "--output."
        )


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Lock the directory against other training processes; it is created where it is missing.

    A directory that stays empty is removed again. The system releases the lock of a process that
    has ended in any way.

    Raises:
        StorageError: Another process has the lock, or the directory cannot be written.
    """
    if directory.exists() and not directory.is_dir():
        raise StorageError(f"'{directory}' is a file. Give another --output.")
    created = [path for path in (directory, *directory.parents) if not path.exists()]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = _lock(directory / LOCK)
    except OSError as error:
        raise StorageError(f"Cannot write to '{directory}': {error.strerror}.") from None
    if descriptor is None:
        raise StorageError(
            f"Another process is training into '{directory}' now. Wait for its end, or give "
            "another --output."
        )
    try:
        yield
    finally:
        (directory / LOCK).unlink(missing_ok=True)
        os.close(descriptor)
        for path in created:
            with contextlib.suppress(OSError):  # not empty
                path.rmdir()


def _lock(path: Path) -> int | None:
    """Lock a file and return its descriptor; None where another process has the lock.

    On systems and file systems without locks it always succeeds.
    """
    try:
        import fcntl
    except ImportError:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                os.close(descriptor)
                raise
        try:
            if os.path.samestat(os.stat(path), os.fstat(descriptor)):
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)  # its holder has just removed the file: try with the new one


def check_same(directory: Path, recipe: Recipe, finished: bool = False) -> None:
    """Compare a recipe with the one that the run was started with, by keys that change the result.

    Args:
        directory: The run's directory.
        recipe: The recipe.
        finished: Whether the run has ended, for the message.

    Raises:
        SettingError: A key differs.
    """
    before = result_settings(config.load(directory / RECIPE, Recipe))
    now = result_settings(recipe)
    for key in sorted({*before, *now}):
        if before.get(key) != now.get(key):
            raise SettingError(
                f"{key} is {now.get(key)!r}, but the run in '{directory}' was started with "
                f"{before.get(key)!r}"
                + (
                    " and is finished. To train its model further, name it in model.from "
                    "and give another --output."
                    if finished
                    else ". Use the old value to resume, or another --output."
                )
            )


def check_worker(chief: dict[str, Any], own: dict[str, Any]) -> None:
    """Compare a worker's recipe (`result_settings`) with the chief's.

    Files may have other names on its machine; `training.resuming` compares their content.

    Args:
        chief: The chief's keys and values.
        own: This worker's.

    Raises:
        SettingError: A key differs.
    """
    for key in sorted({*chief, *own}):
        is_path = key.startswith(("data.", "model.from", "tokenizer"))
        if chief.get(key) != own.get(key) and not is_path:
            raise SettingError(
                f"{key} is {own.get(key)!r} for this worker, but {chief.get(key)!r} for the "
                "first one. Give all workers the same recipe and options."
            )


def result_settings(recipe: Recipe) -> dict[str, Any]:
    """Return the settings, by dotted key, that change the result."""
    flat = _flatten(json.loads(recipe.model_dump_json()))
    return {key: value for key, value in flat.items() if not _is_free(key)}


def write_text(path: Path, text: str) -> None:
    """Write a small file atomically: under a temporary name, then renamed.

    Raises:
        StorageError: It cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise StorageError(
            f"Cannot write '{path}': {error.strerror}. Free some space, or give another --output."
        ) from None


def environment() -> dict[str, Any]:
    """Return versions, machine and commit, which are needed to reproduce a run."""
    return {
        "versions": machine.versions(),
        "git_commit": _commit(),
        "machine": machine.machine(),
    }


def _commit() -> str | None:
    try:
        result = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def _flatten(data: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(data, dict) or not data:
        return {prefix: data}
    flat: dict[str, Any] = {}
    for key, value in data.items():
        flat |= _flatten(value, f"{prefix}.{key}" if prefix else key)
    return flat


def _is_free(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in FREE_KEYS)
