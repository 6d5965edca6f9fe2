"""Version directories of a model: which there are, and whether one is completely written."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

MAX_VERSION = 2**63 - 1
INTEGER = re.compile(r"[0-9]+")

# Path, size and modification time of every file: equal means that nothing was written in between.
Fingerprint = tuple[tuple[str, int, int], ...]


def present(base_path: str | Path) -> dict[int, Path]:
    """The direct children of `base_path` whose names are version numbers, by version.

    Of `1` and `001` the first in alphabetical order counts. OSError where the path cannot be read.
    """
    found: dict[int, Path] = {}
    with os.scandir(base_path) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if INTEGER.fullmatch(entry.name) and int(entry.name) <= MAX_VERSION and entry.is_dir():
                found.setdefault(int(entry.name), Path(entry.path))
    return found


def fingerprint(directory: Path) -> Fingerprint:
    """What a version directory holds right now; empty while it has no saved_model.pb."""
    files = []
    for folder, _, names in os.walk(directory):
        for name in names:
            path = os.path.join(folder, name)
            try:
                status = os.stat(path)
            except OSError:
                continue  # gone between listing and reading: the next look will differ
            files.append((path, status.st_size, status.st_mtime_ns))
    saved = any(Path(path).name.startswith("saved_model.pb") for path, _, _ in files)
    return tuple(sorted(files)) if saved else ()


def quiet_since(seen: Fingerprint, seconds: float) -> bool:
    """Whether the last write lies `seconds` back: so it is where a version was renamed."""
    newest = max((modified for _, _, modified in seen), default=0)
    return 0 <= newest <= time.time_ns() - seconds * 1e9
