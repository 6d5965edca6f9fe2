"""Documents of sentences in memory, read as a prepared corpus is (`tfllm.data.corpora.corpus`)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tfllm.data.corpora.sentence_splitter import split_sentences
from tfllm.errors import DataError
from tfllm.tasks.features import Example, TokenCorpus, text_field, where

if TYPE_CHECKING:
    from tfllm.tokenizers.base import Tokenizer

GROUP = 4096  # documents that are tokenized at once

BREAK = re.compile(r"<br\s*/?>")  # a line end in texts from web pages


@dataclass(frozen=True)
class MemoryCorpus:
    """A TokenCorpus in memory: two or four bytes a token."""

    ids: np.ndarray
    sentence_lengths: np.ndarray
    document_starts: np.ndarray
    token_starts: np.ndarray
    digest: str
    numbers: np.ndarray
    """int [M]: which example each document is; those without tokens are none"""

    def tokens(self, begin: int, end: int) -> np.ndarray:
        """Return the ids at the positions from `begin` to `end`: int32 [end - begin]."""
        return self.ids[begin:end].astype(np.int32)


def tokenize_corpus(examples: Sequence[Example], tokenizer: Tokenizer) -> MemoryCorpus:
    """Tokenize examples: each text, or list of texts, is a document; empty ones are left out.

    Args:
        examples: With `text`, a text or a list of sentences.
        tokenizer: The model's tokenizer.

    Raises:
        DataError: An example has no text, or no document has a token.
    """
    dtype = np.uint16 if tokenizer.vocabulary_size <= np.iinfo(np.uint16).max + 1 else np.int32
    parts: list[np.ndarray] = []
    lengths: list[int] = []
    starts, numbers = [0], list[int]()
    for start in range(0, len(examples), GROUP):
        cut = [list(example_sentences(example)) for example in examples[start : start + GROUP]]
        flat = [sentence for document in cut for sentence in document]
        encoded = iter(tokenizer.encode_ids(flat, add_special_tokens=False))
        for number, document in enumerate(cut, start):
            full = [ids for ids in (next(encoded) for _ in document) if len(ids)]
            if full:
                parts.extend(np.asarray(ids, dtype) for ids in full)
                lengths.extend(len(ids) for ids in full)
                starts.append(len(lengths))
                numbers.append(number)
    if not parts:
        raise DataError(f"{where(examples[0]) if examples else ''}the texts have no tokens.")
    ids = np.concatenate(parts)
    ends = np.cumsum(lengths, dtype=np.int64)
    first = np.array(starts, np.int64)
    return MemoryCorpus(
        ids=ids,
        sentence_lengths=np.array(lengths, np.int64),
        document_starts=first,
        token_starts=np.concatenate([[0], ends]),
        digest=hashlib.sha256(b"".join(map(bytes, (ids, ends, first)))).hexdigest()[:16],
        numbers=np.array(numbers, np.int64),
    )


def example_indices(corpus: TokenCorpus, document: np.ndarray) -> np.ndarray:
    """Return the index of the example of each document: int [rows].

    Args:
        corpus: The documents.
        document: Indices of documents: int [rows].
    """
    numbers = getattr(corpus, "numbers", None)
    return document if numbers is None else numbers[document]


def example_sentences(example: Example) -> Iterator[str]:
    """Yield the sentences of a text; each part of a list of texts ends one."""
    value = example.get("text")
    texts = value if isinstance(value, list | tuple) else [text_field(example)]
    for text in texts:
        yield from split_sentences(BREAK.sub("\n", str(text)))
