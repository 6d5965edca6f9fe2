"""Tokenization in bulk: what a worker process of `tfllm prepare` does with a batch of documents."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from tfllm.data.corpora.sentence_splitter import split_sentences
from tfllm.data.corpora.tfrecords import Encoded, joined, token_type
from tfllm.tokenizers.base import Tokenizer
from tfllm.tokenizers.loading import load_tokenizer
from tfllm.tokenizers.rows import replace_surrogates
from tfllm.tokenizers.wordpiece import WordPiece

CACHED_WORDS = 200_000  # about 40 MB; then the cache is cleared
# Texts with longer words have hardly any spaces: their "words" are rarely repeated.
MAX_MEAN_WORD_LENGTH = 20
WITH_SPACES = ("bytepair", "characters")  # kinds whose tokens hold white space

SentenceSplit = Literal["punctuation", "lines", "none"]


class BulkEncoder:
    """Encode sentences to the bytes of their ids, without special tokens.

    WordPiece tokens never span a space, so the ids of words are cached: several times faster than
    the tokenizers package, with the same ids.
    """

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.dtype = token_type(tokenizer.vocabulary_size)
        self._cache: dict[str, bytes] = {}
        self._by_word = isinstance(tokenizer, WordPiece) and not any(
            " " in token for token in tokenizer.matched_token_texts
        )

    def __call__(self, texts: Sequence[str]) -> list[bytes]:
        if not self._by_word:
            return self._encode(texts)
        rows = [text.split(" ") for text in texts]
        count = sum(map(len, rows))
        if sum(map(len, texts)) > MAX_MEAN_WORD_LENGTH * count:
            return self._encode(texts)
        if len(self._cache) > CACHED_WORDS:
            self._cache.clear()
        cache = self._cache
        words = list({word for row in rows for word in row if word not in cache})
        cache.update(zip(words, self._encode(words), strict=True))
        return [b"".join([cache[word] for word in row]) for row in rows]

    def _encode(self, texts: Sequence[str]) -> list[bytes]:
        rows = self.tokenizer.encode_ids(texts, add_special_tokens=False)
        return [np.array(row, self.dtype).tobytes() for row in rows]


class DocumentEncoder:
    """Encode documents to TFRecord records.

    Args:
        tokenizer: Of the corpus.
        split: How documents are split into sentences.
        join_lines: Whether a line end is a space.
    """

    def __init__(self, tokenizer: Tokenizer, split: SentenceSplit, join_lines: bool = False):
        self.encode = BulkEncoder(tokenizer)
        self.split = split
        self.join_lines = join_lines
        self.keep_spaces = tokenizer.kind in WITH_SPACES

    def __call__(self, batch: tuple[Sequence[int], Sequence[str]]) -> Encoded:
        """Encode (ordinals, texts); sentences and documents without tokens are dropped."""
        ordinals, texts = batch
        sentences = [self._sentences(replace_surrogates(text)) for text in texts]
        rows = iter(self.encode([sentence for document in sentences for sentence in document]))
        documents, indices = [], []
        for index, document in enumerate(sentences):
            tokens = [row for _ in document if (row := next(rows))]
            if tokens:
                documents.append(tokens)
                indices.append(index)
        return joined(
            documents,
            self.encode.dtype,
            [ordinals[index] for index in indices],
            [len(texts[index]) for index in indices],
            self.encode.tokenizer.unk_token_id,
        )

    def _sentences(self, text: str) -> list[str]:
        if self.split == "punctuation":
            return split_sentences(text, join_lines=self.join_lines, keep_spaces=self.keep_spaces)
        if self.split == "none":
            return [text.replace("\n", " ") if self.join_lines else text]
        return [line for line in text.splitlines(self.keep_spaces) if line.strip()]


@functools.cache
def document_encoder(tokenizer: str, split: SentenceSplit, join_lines: bool) -> DocumentEncoder:
    """Return this process's encoder, with the tokenizer of a directory, loaded once."""
    return DocumentEncoder(load_tokenizer(Path(tokenizer)), split, join_lines)


def start_worker(tokenizer: str, split: SentenceSplit, join_lines: bool) -> None:
    """Load this process's encoder anew."""
    document_encoder.cache_clear()
    document_encoder(tokenizer, split, join_lines)


def encode_batch(
    batch: tuple[Sequence[int], Sequence[str]],
    tokenizer: str,
    split: SentenceSplit,
    join_lines: bool,
) -> Encoded:
    """Encode documents (ordinals, texts); run in a worker process."""
    return document_encoder(tokenizer, split, join_lines)(batch)
