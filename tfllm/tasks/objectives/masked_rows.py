"""Rows whose tokens are hidden when a batch is made: nothing is kept but the texts' own tokens.

Row i of an epoch is a function of (seed, epoch, i) alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tfllm.tasks.base import Features, Made
from tfllm.tasks.objectives import masking, packing


@dataclass(frozen=True)
class Plain:
    """A row before anything is hidden."""

    ids: np.ndarray  # int32 [T]
    types: np.ndarray  # int32 [T]
    free: np.ndarray  # bool [T]: may be hidden
    label: int | None = None  # of the pair


@dataclass(frozen=True)
class Hidden:
    """A row as the model gets it."""

    ids: np.ndarray  # int32 [T]
    types: np.ndarray  # int32 [T]
    target: np.ndarray  # int32 [T]
    places: np.ndarray  # int [M], in order: where tokens are to be told
    label: int | None = None


@dataclass(frozen=True)
class MaskedFeatures(Features):
    """Features that `drawn` gives their masks; `batch` has a further input `positions` then.

    `positions` int32 [B, P] are the places to be told, 0 (the first token) behind the last: a model
    that is trained computes scores there only (`tfllm.layers.heads.masked_lm_at_positions`).
    """

    plain: Callable[[int, np.random.Generator, int], Plain] | None = None
    """A row by its number; chance that the row may use; and places that windows are moved by."""
    rule: masking.Rule | None = None
    draw: tuple[int, int] | None = None
    """(seed, epoch); None: nothing is hidden"""
    moved: int = 0
    """places that windows are moved by in this epoch"""

    def hidden(self, row: int) -> Hidden:
        """The row of this epoch."""
        assert self.plain is not None and self.rule is not None and self.draw is not None
        chance = np.random.default_rng((*self.draw, int(row)))
        plain = self.plain(int(row), chance, self.moved)
        places = masking.chosen(plain.ids, plain.free, self.rule, chance)
        ids, target = masking.hidden(plain.ids, places, self.rule, chance)
        return Hidden(ids, plain.types, target, places, plain.label)

    def batch(
        self, rows: Sequence[int] | np.ndarray, length: int | None = None
    ) -> tuple[dict[str, np.ndarray], Any]:
        """As Features.batch, every row made once.

        Where pairs have labels, targets are {`tokens`: [B, T], `next_sentence`: [B]}.
        """
        if self.draw is None:
            return super().batch(rows, length)
        assert self.rule is not None
        made = [self.hidden(row) for row in rows]
        once = replace(
            self,
            token_ids=[row.ids for row in made],
            segment_ids=[row.types for row in made],
            targets=None if self.targets is None else [row.target for row in made],
            draw=None,
        )
        inputs, targets = once.batch(range(len(made)), length)
        size = self.rule.count(inputs["token_ids"].shape[1])
        inputs["positions"] = np.zeros((len(made), size), np.int32)
        for filled, row in zip(inputs["positions"], made, strict=True):
            kept = row.places[row.places < inputs["token_ids"].shape[1]][:size]
            filled[: len(kept)] = kept
        labels = [row.label for row in made]
        if targets is None or None in labels:
            return inputs, targets
        return inputs, {"tokens": targets, "next_sentence": np.array(labels, np.int32)}


def drawn(features: MaskedFeatures, seed: int, epoch: int) -> MaskedFeatures:
    """The features with masks drawn by (seed, epoch, row)."""
    count = len(features)
    changed = replace(
        features,
        draw=(seed, epoch),
        moved=packing.shift(features.shift, seed, epoch) if features.shift else 0,
        per_token=True,
        row_lengths=features.lengths,
    )
    return replace(
        changed,
        token_ids=Made(count, lambda row: changed.hidden(row).ids),
        segment_ids=Made(count, lambda row: changed.hidden(row).types),
        targets=Made(count, lambda row: changed.hidden(row).target),
    )
