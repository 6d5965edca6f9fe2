"""Find exact and near duplicates among documents by MinHash and locality-sensitive hashing.

A shingle is a sequence of five words; an ideograph counts as a word. Every shingle of a document is
hashed, and each of 112 hash functions keeps its minimum over the shingles. The share of equal
minima of two documents estimates the Jaccard similarity of their sets of shingles. The minima are
divided into bands (14 of 8): documents that agree in all minima of a band are compared, and a later
one that is similar enough to an earlier one is a near duplicate. Signatures are on disk; one band
at a time is in memory.

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
BANDS, ROWS = 14, 8  # ROWS: minima of a band
LOW_SIMILARITY_BANDS, LOW_SIMILARITY_ROWS = 28, 4  # 14 bands of 8 would miss too many pairs
LOW_SIMILARITY = 0.7  # below it these are taken
NUM_HASHES = BANDS * ROWS
HASHES_PER_PASS = 8
PAIRS_PER_PASS = 1 << 16
UNIQUE, EXACT, NEAR = 0, 1, 2
SEED = 2026

BASE = np.uint64(0x9E3779B97F4A7C15 | 1)  # of the polynomial hash of words and shingles
CODE_POINTS = 0x110000
NO_WORD, WORD_CHARACTER, IDEOGRAPH = 0, 1, 2  # classes of characters


class Signatures(NamedTuple):
    """What decides whether D documents are duplicates."""

    exact: np.ndarray
    """uint64 [D]: hashes of the text, with runs of white space as one space."""
    bands: np.ndarray
    """uint64 [bands, D]: hashes of each band's minima; [0, D] for exact duplicates only."""
    sketch: np.ndarray
    """uint8 [D, 112]: the lowest byte of every minimum."""


def compute_signatures(texts: Sequence[str], near: bool, similarity: float = 0.8) -> Signatures:
    """Compute the signatures of documents.

    Args:
        texts: The documents; the signature of each depends on its text alone.
        near: Whether near duplicates are to be found too.
        similarity: Least Jaccard similarity of near duplicates, which decides the bands.
    """
    exact = np.array([_text_hash(text) for text in texts], np.uint64)
    count = len(texts)
    if not near or not count:
        return Signatures(exact, np.empty((0, count), np.uint64), np.empty((count, 0), np.uint8))
    minima = _min_hashes(*_shingle_hashes(texts))  # [D, 112]
    rows = ROWS if similarity >= LOW_SIMILARITY else LOW_SIMILARITY_ROWS
    bands = minima.reshape(count, -1, rows).astype(np.uint64)
    weights = _random_odd_numbers(rows, 1).astype(np.uint64) * BASE
    band_hashes = _mix_bits((bands * weights).sum(axis=2, dtype=np.uint64))
    return Signatures(exact, np.ascontiguousarray(band_hashes.T), (minima & 0xFF).astype(np.uint8))


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
    for later, _ in _pairs_of_equal_keys(exact):
        labels[later] = EXACT
    part_ends = np.cumsum([len(part) for part in sketch])
    num_bands = len(np.load(bands[0], mmap_mode="r")) if bands else 0
    for band in range(num_bands):
        keys = np.concatenate([np.load(path, mmap_mode="r")[band] for path in bands])
        candidates = np.flatnonzero(labels != EXACT)
        for later, earlier in _pairs_of_equal_keys(keys[candidates]):
            a, b = candidates[later], candidates[earlier]
            undecided = labels[a] == UNIQUE
            a, b = a[undecided], b[undecided]
            equal_bytes = _gather_rows(sketch, part_ends, a) == _gather_rows(sketch, part_ends, b)
            agreement = equal_bytes.mean(axis=1)
            # Different minima have equal lowest bytes with probability 1/256.
            labels[a[(agreement - 1 / 256) / (1 - 1 / 256) >= similarity]] = NEAR
    return labels


def _pairs_of_equal_keys(keys: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (later, earlier) indices of equal keys: each with the first, and the one before it."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    repeated = np.flatnonzero(ordered[1:] == ordered[:-1]) + 1
    if not len(repeated):
        return
    group_starts = np.concatenate([[0], np.flatnonzero(ordered[1:] != ordered[:-1]) + 1])
    first = group_starts[np.searchsorted(group_starts, repeated, side="right") - 1]
    for start in range(0, len(repeated), PAIRS_PER_PASS):
        part = slice(start, start + PAIRS_PER_PASS)
        yield order[repeated[part]], order[first[part]]
        yield order[repeated[part]], order[repeated[part] - 1]


def _gather_rows(parts: list[np.ndarray], part_ends: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Return rows of an array [D, 112] that is divided into parts, which end at `part_ends`."""
    rows = np.empty((len(indices), NUM_HASHES), np.uint8)
    part_of_row = np.searchsorted(part_ends, indices, side="right")
    for number in np.unique(part_of_row):
        selected = part_of_row == number
        start = part_ends[number - 1] if number else 0
        rows[selected] = parts[number][indices[selected] - start]
    return rows


def _text_hash(text: str) -> int:
    normalized = " ".join(text.split()).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(normalized, digest_size=8).digest(), "little")


def _shingle_hashes(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return uint32 hashes of all shingles, and the index of each document's first one: [D].

    A document of fewer than five words has one shingle, padded with zeros.
    """
    hashes, word_counts = _word_hashes([text.lower() for text in texts])
    # Every document's words, padded to five at least: its shingles begin at all but the last four.
    sizes = np.maximum(word_counts, SHINGLE_WORDS)
    starts = np.cumsum(sizes) - sizes
    word_starts = np.cumsum(word_counts) - word_counts
    padded = np.zeros(sizes.sum(), np.uint64)
    padded[np.arange(len(hashes)) + np.repeat(starts - word_starts, word_counts)] = hashes
    powers, _ = _base_powers(SHINGLE_WORDS + 1)
    shingles = np.zeros(len(padded) - SHINGLE_WORDS + 1, np.uint64)
    for i in range(SHINGLE_WORDS):
        shingles += padded[i : i + len(shingles)] * powers[i + 1]
    shingle_counts = sizes - SHINGLE_WORDS + 1
    shingle_starts = np.cumsum(shingle_counts) - shingle_counts
    # Shingles across the border of two documents are left out.
    inside = np.arange(shingle_counts.sum()) + np.repeat(starts - shingle_starts, shingle_counts)
    return (_mix_bits(shingles[inside]) >> np.uint64(32)).astype(np.uint32), shingle_starts


def _word_hashes(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return uint64 hashes of the words of all texts, and the number of words of each: [D]."""
    codes = np.frombuffer(
        "\0".join([*texts, ""]).encode("utf-32-le", "surrogatepass"), np.uint32
    )  # a NUL ends every text
    classes = _character_classes()[np.minimum(codes, CODE_POINTS - 1)]
    before = np.concatenate([[NO_WORD], classes[:-1]])
    starts = np.flatnonzero(
        (classes == IDEOGRAPH) | ((classes == WORD_CHARACTER) & (before != WORD_CHARACTER))
    )
    in_word = np.concatenate([classes == WORD_CHARACTER, [False]])
    ends = starts + 1
    ends[classes[starts] == WORD_CHARACTER] = np.flatnonzero(in_word[:-1] & ~in_word[1:]) + 1
    # A polynomial hash of each word, the same at every position: the difference of prefix sums
    # times the inverse of the power at the word's first character.
    powers, inverses = _base_powers(len(codes) + 1)
    prefix_sums = np.concatenate([[np.uint64(0)], np.cumsum(codes * powers[: len(codes)])])
    hashes = _mix_bits((prefix_sums[ends] - prefix_sums[starts]) * inverses[starts])
    text_ends = np.cumsum([len(text) + 1 for text in texts])
    text_of_word = np.searchsorted(text_ends, starts, side="right")
    return hashes, np.bincount(text_of_word, minlength=len(texts))


def _min_hashes(hashes: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Return the minimum of each document's hashes under each of 112 functions: uint32 [D, 112]."""
    minima = np.empty((NUM_HASHES, len(starts)), np.uint32)
    factors, masks = _random_odd_numbers(NUM_HASHES, 2), _random_odd_numbers(NUM_HASHES, 3)
    for first in range(0, NUM_HASHES, HASHES_PER_PASS):
        part = slice(first, first + HASHES_PER_PASS)
        values = (hashes[None, :] ^ masks[part, None]) * factors[part, None]
        values ^= values >> np.uint32(15)
        minima[part] = np.minimum.reduceat(values, starts, axis=1)
    return minima.T


def _mix_bits(numbers: np.ndarray) -> np.ndarray:
    """Make every bit of the result depend on every input bit (the finalizer of splitmix64)."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


def _random_odd_numbers(count: int, stream: int) -> np.ndarray:
    """Return uint32 [count], equal in every version of NumPy, which guarantees PCG64's stream."""
    bits = np.random.PCG64([SEED, stream]).random_raw(count)
    return (bits >> np.uint64(32)).astype(np.uint32) | np.uint32(1)


@cache
def _character_classes() -> np.ndarray:
    """Return the class of every code point: uint8 [CODE_POINTS]."""
    is_word_character = (chr(code).isalnum() for code in range(CODE_POINTS))
    classes = np.fromiter(is_word_character, np.uint8, CODE_POINTS)
    for low, high in IDEOGRAPHS:
        classes[low : high + 1] = IDEOGRAPH
    return classes


def _base_powers(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return BASE**n and its inverse modulo 2**64 for at least every n below `count`."""
    return _power_tables(max(count - 1, (1 << 16) - 1).bit_length())


@cache
def _power_tables(bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Return BASE**n and its inverse modulo 2**64 for n below 2**bits."""
    inverse = np.uint64(pow(int(BASE), -1, 2**64))
    tables = []
    for base in (BASE, inverse):
        table = np.full(1 << bits, base)
        table[0] = 1
        tables.append(np.multiply.accumulate(table))
    return tables[0], tables[1]
