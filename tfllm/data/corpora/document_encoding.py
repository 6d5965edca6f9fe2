"""Tokenization of batches of documents in the worker processes of `tfllm prepare`."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from tfllm.data.corpora.sentence_splitter import split_sentences
from tfllm.data.corpora.tfrecords import Encoded, records_from_bytes, token_type
from tfllm.tokenizers.base import Tokenizer
from tfllm.tokenizers.loading import load_tokenizer
from tfllm.tokenizers.rows import replace_surrogates
from tfllm.tokenizers.wordpiece import WordPiece

MAX_CACHED_WORDS = 200_000  # about 40 MB; a larger cache is cleared
# Texts with longer words have hardly any spaces: their "words" are rarely repeated.
MAX_MEAN_WORD_LENGTH = 20
KINDS_WITH_SPACES = ("bytepair", "characters")  # their tokens contain white space

SentenceSplit = Literal["punctuation", "lines", "none"]


class BulkEncoder:
    """Encode sentences to the bytes of their token ids, without special tokens.

    WordPiece tokens never span a space, so the ids of words are cached: several times faster than
    the tokenizers package, with the same ids.

    Args:
        tokenizer: Of the corpus.
    """

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.dtype = token_type(tokenizer.vocabulary_size)
        self._cache: dict[str, bytes] = {}
        self._by_word = isinstance(tokenizer, WordPiece) and not any(
            " " in token for token in tokenizer.matched_token_texts
        )

    def __call__(self, texts: Sequence[str]) -> list[bytes]:
        """Encode texts.

        Returns:
            The ids of each text, in `dtype`.
        """
        if not self._by_word:
            return self._encode(texts)
        words_of_texts = [text.split(" ") for text in texts]
        word_count = sum(map(len, words_of_texts))
        if sum(map(len, texts)) > MAX_MEAN_WORD_LENGTH * word_count:
            return self._encode(texts)
        if len(self._cache) > MAX_CACHED_WORDS:
            self._cache.clear()
        cache = self._cache
        new_words = list({word for words in words_of_texts for word in words if word not in cache})
        cache.update(zip(new_words, self._encode(new_words), strict=True))
        return [b"".join([cache[word] for word in words]) for words in words_of_texts]

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
        self.keep_spaces = tokenizer.kind in KINDS_WITH_SPACES

    def __call__(self, batch: tuple[Sequence[int], Sequence[str]]) -> Encoded:
        """Encode a batch; sentences and documents without tokens are dropped.

        Args:
            batch: The documents' numbers and texts.
        """
        ordinals, texts = batch
        sentences = [self._split_sentences(replace_surrogates(text)) for text in texts]
        rows = iter(self.encode([sentence for document in sentences for sentence in document]))
        documents, indices = [], []
        for index, document in enumerate(sentences):
            encoded_sentences = [row for _ in document if (row := next(rows))]
            if encoded_sentences:
                documents.append(encoded_sentences)
                indices.append(index)
        return records_from_bytes(
            documents,
            self.encode.dtype,
            [ordinals[index] for index in indices],
            [len(texts[index]) for index in indices],
            self.encode.tokenizer.unk_token_id,
        )

    def _split_sentences(self, text: str) -> list[str]:
        if self.split == "punctuation":
            return split_sentences(text, join_lines=self.join_lines, keep_spaces=self.keep_spaces)
        if self.split == "none":
            return [text.replace("\n", " ") if self.join_lines else text]
        return [line for line in text.splitlines(self.keep_spaces) if line.strip()]


@functools.cache
def document_encoder(tokenizer: str, split: SentenceSplit, join_lines: bool) -> DocumentEncoder:
    """Return this process's encoder, created at the first call.

    Args:
        tokenizer: Directory of the tokenizer.
        split: How documents are split into sentences.
        join_lines: Whether a line end is a space.
    """
    return DocumentEncoder(load_tokenizer(Path(tokenizer)), split, join_lines)


def start_worker(tokenizer: str, split: SentenceSplit, join_lines: bool) -> None:
    """Create this process's encoder anew. See `document_encoder`."""
    document_encoder.cache_clear()
    document_encoder(tokenizer, split, join_lines)


def encode_batch(
    batch: tuple[Sequence[int], Sequence[str]],
    tokenizer: str,
    split: SentenceSplit,
    join_lines: bool,
) -> Encoded:
    """Encode a batch of documents, in a worker process.

    Args:
        batch: The documents' numbers and texts.
        tokenizer: Directory of the tokenizer.
        split: How documents are split into sentences.
        join_lines: Whether a line end is a space.
    """
    return document_encoder(tokenizer, split, join_lines)(batch)
