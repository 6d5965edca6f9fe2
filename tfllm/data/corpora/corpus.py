"""A prepared corpus: a directory of token ids, which are memory-mapped.

    manifest.json                       counts, settings, checksums of all other files
    shard-00000-of-00012.tfrecord ...   a tf.train.Example for each document (see tfrecords.py)
    index/                              NumPy arrays over all shards, so that nothing is scanned
    tokenizer/                          the tokenizer of the ids

Tokens are numbered through all shards, documents and sentences in order, without special tokens.
`tfllm prepare` writes such a directory.
"""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tfllm.errors import DataError

FORMAT, VERSION = "tfllm corpus", 1
MANIFEST, INDEX, TOKENIZER = "manifest.json", "index", "tokenizer"

SENTENCE_LENGTHS = "sentence_lengths.npy"  # int32 [N]
TOKEN_STARTS = "token_starts.npy"  # int64 [N+1]
DOCUMENT_STARTS = "document_starts.npy"  # int64 [M+1]
PAYLOADS = "payloads.npy"  # int64 [M]: the byte of the shard where a document's tokens begin
WORD_STARTS = "word_starts.npy"  # bool [vocabulary]; missing where a vocabulary marks no words

HASHED_BYTES = 1 << 20


class Corpus:
    """The N sentences of M documents, memory-mapped. Created by `open_corpus`."""

    def __init__(self, directory: Path, manifest: dict[str, Any]):
        self.directory = directory
        self.manifest = manifest
        self.digest: str = manifest["digest"]
        self._type = np.dtype(manifest["token_type"]).newbyteorder("<")
        counts = [shard["documents"] for shard in manifest["shards"]]
        self._shard_ends = np.cumsum(counts)  # documents, [shards]
        self._shards: list[np.memmap | None] = [None] * len(counts)

    @property
    def tokens_total(self) -> int:
        """The number of all tokens."""
        return self.manifest["tokens"]

    @property
    def tokenizer_directory(self) -> Path:
        """The directory of the tokenizer's files."""
        return self.directory / TOKENIZER

    @cached_property
    def sentence_lengths(self) -> np.ndarray:
        """int32 [N]: the tokens of every sentence; at least 1."""
        return self._index(SENTENCE_LENGTHS)

    @cached_property
    def document_starts(self) -> np.ndarray:
        """int64 [M+1]: the first sentence of every document; the last entry is N."""
        return self._index(DOCUMENT_STARTS)

    @cached_property
    def token_starts(self) -> np.ndarray:
        """int64 [N+1]: the index of every sentence's first token; the last entry is all tokens."""
        return self._index(TOKEN_STARTS)

    def tokens(self, begin: int, end: int) -> np.ndarray:
        """Read the ids of the tokens from `begin` to `end`: int32 [end - begin].

        Raises:
            IndexError: The range is not inside the corpus.
        """
        if not 0 <= begin <= end <= self.tokens_total:
            raise IndexError(f"tokens {begin} to {end} of {self.tokens_total}")
        ids = np.empty(end - begin, np.int32)
        index = begin
        document = int(np.searchsorted(self._document_tokens, begin, side="right")) - 1
        while index < end:
            start, stop = map(int, self._document_tokens[document : document + 2])
            stop = min(stop, end)
            part = self._document_ids(document, index - start, stop - index)
            ids[index - begin : stop - begin] = part
            index, document = stop, document + 1
        return ids

    def word_starts(self, begin: int, end: int) -> np.ndarray | None:
        """Return whether each token from `begin` to `end` begins a word: bool [end - begin].

        By the marks of the vocabulary (`##`, `▁`, `Ġ`), as in BERT's and fairseq's whole-word
        masking; the first token of a sentence always does, and so does a CJK character. None where
        the vocabulary marks no words.
        """
        if self._word_table is None:
            return None
        starts = self._word_table[self.tokens(begin, end)]
        first, last = np.searchsorted(self.token_starts, [begin, end])
        starts[self.token_starts[first:last] - begin] = True
        return starts

    def verify(self) -> None:
        """Read every file and compare its checksum.

        Raises:
            DataError: A checksum differs; names the file.
        """
        for name, entry in files_of(self.manifest).items():
            if file_digest(self.directory / name) != entry["sha256"]:
                raise DataError(
                    f"{self.directory / name}: the file is damaged (its checksum is not the one of "
                    f"{MANIFEST}). Copy it again, or prepare the corpus again."
                )

    @cached_property
    def _payloads(self) -> np.ndarray:
        return self._index(PAYLOADS)

    @cached_property
    def _document_tokens(self) -> np.ndarray:
        """int64 [M+1]: the index of every document's first token."""
        return np.asarray(self.token_starts[self.document_starts])

    @cached_property
    def _word_table(self) -> np.ndarray | None:
        return self._index(WORD_STARTS) if WORD_STARTS in self.manifest["index"] else None

    def _document_ids(self, document: int, skip: int, count: int) -> np.ndarray:
        """Ids of one document as a view of the memory-mapped file, which need not be aligned."""
        shard = int(np.searchsorted(self._shard_ends, document, side="right"))
        mapped = self._shards[shard]
        if mapped is None:
            path = self.directory / self.manifest["shards"][shard]["file"]
            mapped = self._shards[shard] = np.memmap(path, np.uint8, "r")
        offset = int(self._payloads[document]) + skip * self._type.itemsize
        return np.ndarray((count,), self._type, buffer=mapped, offset=offset)

    def _index(self, name: str) -> np.ndarray:
        return np.load(self.directory / INDEX / name, mmap_mode="r")


def is_corpus(path: str | Path) -> bool:
    """Return whether a path is a prepared corpus, rather than a data file."""
    try:
        return json.loads((Path(path) / MANIFEST).read_bytes()).get("format") == FORMAT
    except (OSError, ValueError, AttributeError):
        return False


def open_corpus(directory: str | Path) -> Corpus:
    """Open the corpus in a directory, and compare the sizes of files with the manifest.

    Raises:
        DataError: It is no corpus, of another version, or damaged.
    """
    folder = Path(directory)
    path = folder / MANIFEST
    hint = "Make one with: tfllm prepare RECIPE --output DIR"
    try:
        manifest = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(
            f"'{folder}' is not a prepared corpus: there is no {MANIFEST}. {hint}"
        ) from None
    except ValueError:
        raise DataError(f"{path}: not JSON; the corpus is damaged. Prepare it again.") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise DataError(f"{path}: not the manifest of a prepared corpus. {hint}")
    if manifest.get("version") != VERSION:
        raise DataError(
            f"{path}: version {manifest.get('version')} of the format, and this tfllm reads "
            f"{VERSION}. Prepare the corpus again."
        )
    for name, entry in files_of(manifest).items():
        _check_size(folder / name, entry["bytes"])
    return Corpus(folder, manifest)


def files_of(manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return {"bytes", "sha256"} of every file in a manifest, by its path inside the corpus."""
    shards = {shard["file"]: shard for shard in manifest["shards"]}
    index = {f"{INDEX}/{name}": entry for name, entry in manifest["index"].items()}
    tokenizer = {
        f"{TOKENIZER}/{name}": entry for name, entry in manifest["tokenizer"]["files"].items()
    }
    return shards | index | tokenizer


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, in constant memory."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(HASHED_BYTES):
            digest.update(part)
    return digest.hexdigest()


def _check_size(path: Path, expected: int) -> None:
    try:
        actual = path.stat().st_size
    except FileNotFoundError:
        raise DataError(
            f"{path}: the file is missing from the corpus. Copy it again, or prepare the corpus "
            "again."
        ) from None
    if actual != expected:
        raise DataError(
            f"{path}: {actual} bytes, and the manifest says {expected}: the file is damaged. Copy "
            "it again, or prepare the corpus again."
        )
