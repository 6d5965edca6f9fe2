"""Which tokens of a row are masked, and what replaces them (Devlin et al. 2019, 3.1).

Single tokens, whole words, or in scripts that put no spaces between words spans of characters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tfllm.data.corpora.word_boundaries import ideographs, word_starts
from tfllm.errors import SettingError
from tfllm.tasks.features import IGNORED, Features, LazyArrays
from tfllm.tasks.objectives import packing

if TYPE_CHECKING:
    from tfllm.tokenizers.base import Tokenizer

# Of the masked positions, the share that becomes [MASK], and another token of the vocabulary.
MASKED, RANDOM = 0.8, 0.1

# Shares of spans of 1, 2, 3 and 4 characters (the n-grams of MacBERT: Cui et al. 2020, 3.1).
SPAN_SHARES = (0.4, 0.3, 0.2, 0.1)


@dataclass(frozen=True)
class MaskingRule:
    """How tokens are masked, with what that takes of the vocabulary."""

    probability: float
    mask_token_id: int
    vocabulary_size: int
    begins: np.ndarray | None = None
    """bool [V]: tokens that begin a word; None: tokens are chosen singly"""
    unspaced: np.ndarray | None = None
    """bool [V]: tokens of scripts without spaces, which are masked in spans"""

    def count(self, length: int) -> int:
        """Return how many tokens of a row are masked, of `length` with special tokens."""
        return max(1, round(length * self.probability))


def masking_rule(tokenizer: Tokenizer, probability: float, whole_word: bool = False) -> MaskingRule:
    """Return the rule for a vocabulary.

    Args:
        tokenizer: The model's tokenizer.
        probability: Share of tokens that are masked.
        whole_word: Whether all pieces of a word are masked together.

    Raises:
        SettingError: The vocabulary has no mask token, or does not say where words begin.
    """
    if tokenizer.mask_token_id is None:
        raise SettingError(
            "The vocabulary has no mask token, such as [MASK]. Use one that has, or learn one: "
            "tfllm tokenizer train --kind wordpiece."
        )
    facts = (probability, tokenizer.mask_token_id, tokenizer.vocabulary_size)
    if not whole_word:
        return MaskingRule(*facts)
    begins = word_starts(tokenizer)
    if begins is None:
        raise SettingError(
            f"task.whole_word: a vocabulary of {tokenizer.kind} does not say where words begin. "
            "Use wordpiece, byte-level BPE or SentencePiece, or remove the key."
        )
    return MaskingRule(*facts, begins, ideographs(tokenizer))


def choose_positions(
    ids: np.ndarray, free: np.ndarray, rule: MaskingRule, rng: np.random.Generator
) -> np.ndarray:
    """Choose the positions to mask.

    Whole words are taken as long as they fit; a single word that is longer than all there may be
    is masked in part.

    Args:
        ids: Tokens of the row: [T].
        free: bool [T]: positions that may be masked.
        rule: How tokens are masked.
        rng: The generator of the row.

    Returns:
        Positions in order, int [M]: at most `rule.count(T)`, and at least one where any is free.
    """
    positions = np.flatnonzero(free)
    limit = rule.count(len(ids))
    if rule.begins is None:
        return np.sort(rng.permutation(positions)[:limit])
    if not len(positions):
        return positions
    words = np.split(positions, np.flatnonzero(_starts(ids[positions], positions, rule, rng))[1:])
    chosen: list[np.ndarray] = []
    room = limit
    for number in rng.permutation(len(words)):
        if len(words[number]) <= room:
            chosen.append(words[number])
            room -= len(words[number])
        if not room:
            break
    return np.sort(np.concatenate(chosen or [words[0][:limit]]))


def _starts(
    ids: np.ndarray, positions: np.ndarray, rule: MaskingRule, rng: np.random.Generator
) -> np.ndarray:
    """Whether a word or a span begins at each of `positions`: bool [P], the first always."""
    assert rule.begins is not None and rule.unspaced is not None
    starts = rule.begins[ids].copy()
    starts[0] = True
    starts[1:] |= np.diff(positions) > 1
    unspaced = np.flatnonzero(rule.unspaced[ids])
    if len(unspaced):
        # A run of such tokens is cut into spans; the lengths are drawn for the row as a whole.
        sizes = rng.choice(np.arange(1, 1 + len(SPAN_SHARES)), len(unspaced), p=SPAN_SHARES)
        cuts = np.zeros(len(unspaced), bool)
        ends = np.cumsum(sizes)
        cuts[ends[ends < len(unspaced)]] = True
        cuts[0] = True  # so does every run
        cuts[1:] |= np.diff(positions[unspaced]) > 1
        starts[unspaced] = cuts
    return starts


def mask_tokens(
    ids: np.ndarray, positions: np.ndarray, rule: MaskingRule, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Mask tokens: 80 % become [MASK], 10 % any token, 10 % stay (Devlin et al. 2019).

    Args:
        ids: Token ids int [T].
        positions: Positions of the tokens to predict int [M].
        rule: How tokens are masked.
        rng: The random numbers.

    Returns:
        The masked ids, and the targets, -100 where there is none: int32 [T] each.
    """
    target = np.full(len(ids), IGNORED, np.int32)
    target[positions] = ids[positions]
    draws = rng.random(len(positions))
    others = rng.integers(rule.vocabulary_size, size=len(positions))
    result = np.array(ids, np.int32)
    result[positions[draws < MASKED]] = rule.mask_token_id
    other = (draws >= MASKED) & (draws < MASKED + RANDOM)
    result[positions[other]] = others[other]
    return result, target


@dataclass(frozen=True)
class UnmaskedRow:
    """A row before masking."""

    ids: np.ndarray  # int32 [T]
    types: np.ndarray  # int32 [T]
    free: np.ndarray  # bool [T]: may be masked
    label: int | None = None  # of the pair


@dataclass(frozen=True)
class MaskedRow:
    """A row with masked tokens."""

    ids: np.ndarray  # int32 [T]
    types: np.ndarray  # int32 [T]
    target: np.ndarray  # int32 [T]
    positions: np.ndarray  # int [M], in order: where tokens are masked
    label: int | None = None


@dataclass(frozen=True)
class MaskedFeatures(Features):
    """Features that `draw_masks` gives their masks; `batch` then has a further input `positions`.

    `positions` int32 [B, P] are the masked positions, padded with 0: a model in training computes
    logits there only (`tfllm.layers.heads.masked_lm_at_positions`).
    """

    unmasked: Callable[[int, np.random.Generator, int], UnmaskedRow] | None = None
    """(row number, generator for the row's random choices, shift of windows) to the row"""
    rule: MaskingRule | None = None
    draw: tuple[int, int] | None = None
    """(seed, epoch); None: nothing is masked"""
    moved: int = 0
    """positions that windows are moved by in this epoch"""

    def masked_row(self, row: int) -> MaskedRow:
        """Return the row of this epoch."""
        assert self.unmasked is not None and self.rule is not None and self.draw is not None
        rng = np.random.default_rng((*self.draw, int(row)))
        row_before = self.unmasked(int(row), rng, self.moved)
        positions = choose_positions(row_before.ids, row_before.free, self.rule, rng)
        ids, target = mask_tokens(row_before.ids, positions, self.rule, rng)
        return MaskedRow(ids, row_before.types, target, positions, row_before.label)

    def batch(
        self, rows: Sequence[int] | np.ndarray, length: int | None = None
    ) -> tuple[dict[str, np.ndarray], Any]:
        """Return a batch as `Features.batch` does, with every row drawn once.

        Where pairs have labels, targets are {`tokens`: [B, T], `next_sentence`: [B]}.
        """
        if self.draw is None:
            return super().batch(rows, length)
        assert self.rule is not None
        masked = [self.masked_row(row) for row in rows]
        features = replace(
            self,
            token_ids=[row.ids for row in masked],
            segment_ids=[row.types for row in masked],
            targets=None if self.targets is None else [row.target for row in masked],
            draw=None,
        )
        inputs, targets = features.batch(range(len(masked)), length)
        size = self.rule.count(inputs["token_ids"].shape[1])
        inputs["positions"] = np.zeros((len(masked), size), np.int32)
        for output, row in zip(inputs["positions"], masked, strict=True):
            inside = row.positions[row.positions < inputs["token_ids"].shape[1]][:size]
            output[: len(inside)] = inside
        labels = [row.label for row in masked]
        if targets is None or None in labels:
            return inputs, targets
        return inputs, {"tokens": targets, "next_sentence": np.array(labels, np.int32)}


def draw_masks(features: MaskedFeatures, seed: int, epoch: int) -> MaskedFeatures:
    """Return the features with masks that are a function of (seed, epoch, row)."""
    count = len(features)
    changed = replace(
        features,
        draw=(seed, epoch),
        moved=packing.epoch_shift(features.shift, seed, epoch) if features.shift else 0,
        per_token=True,
        row_lengths=features.lengths,
    )
    return replace(
        changed,
        token_ids=LazyArrays(count, lambda row: changed.masked_row(row).ids),
        segment_ids=LazyArrays(count, lambda row: changed.masked_row(row).types),
        targets=LazyArrays(count, lambda row: changed.masked_row(row).target),
    )
