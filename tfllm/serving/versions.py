"""Version directories of a model: which there are, and whether one is completely written."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

MAX_VERSION = 2**63 - 1
INTEGER = re.compile(r"[0-9]+")
GRAPH_FILES = ("saved_model.pb", "saved_model.pbtxt", "saved_model.cpb")


@dataclass(frozen=True)
class Fingerprint:
    """What a version directory holds: equal means that nothing was written or replaced in between.

    `files` has of every file the path in the directory, the size, and the times in nanoseconds of
    the last change of its content and of its inode: the last cannot be set, so that a copy that
    keeps the content's time is another file all the same.
    """

    directory: Path
    files: tuple[tuple[str, int, int, int], ...]

    @property
    def complete(self) -> bool:
        """Whether there is a graph to load."""
        return any(name in GRAPH_FILES for name, *_ in self.files)

    def quiet_since(self, seconds: float) -> bool:
        """Return whether the last write was `seconds` ago; so it is where a version was renamed."""
        newest = max((time for _, _, *times in self.files for time in times), default=0)
        return 0 < newest <= time.time_ns() - seconds * 1e9


def version_directories(base_path: str | Path) -> dict[int, Path]:
    """Return version number -> directory of the children of `base_path` that are versions.

    Of `1` and `001` the first in alphabetical order counts. OSError where the path cannot be read.
    """
    directories: dict[int, Path] = {}
    with os.scandir(base_path) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if INTEGER.fullmatch(entry.name) and int(entry.name) <= MAX_VERSION and entry.is_dir():
                directories.setdefault(int(entry.name), Path(entry.path))
    return directories


def fingerprint(directory: Path) -> Fingerprint:
    """Return the files of a version directory, directories behind symbolic links included."""
    files = []
    walked: set[tuple[int, int]] = set()
    for folder, folders, names in os.walk(directory, followlinks=True):
        for path in (folder, *(os.path.join(folder, name) for name in names)):
            try:
                status = os.stat(path)
            except OSError:
                continue  # gone between listing and reading: the next look will differ
            if path == folder:
                if (status.st_dev, status.st_ino) in walked:  # a link to a folder above
                    folders.clear()
                    break
                walked.add((status.st_dev, status.st_ino))
                continue
            name = os.path.relpath(path, directory)
            files.append((name, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
    return Fingerprint(directory, tuple(sorted(files)))
