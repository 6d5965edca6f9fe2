"""Deduplication of a corpus of any size: signatures on disk, then a decision for each document.

While texts are read, parts of three files are written to the folder repetitions/, `exact` last: a
part is complete when that is there, and a run that was killed resumes after it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from tfllm.data.corpora import minhash
from tfllm.data.corpora.minhash import Signatures
from tfllm.data.corpora.shards import replacing

LABELS = "duplicates.npy"
FOLDER = "repetitions"
PART_DOCUMENTS = 100_000


def batch_signatures(
    batch: tuple[Sequence[int], Sequence[str]], near: bool, similarity: float
) -> Signatures:
    """Compute the signatures of (ordinals, texts); run in a worker process.

    Args:
        batch: Documents' numbers and texts.
        near: Whether near duplicates are looked for, too.
        similarity: See `minhash.signatures`.
    """
    return minhash.signatures(batch[1], near, similarity)


def signed_documents(work: Path) -> int:
    """Return how many documents have their signatures on disk."""
    return sum(len(np.load(path, mmap_mode="r")) for path in _parts(work, "exact"))


def write_signatures(work: Path, batches: Iterable[Signatures]) -> None:
    """Write signatures in parts of about PART_DOCUMENTS documents, each atomically."""
    (work / FOLDER).mkdir(exist_ok=True)
    pending: list[Signatures] = []
    for batch in batches:
        pending.append(batch)
        if sum(len(signatures.exact) for signatures in pending) >= PART_DOCUMENTS:
            _write(work, pending)
            pending = []
    if pending:
        _write(work, pending)


def classify_documents(work: Path, similarity: float) -> np.ndarray:
    """Decide which documents are duplicates, and write the decision to duplicates.npy.

    Returns:
        uint8 [documents]: minhash.UNIQUE, EXACT or NEAR.
    """
    parts = [np.load(path, mmap_mode="r") for path in _parts(work, "exact")]
    exact = np.concatenate(parts) if parts else np.empty(0, np.uint64)
    sketch = [np.load(path, mmap_mode="r") for path in _parts(work, "sketch")]
    labels = minhash.find_duplicates(exact, _parts(work, "bands"), sketch, similarity)
    with replacing(work / LABELS) as file:
        np.save(file, labels)
    shutil.rmtree(work / FOLDER)
    return labels


def clear(work: Path) -> None:
    """Remove the files that a finished corpus does not need."""
    (work / LABELS).unlink(missing_ok=True)
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
