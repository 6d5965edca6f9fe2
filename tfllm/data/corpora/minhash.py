"""Exact and near duplicates among documents, by MinHash with banding.

All sequences of five words (shingles) of a document are hashed; MinHash keeps 112 minima of these
hashes, whose agreement between two documents estimates the Jaccard similarity of their shingles.
Documents that agree in all 8 minima of one of 14 bands are compared; a later one that is similar
enough is a near duplicate. An ideograph counts as a word. Signatures are on disk, and one band is
in memory at a time.

Source: Broder 1997, "On the resemblance and containment of documents"; Leskovec et al., "Mining of
Massive Datasets", ch. 3; Li and Koenig 2010, "b-Bit Minwise Hashing" (one byte of each minimum is
compared). Numbers of bands and rows as in FineWeb (Penedo et al. 2024).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tfllm.data.corpora.word_boundaries import IDEOGRAPHS

SHINGLE_WORDS = 5
BANDS, ROWS = 14, 8
LOOSE_BANDS, LOOSE_ROWS = 28, 4  # below TIGHT, where 14 x 8 would miss too many
TIGHT = 0.7
MINIMA = BANDS * ROWS
AT_ONCE = 8  # minima computed together
COMPARED_AT_ONCE = 1 << 16
UNIQUE, EXACT, NEAR = 0, 1, 2
SEED = 2026

BASE = np.uint64(0x9E3779B97F4A7C15 | 1)
LARGEST = 0x110000  # code points


class Signatures(NamedTuple):
    """What duplicates among D documents are found by."""

    exact: np.ndarray
    """uint64 [D]: hashes of the text, with runs of white space as one space."""
    bands: np.ndarray
    """uint64 [bands, D]: hashes of each band's minima; [0, D] for exact duplicates only."""
    sketch: np.ndarray
    """uint8 [D, 112]: the lowest byte of every minimum."""


def signatures(texts: Sequence[str], near: bool, similarity: float = 0.8) -> Signatures:
    """Compute the signatures of documents.

    Args:
        texts: Of the documents; each signature depends on its text alone.
        near: Whether near duplicates are looked for, too.
        similarity: Least Jaccard similarity of near duplicates, which decides the bands.
    """
    exact = np.array([_exact(text) for text in texts], np.uint64)
    count = len(texts)
    if not near or not count:
        return Signatures(exact, np.empty((0, count), np.uint64), np.empty((count, 0), np.uint8))
    minima = _minima(*_shingles(texts))  # [D, 112]
    rows = ROWS if similarity >= TIGHT else LOOSE_ROWS
    bands = minima.reshape(count, -1, rows).astype(np.uint64)
    weights = _odd_numbers(rows, 1).astype(np.uint64) * BASE
    hashed = _mix_bits((bands * weights).sum(axis=2, dtype=np.uint64))
    return Signatures(exact, np.ascontiguousarray(hashed.T), (minima & 0xFF).astype(np.uint8))


def find_duplicates(
    exact: np.ndarray, bands: list[Path], sketch: list[np.ndarray], similarity: float
) -> np.ndarray:
    """Decide for every document whether it duplicates an earlier one.

    Args:
        exact: Signatures.exact of all documents.
        bands: Files with Signatures.bands, in order.
        sketch: Memory-mapped parts of Signatures.sketch.
        similarity: Least Jaccard similarity of near duplicates.

    Returns:
        uint8 [D]: UNIQUE, EXACT or NEAR.
    """
    labels = np.zeros(len(exact), np.uint8)
    for later, _ in _equal_keys(exact):
        labels[later] = EXACT
    ends = np.cumsum([len(part) for part in sketch])
    number_of_bands = len(np.load(bands[0], mmap_mode="r")) if bands else 0
    for band in range(number_of_bands):
        column = np.concatenate([np.load(path, mmap_mode="r")[band] for path in bands])
        rest = np.flatnonzero(labels != EXACT)
        for later, earlier in _equal_keys(column[rest]):
            a, b = rest[later], rest[earlier]
            open_ones = labels[a] == UNIQUE
            a, b = a[open_ones], b[open_ones]
            same = (_rows(sketch, ends, a) == _rows(sketch, ends, b)).mean(axis=1)
            # Two different minima share their byte once in 256.
            labels[a[(same - 1 / 256) / (1 - 1 / 256) >= similarity]] = NEAR
    return labels


def _equal_keys(keys: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(later, earlier) indices of equal keys: each with its group's first, then the previous."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    same = np.flatnonzero(ordered[1:] == ordered[:-1]) + 1
    if not len(same):
        return
    group = np.concatenate([[0], np.flatnonzero(ordered[1:] != ordered[:-1]) + 1])
    first = group[np.searchsorted(group, same, side="right") - 1]
    for start in range(0, len(same), COMPARED_AT_ONCE):
        part = slice(start, start + COMPARED_AT_ONCE)
        yield order[same[part]], order[first[part]]
        yield order[same[part]], order[same[part] - 1]


def _rows(parts: list[np.ndarray], ends: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Rows of an array whose parts are in several files; `ends` are the parts' last rows + 1."""
    rows = np.empty((len(indices), MINIMA), np.uint8)
    owner = np.searchsorted(ends, indices, side="right")
    for number in np.unique(owner):
        chosen = owner == number
        start = ends[number - 1] if number else 0
        rows[chosen] = parts[number][indices[chosen] - start]
    return rows


def _exact(text: str) -> int:
    joined = " ".join(text.split()).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(joined, digest_size=8).digest(), "little")


def _shingles(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """uint32 hashes of all shingles, and where each document's begin: [D].

    A document of fewer words has one shingle, padded with zeros.
    """
    lowered = [text.lower() for text in texts]
    codes = np.frombuffer(
        "\0".join([*lowered, ""]).encode("utf-32-le", "surrogatepass"), np.uint32
    )  # a NUL ends every document
    kinds = _kinds()[np.minimum(codes, LARGEST - 1)]  # 0 none, 1 letter or digit, 2 ideograph
    before = np.concatenate([[0], kinds[:-1]])
    starts = np.flatnonzero((kinds == 2) | ((kinds == 1) & (before != 1)))
    inside = np.concatenate([kinds == 1, [False]])
    ends = np.flatnonzero(inside[:-1] & ~inside[1:]) + 1  # of runs of letters
    runs = kinds[starts] == 1
    stops = starts + 1
    stops[runs] = ends
    # A word's hash does not depend on its position: a difference of prefix sums, times the inverse.
    powers, inverses = _powers(len(codes) + 1)
    sums = np.concatenate([[np.uint64(0)], np.cumsum(codes * powers[: len(codes)])])
    words = _mix_bits((sums[stops] - sums[starts]) * inverses[starts])
    lengths = np.array([len(text) + 1 for text in lowered])
    owner = np.searchsorted(np.cumsum(lengths), starts, side="right")
    counts = np.bincount(owner, minlength=len(texts))
    rooms = np.maximum(counts, SHINGLE_WORDS)
    firsts = np.cumsum(rooms) - rooms
    padded = np.zeros(rooms.sum(), np.uint64)
    padded[np.arange(len(words)) - np.repeat(np.cumsum(counts) - counts, counts)
           + np.repeat(firsts, counts)] = words  # fmt: skip
    hashed = np.zeros(len(padded) - SHINGLE_WORDS + 1, np.uint64)
    for i in range(SHINGLE_WORDS):
        hashed += padded[i : i + len(hashed)] * powers[i + 1]
    sequences = rooms - SHINGLE_WORDS + 1
    chosen = np.arange(sequences.sum()) + np.repeat(
        firsts - (np.cumsum(sequences) - sequences), sequences
    )
    return (_mix_bits(hashed[chosen]) >> np.uint64(32)).astype(np.uint32), (
        np.cumsum(sequences) - sequences
    )


def _minima(hashes: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """uint32 [D, 112]: the minimum of each document's hashes under each of 112 functions."""
    minima = np.empty((MINIMA, len(starts)), np.uint32)
    factors, offsets = _odd_numbers(MINIMA, 2), _odd_numbers(MINIMA, 3)
    for first in range(0, MINIMA, AT_ONCE):
        part = slice(first, first + AT_ONCE)
        values = (hashes[None, :] ^ offsets[part, None]) * factors[part, None]
        values ^= values >> np.uint32(15)
        minima[part] = np.minimum.reduceat(values, starts, axis=1)
    return minima.T


def _mix_bits(numbers: np.ndarray) -> np.ndarray:
    """Make every bit of the result depend on every input bit (the finalizer of splitmix64)."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


def _odd_numbers(count: int, stream: int) -> np.ndarray:
    """uint32 [count], the same in every version of NumPy, which guarantees PCG64's stream."""
    bits = np.random.PCG64([SEED, stream]).random_raw(count)
    return (bits >> np.uint64(32)).astype(np.uint32) | np.uint32(1)


@cache
def _kinds() -> np.ndarray:
    """uint8 [code points]: 0 neither letter nor digit, 1 one of these, 2 an ideograph."""
    kinds = np.fromiter((chr(code).isalnum() for code in range(LARGEST)), np.uint8, LARGEST)
    for low, high in IDEOGRAPHS:
        kinds[low : high + 1] = 2
    return kinds


def _powers(count: int) -> tuple[np.ndarray, np.ndarray]:
    """BASE**n and its inverse modulo 2**64 for n below `count`, and some more."""
    return _power_tables(max(count - 1, (1 << 16) - 1).bit_length())


@cache
def _power_tables(bits: int) -> tuple[np.ndarray, np.ndarray]:
    """The same for n below 2**bits."""
    inverse = np.uint64(pow(int(BASE), -1, 2**64))
    tables = []
    for base in (BASE, inverse):
        table = np.full(1 << bits, base)
        table[0] = 1
        tables.append(np.multiply.accumulate(table))
    return tables[0], tables[1]
