"""The directory that a corpus is made in: OUTPUT.unfinished, renamed to OUTPUT in the end.

It outlives a kill, and the same command goes on in it. `plan.json` says what it was begun with, so
that nothing else goes on in it; a lock keeps a second process out.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tfllm.data.corpora.corpus import is_corpus
from tfllm.data.corpora.shards import write_json
from tfllm.errors import InputError, StorageError

ENDING = ".unfinished"
PLAN, LOCK = "plan.json", "lock"


@contextmanager
def staging_directory(output: Path, plan: Mapping[str, Any]) -> Iterator[Path]:
    """The directory to work in; after the block it is `output`.

    It is kept after Ctrl-C, a kill or a full disk, and removed where the input was wrong. Raises
    StorageError when `output` exists or cannot be written, or when the directory was
    begun with another plan.
    """
    if is_corpus(output):
        raise StorageError(f"--output: '{output}' is a prepared corpus already. Name another.")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise StorageError(f"--output: '{output}' exists. Name a new directory.")
    work = output.with_name(output.name + ENDING)
    try:
        work.mkdir(parents=True, exist_ok=True)
        with (work / LOCK).open("w") as lock:
            _hold(lock, work)
            _check_plan(work, plan)
            yield work
            for name in (PLAN, LOCK):
                (work / name).unlink(missing_ok=True)
            os.replace(work, output)  # an empty directory may stand there
    except StorageError:
        raise
    except InputError:
        shutil.rmtree(work, ignore_errors=True)
        raise
    except OSError as error:
        raise StorageError(
            f"Cannot write '{error.filename or work}': {error.strerror}. Finished shards are kept "
            f"in '{work}': free some space and run the same command again."
        ) from None


def _hold(lock: Any, work: Path) -> None:
    """Raises StorageError when another process works there. The system frees a dead one's lock."""
    try:
        import fcntl
    except ImportError:  # not on every system
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StorageError(
            f"'{work}': another process is preparing this corpus now. Wait for it, or give another "
            "--output."
        ) from None


def _check_plan(work: Path, plan: Mapping[str, Any]) -> None:
    path = work / PLAN
    now = _flat(json.loads(json.dumps(plan)))
    if not path.is_file():
        write_json(path, plan)
        return
    before = _flat(json.loads(path.read_bytes()))
    for key in sorted({*before, *now}):
        if before.get(key) != now.get(key):
            raise StorageError(
                f"{key} is {now.get(key)!r}, but '{work}' was begun with {before.get(key)!r}. "
                "Remove that directory to begin anew, or give another --output."
            )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= _flat(inner, f"{prefix}.{key}" if prefix else key)
    return flat
