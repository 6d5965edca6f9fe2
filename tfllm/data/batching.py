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
    """Row numbers of one batch and the length that they are padded to."""

    rows: np.ndarray
    length: int
    tokens: int
    """Tokens that are not padding, of sources too."""
    source_length: int = 0
    """What sources are padded to, where rows have them."""
    group: int = 1
    """Rows that make one example."""

    @property
    def examples(self) -> int:
        return len(self.rows) // self.group

    @property
    def slots(self) -> int:
        """Tokens with padding."""
        return len(self.rows) * (self.length + self.source_length)


@dataclass(frozen=True)
class Batches:
    """The batches of every epoch. `lengths` [rows]; `units` [units, group]: rows kept together.

    A batch has `batch_size` units, the last of an epoch what is left. With `batch_tokens` a batch
    instead has as many units as fit into that number of padded tokens, at most `batch_size`.
    `smallest`: batches with fewer units are left out. `source_lengths` [rows]: of rows that have a
    source beside their tokens; both count as tokens.
    """

    lengths: np.ndarray
    units: np.ndarray
    batch_size: int
    batch_tokens: int | None = None
    seed: int = 0
    shuffle: bool = True
    smallest: int = 1
    source_lengths: np.ndarray | None = None

    @cached_property
    def unit_lengths(self) -> np.ndarray:
        return self.lengths[self.units].max(axis=1)

    @cached_property
    def steps(self) -> np.ndarray:
        """The padded length of every unit, of its bucket."""
        return _to_buckets(self.unit_lengths)

    @cached_property
    def source_steps(self) -> np.ndarray:
        """The padded length of every unit's sources; 0 where there are none."""
        if self.source_lengths is None:
            return np.zeros_like(self.steps)
        return _to_buckets(self.source_lengths[self.units].max(axis=1))

    def epoch(self, number: int) -> list[Batch]:
        """The batches of one epoch, counted from 0."""
        generator = np.random.default_rng([self.seed, number])
        order = np.arange(len(self.units))
        if self.shuffle:
            generator.shuffle(order)
        batches = [batch for window in self._windows(order) for batch in self._cut(window)]
        if self.shuffle:
            generator.shuffle(batches)
        return [self._batch(units) for units in batches if len(units) >= self.smallest]

    def in_order(self) -> list[Batch]:
        """The batches of units as they come, without regard to their lengths."""
        order = np.arange(len(self.units))
        starts = range(0, len(order), self.batch_size)
        cut = [order[start : start + self.batch_size] for start in starts]
        return [self._batch(units) for units in cut if len(units) >= self.smallest]

    def from_step(self, epoch: int, step: int) -> Iterator[Batch]:
        """Batches without end, from a step of an epoch on."""
        while True:
            yield from self.epoch(epoch)[step:]
            epoch, step = epoch + 1, 0

    def _windows(self, order: np.ndarray) -> list[np.ndarray]:
        size = self.batch_size * WINDOW_BATCHES if self.shuffle else max(1, len(order))
        windows = [order[start : start + size] for start in range(0, len(order), size)]
        return [window[self._sorted(window)] for window in windows]

    def _sorted(self, window: np.ndarray) -> np.ndarray:
        """By target, then by source: upwards and downwards by turns, so that neighbours are alike.

        The sort is stable: it keeps the shuffled order among equals.
        """
        targets, sources = self.steps[window], self.source_steps[window]
        turns = np.unique(targets, return_inverse=True)[1] % 2
        return np.lexsort((np.where(turns, -sources, sources), targets))

    def _cut(self, window: np.ndarray) -> list[np.ndarray]:
        if self.batch_tokens is None:
            starts = range(0, len(window), self.batch_size)
            return [window[start : start + self.batch_size] for start in starts]
        batches = []
        start = longest = longest_source = 0
        sizes = zip(self.steps[window].tolist(), self.source_steps[window].tolist(), strict=True)
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
        lengths = int(self.steps[units].max()), int(self.source_steps[units].max())
        return Batch(rows, lengths[0], tokens, lengths[1], self.units.shape[1])


def _to_buckets(lengths: np.ndarray) -> np.ndarray:
    edges = np.array(bucket_lengths(int(lengths.max())))
    return edges[np.searchsorted(edges, lengths)]


def padding_share(batches: list[Batch]) -> float:
    """The part of all token slots that is padding, 0 to 1."""
    slots = sum(batch.slots for batch in batches)
    return 1 - sum(batch.tokens for batch in batches) / slots if slots else 0.0
