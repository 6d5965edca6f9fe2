"""Span corruption as rows of sources and targets: those of one epoch, made when asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfllm.tasks.objectives import span_corruption
from tfllm.tasks.objectives.source_target_rows import Pair


@dataclass(frozen=True)
class SpanPairs(Sequence[Pair]):
    """Sources and targets of one epoch, made when asked for."""

    rows: span_corruption.Rows
    draw: tuple[int, int] = (0, 0)
    """(seed, epoch)"""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return [self[number] for number in range(*row.indices(len(self)))]
        return self.rows.row(int(row), *self.draw)

    @property
    def lengths(self) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of every source and of every target: the same in every epoch."""
        full, count = self.rows.length, len(self)
        sizes = [full, len(self.rows.stream) - full * (count - 1)]
        either = np.array([self._lengths(size) for size in sizes], np.int64)
        every = np.repeat(either, [count - 1, 1], axis=0)
        return every[:, 0], every[:, 1]

    def _lengths(self, size: int) -> tuple[int, int]:
        """Tokens of the source and the target of a text of `size` tokens."""
        chance = np.random.default_rng(0)  # any: the numbers of both depend on the length alone
        noise = span_corruption.noise_mask(size, chance, self.rows.density, self.rows.mean_span)
        source, target = span_corruption.corrupted(
            np.zeros(size, np.int32), noise, self.rows.sentinels, self.rows.eos_token_id
        )
        return len(source), len(target)
