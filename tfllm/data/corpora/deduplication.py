"""Repetitions in a corpus of any size: signatures on the disk, then the decision for each document.

While texts are read, the directory repetitions/ gets parts of three files, `exact` last: a part
counts when that is there, and a run that was killed goes on after it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from tfllm.data.corpora import minhash
from tfllm.data.corpora.minhash import Signatures
from tfllm.data.corpora.shards import replacing

FATE = "fate.npy"
FOLDER = "repetitions"
PART_DOCUMENTS = 100_000

_near = False  # a worker process's own
_similarity = 0.0


def start(near: bool, similarity: float) -> None:
    """Makes a worker ready."""
    global _near, _similarity
    _near, _similarity = near, similarity


def signatures_of(batch: tuple[Sequence[int], Sequence[str]]) -> Signatures:
    """The signatures of (ordinals, texts), in a worker."""
    return minhash.signatures(batch[1], _near, _similarity)


def done(work: Path) -> int:
    """Of how many documents the signatures are on the disk."""
    return sum(len(np.load(path, mmap_mode="r")) for path in _parts(work, "exact"))


def collect(work: Path, batches: Iterable[Signatures]) -> None:
    """Writes signatures in parts of about PART_DOCUMENTS documents, each whole or not at all."""
    (work / FOLDER).mkdir(exist_ok=True)
    waiting: list[Signatures] = []
    for batch in batches:
        waiting.append(batch)
        if sum(len(signatures.exact) for signatures in waiting) >= PART_DOCUMENTS:
            _write(work, waiting)
            waiting = []
    if waiting:
        _write(work, waiting)


def decide(work: Path, similarity: float) -> np.ndarray:
    """uint8 [documents] of duplicates.KEPT, EXACT or NEAR; written to fate.npy, too."""
    parts = [np.load(path, mmap_mode="r") for path in _parts(work, "exact")]
    exact = np.concatenate(parts) if parts else np.empty(0, np.uint64)
    sketch = [np.load(path, mmap_mode="r") for path in _parts(work, "sketch")]
    fate = minhash.decide(exact, _parts(work, "bands"), sketch, similarity)
    with replacing(work / FATE) as file:
        np.save(file, fate)
    shutil.rmtree(work / FOLDER)
    return fate


def clear(work: Path) -> None:
    """Removes what is of no use once the corpus stands."""
    (work / FATE).unlink(missing_ok=True)
    shutil.rmtree(work / FOLDER, ignore_errors=True)


def _write(work: Path, batches: list[Signatures]) -> None:
    number = len(_parts(work, "exact"))
    joined = {
        "bands": np.concatenate([batch.bands for batch in batches], axis=1),
        "sketch": np.concatenate([batch.sketch for batch in batches]),
        "exact": np.concatenate([batch.exact for batch in batches]),
    }
    for name, array in joined.items():
        with replacing(work / FOLDER / f"{name}-{number:05d}.npy") as file:
            np.save(file, array)


def _parts(work: Path, name: str) -> list[Path]:
    return sorted((work / FOLDER).glob(f"{name}-*.npy"))
