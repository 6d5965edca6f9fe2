"""A prepared corpus as one stream of tokens: `packing.Stream`, read from the disk row by row."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from tfllm.tasks.base import IGNORED


@dataclass(frozen=True)
class CorpusStream:
    """Documents one after another, the first again after the last, each between special tokens.

    `corpus`: a `data.corpora.corpus.Corpus` or what reads like it. `documents=False`: all is one
    document.
    """

    corpus: Any
    before: tuple[int, ...] = ()
    """ids before every document"""
    after: tuple[int, ...] = ()
    """ids after every document"""
    documents: bool = True

    @cached_property
    def _ends(self) -> np.ndarray:
        """int64 [M]: the place in the corpus behind every document's last token."""
        ends = np.asarray(self.corpus.token_starts[self.corpus.document_starts[1:]])
        return ends if self.documents else ends[-1:]

    @cached_property
    def starts(self) -> np.ndarray:
        """int64 [M]: where in the stream the documents begin."""
        specials = np.arange(len(self._ends)) * (len(self.before) + len(self.after))
        return np.concatenate([[0], self._ends[:-1]]) + specials

    def __len__(self) -> int:
        return int(self._ends[-1]) + len(self._ends) * (len(self.before) + len(self.after))

    def document_of(self, places: np.ndarray) -> np.ndarray:
        """The number of the document at each place: int [T]."""
        return np.searchsorted(self.starts, places % len(self), side="right") - 1

    def tokens(self, places: np.ndarray) -> np.ndarray:
        """Ids at consecutive places of the ring: int32 [T]."""
        begin, count = int(places[0]) % len(self), len(places)
        parts = []
        while count:
            part = self._read(begin, min(begin + count, len(self)))
            parts.append(part)
            begin, count = 0, count - len(part)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def segments(self, places: np.ndarray) -> np.ndarray:
        """The number of each token's document within the row, from 1: int32 [T]."""
        numbers = self.document_of(places) + places // len(self) * len(self.starts)
        return (numbers - numbers[0] + 1).astype(np.int32)

    def targets(self, places: np.ndarray) -> np.ndarray:
        """The token after each, IGNORED where that is another document's."""
        after = places + 1
        found = np.searchsorted(self.starts, after % len(self))
        begins = self.starts[np.minimum(found, len(self.starts) - 1)] == after % len(self)
        return np.where(begins, IGNORED, self.tokens(after)).astype(np.int32)

    def _read(self, begin: int, end: int) -> np.ndarray:
        """Ids at the places begin ... end, without going round."""
        parts = []
        number = int(np.searchsorted(self.starts, begin, side="right")) - 1
        while begin < end:
            first = int(self._ends[number - 1]) if number else 0
            last = int(self._ends[number])
            place = begin - int(self.starts[number]) - len(self.before)  # in the document
            stop = min(end - begin + place, last - first + len(self.after))
            if place < 0:
                parts.append(np.array(self.before[place:][: end - begin], np.int32))
            inside = max(place, 0), min(stop, last - first)
            if inside[0] < inside[1]:
                parts.append(self.corpus.tokens(first + inside[0], first + inside[1]))
            if stop > last - first:
                behind = max(place - (last - first), 0)
                parts.append(np.array(self.after[behind : stop - (last - first)], np.int32))
            begin += stop - place
            number += 1
        return np.concatenate(parts)
