"""Texts to token ids in bulk: what a worker of `tfllm prepare` does with a batch of documents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tfllm.data.corpora.sentence_splitter import split_sentences
from tfllm.data.corpora.tfrecords import Encoded, joined, token_type
from tfllm.tokenizers.base import Tokenizer
from tfllm.tokenizers.loading import load_tokenizer
from tfllm.tokenizers.rows import replace_surrogates
from tfllm.tokenizers.wordpiece import WordPiece

REMEMBERED_WORDS = 200_000  # about 40 MB; then the memory is cleared
# Texts with longer words have no spaces to speak of: their "words" hardly ever come back.
LONGEST_MEAN_WORD = 20
WITH_SPACES = ("bytepair", "characters")  # kinds whose tokens hold white space

SentenceSplit = Literal["punctuation", "lines", "none"]


class BulkEncoder:
    """Sentences to the bytes of their ids, without special tokens around them.

    BERT's WordPiece reads nothing across a space, so a word's ids are looked up once and kept:
    several times quicker than the package, with the same ids.
    """

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.dtype = token_type(tokenizer.vocabulary_size)
        self._known: dict[str, bytes] = {}
        self._by_word = isinstance(tokenizer, WordPiece) and not any(
            " " in token for token in tokenizer.matched_token_texts
        )

    def __call__(self, texts: Sequence[str]) -> list[bytes]:
        if not self._by_word:
            return self._directly(texts)
        rows = [text.split(" ") for text in texts]
        count = sum(map(len, rows))
        if sum(map(len, texts)) > LONGEST_MEAN_WORD * count:
            return self._directly(texts)
        if len(self._known) > REMEMBERED_WORDS:
            self._known.clear()
        known = self._known
        words = list({word for row in rows for word in row if word not in known})
        known.update(zip(words, self._directly(words), strict=True))
        return [b"".join([known[word] for word in row]) for row in rows]

    def _directly(self, texts: Sequence[str]) -> list[bytes]:
        rows = self.tokenizer.encode_ids(texts, add_special_tokens=False)
        return [np.array(row, self.dtype).tobytes() for row in rows]


class DocumentEncoder:
    """Documents to records: sentences, their ids, and where everything stands."""

    def __init__(self, tokenizer: Tokenizer, cut: SentenceSplit, join_lines: bool = False):
        self.encode = BulkEncoder(tokenizer)
        self.cut = cut
        self.join_lines = join_lines
        self.keep_spaces = tokenizer.kind in WITH_SPACES

    def __call__(self, batch: tuple[Sequence[int], Sequence[str]]) -> Encoded:
        """(ordinals, texts) to records; sentences and documents without a token are left out."""
        ordinals, texts = batch
        parted = [self._sentences(replace_surrogates(text)) for text in texts]
        rows = iter(self.encode([sentence for parts in parted for sentence in parts]))
        documents, kept = [], []
        for place, parts in enumerate(parted):
            tokens = [row for _ in parts if (row := next(rows))]
            if tokens:
                documents.append(tokens)
                kept.append(place)
        return joined(
            documents,
            self.encode.dtype,
            [ordinals[place] for place in kept],
            [len(texts[place]) for place in kept],
            self.encode.tokenizer.unk_token_id,
        )

    def _sentences(self, text: str) -> list[str]:
        if self.cut == "punctuation":
            return split_sentences(text, join_lines=self.join_lines, keep_spaces=self.keep_spaces)
        if self.cut == "none":
            return [text.replace("\n", " ") if self.join_lines else text]
        return [line for line in text.splitlines(self.keep_spaces) if line.strip()]


_encoder: Any = None  # a worker process's own


def start(tokenizer: str, cut: SentenceSplit, join_lines: bool) -> None:
    """Makes a worker ready: loads the tokenizer of a directory."""
    global _encoder
    _encoder = DocumentEncoder(load_tokenizer(Path(tokenizer)), cut, join_lines)


def encode(batch: tuple[Sequence[int], Sequence[str]]) -> Encoded:
    """A batch of documents, in a worker that `start` has made ready."""
    return _encoder(batch)
