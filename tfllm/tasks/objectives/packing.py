"""Texts as one stream of tokens, and rows cut from it without a copy.

    | <s> a a a </s> | <s> b b </s> | <s> c c c c c c </s> |      the stream: documents in a ring
    |----- row 0 -----|----- row 1 -----|----- row 2 -----|      windows of it, full but the last

A row may hold several documents; `document_ids` number them from 1, and no token attends to
another document or is predicted from one. The stream takes two or four bytes a token.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tfllm.tasks.features import IGNORED, TokenCorpus


@dataclass(frozen=True)
class TokenStream:
    """Documents one after another, the first again after the last."""

    ids: np.ndarray
    """uint16 or int32 [N]"""
    first: np.ndarray
    """bool [N]: whether a document begins here"""
    learned: np.ndarray | None = None
    """bool [N]: whether the token is a target; None: all are"""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def starts(self) -> np.ndarray:
        """Where the documents begin: int [documents]."""
        return np.flatnonzero(self.first)

    def tokens(self, positions: np.ndarray) -> np.ndarray:
        """Return the ids at consecutive positions, which wrap around at the end: int32 [T]."""
        return self.ids[positions % len(self)].astype(np.int32)

    def document_ids(self, positions: np.ndarray) -> np.ndarray:
        """Return the number of each token's document within the row, from 1: int32 [T]."""
        numbers = np.cumsum(self.first[positions % len(self)], dtype=np.int32)
        return numbers + (1 - numbers[0])

    def targets(self, positions: np.ndarray) -> np.ndarray:
        """Return the token after each, IGNORED where that is another document's or not learned."""
        after = (positions + 1) % len(self)
        counts = ~self.first[after]
        if self.learned is not None:
            counts &= self.learned[after]
        return np.where(counts, self.ids[after].astype(np.int32), IGNORED).astype(np.int32)


@dataclass(frozen=True)
class CorpusTokenStream:
    """Documents one after another, the first again after the last, each between special tokens.

    `corpus`: a `data.corpora.corpus.Corpus` or what reads like it. `documents=False`: all is one
    document.
    """

    corpus: TokenCorpus
    before: tuple[int, ...] = ()
    """ids before every document"""
    after: tuple[int, ...] = ()
    """ids after every document"""
    documents: bool = True

    @cached_property
    def _ends(self) -> np.ndarray:
        """int64 [M]: the position in the corpus behind every document's last token."""
        ends = np.asarray(self.corpus.token_starts[self.corpus.document_starts[1:]])
        return ends if self.documents else ends[-1:]

    @cached_property
    def starts(self) -> np.ndarray:
        """int64 [M]: where in the stream the documents begin."""
        specials = np.arange(len(self._ends)) * (len(self.before) + len(self.after))
        return np.concatenate([[0], self._ends[:-1]]) + specials

    def __len__(self) -> int:
        return int(self._ends[-1]) + len(self._ends) * (len(self.before) + len(self.after))

    def document_of(self, positions: np.ndarray) -> np.ndarray:
        """Return the number of the document at each position: int [T]."""
        return np.searchsorted(self.starts, positions % len(self), side="right") - 1

    def tokens(self, positions: np.ndarray) -> np.ndarray:
        """Return the ids at consecutive positions, which wrap around at the end: int32 [T]."""
        begin, count = int(positions[0]) % len(self), len(positions)
        parts = []
        while count:
            part = self._read(begin, min(begin + count, len(self)))
            parts.append(part)
            begin, count = 0, count - len(part)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def document_ids(self, positions: np.ndarray) -> np.ndarray:
        """Return the number of each token's document within the row, from 1: int32 [T]."""
        numbers = self.document_of(positions) + positions // len(self) * len(self.starts)
        return (numbers - numbers[0] + 1).astype(np.int32)

    def targets(self, positions: np.ndarray) -> np.ndarray:
        """Return the token after each, IGNORED where that is another document's."""
        after = positions + 1
        document = np.searchsorted(self.starts, after % len(self))
        begins = self.starts[np.minimum(document, len(self.starts) - 1)] == after % len(self)
        return np.where(begins, IGNORED, self.tokens(after)).astype(np.int32)

    def _read(self, begin: int, end: int) -> np.ndarray:
        """Ids at the positions begin ... end, without going round."""
        parts = []
        number = int(np.searchsorted(self.starts, begin, side="right")) - 1
        while begin < end:
            first = int(self._ends[number - 1]) if number else 0
            last = int(self._ends[number])
            position = begin - int(self.starts[number]) - len(self.before)  # in the document
            stop = min(end - begin + position, last - first + len(self.after))
            if position < 0:
                parts.append(np.array(self.before[position:][: end - begin], np.int32))
            inside = max(position, 0), min(stop, last - first)
            if inside[0] < inside[1]:
                parts.append(self.corpus.tokens(first + inside[0], first + inside[1]))
            if stop > last - first:
                behind = max(position - (last - first), 0)
                parts.append(np.array(self.after[behind : stop - (last - first)], np.int32))
            begin += stop - position
            number += 1
        return np.concatenate(parts)


def build_stream(
    documents: Iterable[tuple[np.ndarray, np.ndarray | None]], vocabulary_size: int
) -> TokenStream:
    """Concatenate documents; empty ones are left out.

    Args:
        documents: Ids int [n], and which of them are targets, bool [n] or None for all.
        vocabulary_size: Decides the type in which ids are stored.
    """
    dtype = np.uint16 if vocabulary_size <= np.iinfo(np.uint16).max + 1 else np.int32
    ids, learned = [], []
    for tokens, targets in documents:
        if len(tokens):
            ids.append(np.asarray(tokens, dtype))
            learned.append(targets)
    lengths = np.array([len(tokens) for tokens in ids], np.int64)
    first = np.zeros(int(lengths.sum()), bool)
    first[np.cumsum(lengths) - lengths] = True
    has_targets = any(targets is not None for targets in learned)
    return TokenStream(
        np.concatenate(ids) if ids else np.zeros(0, dtype),
        first,
        np.concatenate(
            [
                np.ones(n, bool) if targets is None else targets
                for n, targets in zip(lengths, learned, strict=True)
            ]
        )
        if has_targets
        else None,
    )


def windows(size: int, length: int, shift: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Divide a stream, which wraps around, into windows that hold every position once.

    Args:
        size: Tokens of the stream.
        length: Tokens of a window; the last may be shorter.
        shift: By how much all windows begin later.

    Returns:
        First position and length of each window: int [rows] each.
    """
    begins = np.arange(0, size, length)
    return begins + shift, np.minimum(length, size - begins)


def pack_documents(starts: np.ndarray, size: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Pack as many whole documents as fit into each row, in their order.

    Args:
        starts: First position of each document, ascending: int [documents].
        size: Tokens of the stream.
        length: Tokens of a row at most; no document may be longer.

    Returns:
        First position and length of each row: int [rows] each.
    """
    ends = np.append(starts[1:], size)
    begins, begin = [0], 0
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        if end - begin > length:
            begin = start
            begins.append(begin)
    rows = np.array(begins, np.int64)
    return rows, np.append(rows[1:], size) - rows


def one_document_per_row(
    starts: np.ndarray, size: int, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Put one document into each row; one that is longer than a row takes several.

    Args:
        starts: First position of each document, ascending: int [documents].
        size: Tokens of the stream.
        length: Tokens of a row at most.

    Returns:
        First position and length of each row: int [rows] each.
    """
    ends = np.append(starts[1:], size)
    begins = np.concatenate(
        [np.arange(start, end, length) for start, end in zip(starts, ends, strict=True)]
    )
    last = ends[np.searchsorted(starts, begins, side="right") - 1]
    return begins, np.minimum(length, last - begins)


def epoch_shift(length: int, seed: int, epoch: int) -> int:
    """Draw by how many tokens windows move in an epoch: 0 in the first, else below `length`."""
    return int(np.random.default_rng((seed, epoch)).integers(length)) if epoch else 0


def chunk_text(text: str, size: int = 2**16) -> Iterator[str]:
    """Split a long text into parts whose tokens need little memory.

    Parts end before the white space at a line's end, where byte-level tokenizers split anyway.

    Args:
        text: The text; the parts joined are equal to it.
        size: Characters of a part at most.
    """
    start = 0
    while len(text) - start > size:
        end = text.rfind("\n", start + 1, start + size)
        end = start + size if end < 0 else end
        solid = len(text[start:end].rstrip())
        end = start + solid if solid else end
        yield text[start:end]
        start = end
    yield text[start:]
