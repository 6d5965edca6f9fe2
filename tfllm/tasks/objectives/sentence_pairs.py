"""Pairs of text that follow one another, or do not (Devlin et al. 2019, section 3.1, task 2).

As `create_pretraining_data.py` of google-research/bert makes them: sentences of a document are put
together until they fill a row (every tenth document's rows are shorter), cut in two at random, and
in half of the cases the second part is replaced by sentences of another document. What is too long
loses tokens at both ends. Two things differ, so that row i of an epoch can be made without those
before it: sentences that were replaced are not put back into the next row (another epoch has them),
and a row's length does not depend on the epoch, nor on whether its parts follow one another.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tfllm.errors import DataError
from tfllm.tasks.features import TokenCorpus

SHORTER_SHARE = 0.1  # of the documents: their rows have any length
RANDOM_SHARE = 0.5  # of the pairs
SMALLEST = 2  # tokens of a pair: one each
LENGTHS_SEED = 2019  # which documents have shorter rows is the same in every run


class Pair(NamedTuple):
    """Two ranges of positions of tokens, [begin, end) each."""

    first: tuple[int, int]
    second: tuple[int, int]
    is_next: bool


@dataclass(frozen=True)
class PairPlan:
    """The rows of one corpus. All arrays are int [rows]."""

    sentences: TokenCorpus
    document: np.ndarray
    begin: np.ndarray  # the row's first sentence
    end: np.ndarray  # behind its last
    total: np.ndarray  # tokens of both parts together
    by_size: np.ndarray  # int [M]: documents, the shortest first
    sizes: np.ndarray  # int [M]: their tokens, in this order

    def __len__(self) -> int:
        return len(self.begin)

    def pair(self, row: int, rng: np.random.Generator) -> Pair:
        """Draw the two parts of a row.

        Args:
            row: The row.
            rng: The random numbers.
        """
        begin, end, total = int(self.begin[row]), int(self.end[row]), int(self.total[row])
        cut = begin + (1 if end - begin < 2 else int(rng.integers(1, end - begin)))
        positions = self.sentences.token_starts
        first = (int(positions[begin]), int(positions[cut]))
        replaced = end - begin < 2 or rng.random() < RANDOM_SHARE
        second = (first[1], int(positions[end]))
        if replaced:
            needed = max(1, total - (first[1] - first[0]))
            second = self._random_segment(int(self.document[row]), needed, rng)
        return Pair(*truncate_pair(first, second, total, rng), not replaced)

    def _random_segment(
        self, document: int, needed: int, rng: np.random.Generator
    ) -> tuple[int, int]:
        """Whole sentences of another document, at least `needed` tokens together, or all that a
        document has where none has as many."""
        count = len(self.sizes)
        first = min(int(np.searchsorted(self.sizes, needed)), count - 2)
        drawn = first + int(rng.integers(count - first))
        if self.by_size[drawn] == document:
            drawn = first + (drawn + 1 - first) % (count - first)
        other = int(self.by_size[drawn])
        starts, positions = self.sentences.document_starts, self.sentences.token_starts
        low, high = int(starts[other]), int(starts[other + 1])
        own = positions[low : high + 1]
        # The last sentence from which on there is enough.
        last = int(np.searchsorted(own, own[-1] - needed, side="right")) - 1
        start = int(rng.integers(max(last, 0) + 1))
        end = min(int(np.searchsorted(own, own[start] + needed)), high - low)
        return int(own[start]), int(own[end])


def truncate_pair(
    first: tuple[int, int], second: tuple[int, int], total: int, rng: np.random.Generator
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Truncate two ranges of tokens to `total` tokens together (Devlin et al. 2019).

    The longer one loses a token at a time, the second where both are equal, each at its begin or
    its end.

    Args:
        first: Positions (begin, end).
        second: Positions (begin, end).
        total: Tokens at most.
        rng: The random numbers.
    """
    lengths = [first[1] - first[0], second[1] - second[0]]
    if sum(lengths) <= total:
        return first, second
    shorter = min(lengths)
    sizes = [length if length == shorter else total - shorter for length in lengths]
    if 2 * shorter > total or lengths[0] == lengths[1]:
        sizes = [total - total // 2, total // 2]
    ranges = []
    for (begin, end), length in zip((first, second), sizes, strict=True):
        before = int(rng.binomial(end - begin - length, 0.5))
        ranges.append((begin + before, begin + before + length))
    return ranges[0], ranges[1]


def plan_pairs(sentences: TokenCorpus, room: int) -> PairPlan:
    """Divide sentences into rows.

    Args:
        sentences: Documents with their sentences.
        room: Tokens of a row at most, special tokens not counted.

    Raises:
        DataError: There is one document alone, and no other to draw second parts from.
    """
    starts, positions = map(np.asarray, (sentences.document_starts, sentences.token_starts))
    sizes = np.diff(positions[starts])
    if len(sizes) < 2:
        raise DataError(
            "Pairs that do not follow one another need two documents, and the training data has "
            f"{len(sizes)}. Give more documents, or use the task masked_lm."
        )
    rng = np.random.default_rng(LENGTHS_SEED)
    rows = array("q")  # four numbers a row, without an object for each
    for document, (low, high) in enumerate(zip(starts[:-1], starts[1:], strict=True)):
        target = room
        if rng.random() < SHORTER_SHARE:
            target = int(rng.integers(SMALLEST, room + 1))
        for first, last, tokens in _chunks(positions[low : high + 1], target, room):
            rows.extend((document, int(low) + first, int(low) + last, tokens))
    document_of, begin, end, total = np.frombuffer(rows, np.int64).reshape(-1, 4).T
    by_size = np.argsort(sizes, kind="stable")
    return PairPlan(sentences, document_of, begin, end, total, by_size, sizes[by_size])


def _chunks(own: np.ndarray, target: int, room: int) -> Iterator[tuple[int, int, int]]:
    """(begin, end, tokens of a row) of a document's rows, in sentences of the document.

    `own` [n + 1]: positions of its sentences. A row ends with the sentence that reaches `target`.
    One of a single sentence gets its second part from elsewhere, and fills up to `target`.
    """
    begin, count = 0, len(own) - 1
    while begin < count:
        end = min(int(np.searchsorted(own, own[begin] + target)), count)
        end = max(end, begin + 1)
        tokens = int(own[end] - own[begin])
        total = min(tokens, room) if end - begin > 1 else max(target, min(tokens, room))
        yield begin, end, max(total, SMALLEST)
        begin = end
