"""The directory in which a corpus is prepared: OUTPUT.unfinished, renamed to OUTPUT at the end.

It is kept after a kill, and the same command resumes in it. `plan.json` has the settings with which
it was begun, so that no other command resumes in it; a lock excludes a second process.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from tfllm.data.corpora.corpus import is_corpus
from tfllm.data.corpora.shards import write_json
from tfllm.errors import InputError, StorageError

ENDING = ".unfinished"
PLAN, LOCK = "plan.json", "lock"


@contextmanager
def staging_directory(output: Path, plan: Mapping[str, Any]) -> Iterator[Path]:
    """Create or reopen a directory to work in, and rename it to `output` after the block.

    It is kept after Ctrl-C, a kill or a full disk, and removed where the input was wrong.

    Args:
        output: The final directory.
        plan: The settings, as JSON.

    Yields:
        The directory to work in.

    Raises:
        StorageError: `output` exists or cannot be written, another process is working there, or
            the directory was begun with another plan.
    """
    if is_corpus(output):
        raise StorageError(f"--output: '{output}' is a prepared corpus already. Name another.")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise StorageError(f"--output: '{output}' exists. Name a new directory.")
    work = output.with_name(output.name + ENDING)
    try:
        work.mkdir(parents=True, exist_ok=True)
        with (work / LOCK).open("w") as lock:
            _acquire(lock, work)
            _check_plan(work, plan)
            yield work
            for name in (PLAN, LOCK):
                (work / name).unlink(missing_ok=True)
            os.replace(work, output)  # which may be an empty directory
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


def _acquire(lock: TextIO, work: Path) -> None:
    """Raise StorageError when another process works there. The system frees a dead one's lock."""
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
    current = _flatten(json.loads(json.dumps(plan)))
    if not path.is_file():
        write_json(path, plan)
        return
    before = _flatten(json.loads(path.read_bytes()))
    for key in sorted({*before, *current}):
        if before.get(key) != current.get(key):
            raise StorageError(
                f"{key} is {current.get(key)!r}, but '{work}' was begun with {before.get(key)!r}. "
                "Remove that directory to start again, or give another --output."
            )


def _flatten(value: object, prefix: str = "") -> dict[str, object]:
    """Nested dicts as one with dotted keys."""
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    flat: dict[str, object] = {}
    for key, inner in value.items():
        flat |= _flatten(inner, f"{prefix}.{key}" if prefix else key)
    return flat
