"""Deduplicate a corpus of any size: signatures on disk, then a decision for each document.

While texts are read, their signatures are written to the folder repetitions/, in parts of three
files. The file `exact` is written last: a part is complete when it exists, and an interrupted
preparation resumes after the last complete part.
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
    """Compute the signatures of a batch of documents, in a worker process.

    Args:
        batch: The documents' numbers and texts.
        near: Whether near duplicates are to be found too.
        similarity: Least Jaccard similarity of near duplicates.
    """
    _, texts = batch
    return minhash.compute_signatures(texts, near, similarity)


def count_signatures(work: Path) -> int:
    """Return how many documents have their signatures on disk."""
    return sum(len(np.load(path, mmap_mode="r")) for path in _part_files(work, "exact"))


def write_signatures(work: Path, batches: Iterable[Signatures]) -> None:
    """Write signatures in parts of about PART_DOCUMENTS documents, each file atomically.

    Args:
        work: The directory of the preparation.
        batches: The signatures of documents, in the documents' order.
    """
    (work / FOLDER).mkdir(exist_ok=True)
    pending: list[Signatures] = []
    for batch in batches:
        pending.append(batch)
        if sum(len(signatures.exact) for signatures in pending) >= PART_DOCUMENTS:
            _write_part(work, pending)
            pending = []
    if pending:
        _write_part(work, pending)


def classify_documents(work: Path, similarity: float) -> np.ndarray:
    """Decide which documents are duplicates, write the result and remove the signatures.

    Args:
        work: The directory of the preparation, where duplicates.npy is written.
        similarity: Least Jaccard similarity of near duplicates.

    Returns:
        uint8 [documents]: minhash.UNIQUE, EXACT or NEAR.
    """
    parts = [np.load(path, mmap_mode="r") for path in _part_files(work, "exact")]
    exact = np.concatenate(parts) if parts else np.empty(0, np.uint64)
    sketch = [np.load(path, mmap_mode="r") for path in _part_files(work, "sketch")]
    labels = minhash.find_duplicates(exact, _part_files(work, "bands"), sketch, similarity)
    with replacing(work / LABELS) as file:
        np.save(file, labels)
    shutil.rmtree(work / FOLDER)
    return labels


def clear(work: Path) -> None:
    """Remove the files that a finished corpus does not need."""
    (work / LABELS).unlink(missing_ok=True)
    shutil.rmtree(work / FOLDER, ignore_errors=True)


def _write_part(work: Path, batches: list[Signatures]) -> None:
    number = len(_part_files(work, "exact"))
    arrays = {  # in the order in which they are written
        "bands": np.concatenate([batch.bands for batch in batches], axis=1),
        "sketch": np.concatenate([batch.sketch for batch in batches]),
        "exact": np.concatenate([batch.exact for batch in batches]),
    }
    for name, array in arrays.items():
        with replacing(work / FOLDER / f"{name}-{number:05d}.npy") as file:
            np.save(file, array)


def _part_files(work: Path, name: str) -> list[Path]:
    return sorted((work / FOLDER).glob(f"{name}-*.npy"))
