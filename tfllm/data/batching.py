"""Length-bucketed batches: shuffled rows of similar length, a function of (seed, epoch, step).

Rows are shuffled, cut into windows, sorted by length inside each window, cut into batches, and the
batches shuffled. A batch is padded to the next of a few lengths, so that padding stays small and a
compiled step meets few shapes. Rows with a source and a target are sorted by both, and each is
padded on its own. There is no state between steps: a run that stopped at any step resumes with
the same batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

WINDOW_BATCHES = 64  # batches whose rows are sorted together: enough for little padding


def bucket_lengths(longest: int) -> list[int]:
    """Return the bucket lengths up to the first that holds `longest` tokens.

    4, 8, ... 32, 40, ... 64, 80, 96, 112, 128, 160, ...: steps of 4, then 1/8 to 1/4 more.
    """
    lengths = [4]
    while lengths[-1] < longest:
        last = lengths[-1]
        lengths.append(last + max(4, 2 ** (last.bit_length() - 1) // 4))
    return lengths


def bucket_length(longest: int) -> int:
    """Return the first bucket length that holds `longest` tokens."""
    return bucket_lengths(longest)[-1]


@dataclass(frozen=True)
class Batch:
    """The rows of one batch and the length to which they are padded."""

    rows: np.ndarray
    """Indices of the rows, int [B]."""
    length: int
    """The padded length of the tokens."""
    tokens: int
    """Tokens that are not padding, of sources too."""
    source_length: int = 0
    """The padded length of the sources, where rows have them."""
    group: int = 1
    """Rows of one example."""

    @property
    def examples(self) -> int:
        """The number of examples."""
        return len(self.rows) // self.group

    @property
    def slots(self) -> int:
        """Tokens with padding, of sources too."""
        return len(self.rows) * (self.length + self.source_length)


@dataclass(frozen=True)
class Batches:
    """The batches of every epoch."""

    lengths: np.ndarray
    """Tokens of each row, int [rows]."""
    units: np.ndarray
    """The rows of each unit, which are in one batch, int [units, group]."""
    batch_size: int
    """Units of a batch; the last batch of an epoch has the remaining ones."""
    batch_tokens: int | None = None
    """Padded tokens of a batch at most; then `batch_size` is the most units."""
    seed: int = 0
    shuffle: bool = True
    smallest: int = 1
    """Batches with fewer units are dropped."""
    source_lengths: np.ndarray | None = None
    """Tokens of each row's source, int [rows], where rows have one; both count as tokens."""

    @cached_property
    def unit_lengths(self) -> np.ndarray:
        """Tokens of the longest row of each unit, int [units]."""
        return self.lengths[self.units].max(axis=1)

    @cached_property
    def padded_lengths(self) -> np.ndarray:
        """The bucket length of each unit, int [units]."""
        return _to_buckets(self.unit_lengths)

    @cached_property
    def padded_source_lengths(self) -> np.ndarray:
        """The bucket length of each unit's sources, int [units]; 0 where there are none."""
        if self.source_lengths is None:
            return np.zeros_like(self.padded_lengths)
        return _to_buckets(self.source_lengths[self.units].max(axis=1))

    def epoch(self, number: int) -> list[Batch]:
        """Return the batches of one epoch, counted from 0."""
        generator = np.random.default_rng([self.seed, number])
        order = np.arange(len(self.units))
        if self.shuffle:
            generator.shuffle(order)
        batches = [batch for window in self._windows(order) for batch in self._split(window)]
        if self.shuffle:
            generator.shuffle(batches)
        return [self._batch(units) for units in batches if len(units) >= self.smallest]

    def in_order(self) -> list[Batch]:
        """Return batches of units in order, without regard to their lengths."""
        order = np.arange(len(self.units))
        starts = range(0, len(order), self.batch_size)
        parts = [order[start : start + self.batch_size] for start in starts]
        return [self._batch(units) for units in parts if len(units) >= self.smallest]

    def from_step(self, epoch: int, step: int) -> Iterator[Batch]:
        """Yield batches without end.

        Args:
            epoch: The first epoch, from 0.
            step: The first step of that epoch, from 0.
        """
        while True:
            yield from self.epoch(epoch)[step:]
            epoch, step = epoch + 1, 0

    def _windows(self, order: np.ndarray) -> list[np.ndarray]:
        size = self.batch_size * WINDOW_BATCHES if self.shuffle else max(1, len(order))
        windows = [order[start : start + size] for start in range(0, len(order), size)]
        return [window[self._sorted(window)] for window in windows]

    def _sorted(self, window: np.ndarray) -> np.ndarray:
        """Sort by target, then by source, ascending and descending alternately (stable)."""
        targets, sources = self.padded_lengths[window], self.padded_source_lengths[window]
        descending = np.unique(targets, return_inverse=True)[1] % 2
        return np.lexsort((np.where(descending, -sources, sources), targets))

    def _split(self, window: np.ndarray) -> list[np.ndarray]:
        if self.batch_tokens is None:
            starts = range(0, len(window), self.batch_size)
            return [window[start : start + self.batch_size] for start in starts]
        batches = []
        start = longest = longest_source = 0
        sizes = zip(
            self.padded_lengths[window].tolist(),
            self.padded_source_lengths[window].tolist(),
            strict=True,
        )
        for end, (length, source) in enumerate(sizes):
            longest, longest_source = max(longest, length), max(longest_source, source)
            count = (end + 1 - start) * self.units.shape[1]
            full = end - start == self.batch_size
            if end > start and (full or count * (longest + longest_source) > self.batch_tokens):
                batches.append(window[start:end])
                start, longest, longest_source = end, length, source
        batches.append(window[start:])
        return batches

    def _batch(self, units: np.ndarray) -> Batch:
        rows = self.units[units].ravel()
        tokens = int(self.lengths[rows].sum())
        if self.source_lengths is not None:
            tokens += int(self.source_lengths[rows].sum())
        length = int(self.padded_lengths[units].max())
        source_length = int(self.padded_source_lengths[units].max())
        return Batch(rows, length, tokens, source_length, self.units.shape[1])


def _to_buckets(lengths: np.ndarray) -> np.ndarray:
    edges = np.array(bucket_lengths(int(lengths.max())))
    return edges[np.searchsorted(edges, lengths)]


def padding_share(batches: list[Batch]) -> float:
    """Return the share of all tokens that is padding, 0 to 1."""
    slots = sum(batch.slots for batch in batches)
    return 1 - sum(batch.tokens for batch in batches) / slots if slots else 0.0
