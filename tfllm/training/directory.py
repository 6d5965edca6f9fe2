"""A run's directory: what lies in it, whether it may be written, what it says in the end.

recipe.yaml metrics.jsonl logs/ state/ checkpoint/ adapter/ tokenizer/ summary.json
"""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tfllm import config
from tfllm.errors import SettingError, StorageError
from tfllm.training.recipe import Recipe

RECIPE, METRICS, LOGS, STATE = "recipe.yaml", "metrics.jsonl", "logs", "state"
CHECKPOINT, ADAPTER, SUMMARY = "checkpoint", "adapter", "summary.json"
TOKENIZER = "tokenizer"  # of a run that has learned its own
WORKERS = "workers"  # what workers beside the chief print, with tfllm launch
# All that may lie in a directory before its recipe, which is the first thing of a run.
LOCK = ".lock"  # held by the process that trains; see `locked`
LEFTOVERS = {TOKENIZER, WORKERS, LOCK, f".{RECIPE}.tmp"}

# Keys that may differ between the start and a resumption: they change nothing that is computed.
FREE_KEYS = {
    "name", "train.log_every", "train.checkpoint_every", "train.profile", "train.samples",
    "train.carbon_intensity", "train.keep", "train.strategy", "train.steps_per_execution",
    "train.worker_timeout", "export",
}  # fmt: skip

PACKAGES = ("tensorflow", "keras", "numpy", "tokenizers", "safetensors")


def check_free(directory: Path, resume: bool) -> None:
    """Raises StorageError unless the directory can take a new run, or holds one to resume.

    What a start leaves that was killed before it wrote the recipe is no run: it is overwritten.
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
            f"'{directory}' is not empty. Go on with the run in it by --resume, or give another "
            "--output."
        )


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """No other process trains into the directory meanwhile; it is made where it is not there.

    Of a block that leaves nothing in it, nothing is left. The system frees the lock of a process
    that has ended in any way. Raises StorageError where another one has it.
    """
    if directory.exists() and not directory.is_dir():
        raise StorageError(f"'{directory}' is a file. Give another --output.")
    made = [path for path in (directory, *directory.parents) if not path.exists()]
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
        for path in made:
            with contextlib.suppress(OSError):  # it holds something
                path.rmdir()


def _lock(path: Path) -> int | None:
    """A descriptor with the lock of a file; None where another process has it.

    A system, or a file system, without locks gives none and refuses nobody.
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
        os.close(descriptor)  # its holder has just removed it: that lock keeps nobody out


def check_same(directory: Path, recipe: Recipe, finished: bool = False) -> None:
    """Raises SettingError when the run was started with settings that compute something else."""
    before, now = computed(config.load(directory / RECIPE, Recipe)), computed(recipe)
    for key in sorted({*before, *now}):
        if before.get(key) != now.get(key):
            raise SettingError(
                f"{key} is {now.get(key)!r}, but the run in '{directory}' was started with "
                f"{before.get(key)!r}"
                + (
                    " and has come to its end. To train its model further, name it in model.from "
                    "and give another --output."
                    if finished
                    else ". Use the old value to resume, or another --output."
                )
            )


def check_worker(of_chief: dict[str, Any], own: dict[str, Any]) -> None:
    """Raises SettingError when a worker was given another recipe (`computed`) than the chief.

    Files may have other names on its machine; their content is compared by `training.inputs`.
    """
    for key in sorted({*of_chief, *own}):
        is_path = key.startswith(("data.", "model.from", "tokenizer"))
        if of_chief.get(key) != own.get(key) and not is_path:
            raise SettingError(
                f"{key} is {own.get(key)!r} for this worker, but {of_chief.get(key)!r} for the "
                "first one. Give all workers the same recipe and options."
            )


def computed(recipe: Recipe) -> dict[str, Any]:
    """The settings by dotted key that change what is computed."""
    flat = _flat(json.loads(recipe.model_dump_json()))
    return {key: value for key, value in flat.items() if not _is_free(key)}


def write_text(path: Path, text: str) -> None:
    """Writes a small file whole: under a temporary name, then renamed. Raises StorageError."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise StorageError(
            f"Cannot write '{path}': {error.strerror}. Free some space, or give another --output."
        ) from None


def surroundings() -> dict[str, Any]:
    """Versions, machine and commit: what a summary needs to be repeated."""
    from tfllm import __version__

    versions = {"tfllm": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    machine = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    return {"versions": versions, "git_commit": _commit(), "machine": machine}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _commit() -> str | None:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _flat(data: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(data, dict) or not data:
        return {prefix: data}
    flat: dict[str, Any] = {}
    for key, value in data.items():
        flat |= _flat(value, f"{prefix}.{key}" if prefix else key)
    return flat


def _is_free(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in FREE_KEYS)
