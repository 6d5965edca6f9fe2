"""Writing of a prepared corpus: shard after shard, each atomically, then the index.

While shards are written, each has three files: `shard-00000.tfrecord`, `.npz` with its part of the
index, and `.json`, which is written last and marks the shard as finished, with the next document.
`finish` joins the parts, renames the shards with their number, and writes the manifest.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from tfllm.data.corpora import corpus
from tfllm.data.corpora.corpus import INDEX, MANIFEST, TOKENIZER, Corpus, file_digest, open_corpus
from tfllm.data.corpora.tfrecords import Encoded, build_records, token_type
from tfllm.data.corpora.word_boundaries import word_starts
from tfllm.tokenizers.base import Tokenizer

SHARD_BYTES = 64 << 20
BATCH_DOCUMENTS = 1000
PARTS = ("payloads", "sentence_counts", "sentence_lengths", "characters")
COUNTS = ("documents", "sentences", "tokens", "characters", "unknown_tokens")


class ShardWriter:
    """Appends encoded documents to shards, in order.

    Where a shard ends depends only on the documents, not on their batches. In a directory with
    finished shards it continues after them, with the document `next_ordinal`.

    Args:
        directory: Where the shards go.
        shard_bytes: The approximate size of a shard.
    """

    def __init__(self, directory: Path, shard_bytes: int = SHARD_BYTES):
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.shard_bytes = shard_bytes
        self.finished = finished_shards(directory)
        self.next_ordinal: int = self.finished[-1]["next_ordinal"] if self.finished else 0
        self._file: BinaryIO | None = None
        self._hash = hashlib.sha256()
        self._bytes = 0
        self._parts: list[dict[str, np.ndarray]] = []
        self._unknown = 0

    def add(self, batch: Encoded) -> None:
        """Write a batch, in as many shards as it needs."""
        ends = np.cumsum(batch.sizes)
        sentence_ends = np.cumsum(batch.sentence_counts)
        first = 0
        while first < len(ends):
            begin = int(ends[first - 1]) if first else 0
            room = self.shard_bytes - self._bytes
            # Up to the document with which the shard reaches its size.
            last = min(int(np.searchsorted(ends, begin + room)) + 1, len(ends))
            self._write(batch.records[begin : ends[last - 1]])
            sentences = slice(
                int(sentence_ends[first - 1]) if first else 0, int(sentence_ends[last - 1])
            )
            starts = ends[first:last] - batch.sizes[first:last] - begin
            self._parts.append(
                {
                    "payloads": batch.payloads[first:last] + starts + self._bytes,
                    "sentence_counts": batch.sentence_counts[first:last],
                    "sentence_lengths": batch.sentence_lengths[sentences],
                    "characters": batch.characters[first:last],
                }
            )
            self._bytes += int(ends[last - 1]) - begin
            self._unknown += int(batch.unknown[first:last].sum())
            self.next_ordinal = int(batch.ordinals[last - 1]) + 1
            if self._bytes >= self.shard_bytes:
                self.close()
            first = last

    def close(self) -> None:
        """Finish the shard that is being written."""
        if self._file is None:
            return
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._file = None
        parts = {name: np.concatenate([part[name] for part in self._parts]) for name in PARTS}
        stem = self.directory / shard_name(len(self.finished))
        with replacing(stem.with_suffix(".npz")) as file:
            np.savez(file, allow_pickle=False, **parts)
        os.replace(_part(stem.with_suffix(".tfrecord")), stem.with_suffix(".tfrecord"))
        about = {
            "bytes": self._bytes,
            "sha256": self._hash.hexdigest(),
            "documents": len(parts["payloads"]),
            "sentences": len(parts["sentence_lengths"]),
            "tokens": int(parts["sentence_lengths"].sum(dtype=np.int64)),
            "characters": int(parts["characters"].sum()),
            "unknown_tokens": self._unknown,
            "next_ordinal": self.next_ordinal,
        }
        write_json(stem.with_suffix(".json"), about)
        self.finished.append(about)
        self._hash, self._bytes, self._parts, self._unknown = hashlib.sha256(), 0, [], 0

    def abandon(self) -> None:
        """Remove the shard that is being written; finished ones are kept."""
        if self._file is not None:
            with suppress(OSError):  # on a full disk the buffer cannot be written
                self._file.close()
            self._file = None
        for path in self.directory.glob(".*.part"):
            path.unlink(missing_ok=True)

    def _write(self, records: bytes) -> None:
        if self._file is None:
            stem = self.directory / shard_name(len(self.finished))
            self._file = _part(stem.with_suffix(".tfrecord")).open("wb")
        self._file.write(records)
        self._hash.update(records)


def finish(
    directory: Path, tokenizer: Tokenizer, settings: Mapping[str, Any], **more: Any
) -> dict[str, Any]:
    """Join the finished shards to a corpus. May be called again after a kill.

    Args:
        directory: With finished shards, and the tokenizer's files in tokenizer/.
        tokenizer: The tokenizer.
        settings: Recorded in the manifest.
        more: Further entries of the manifest.

    Returns:
        The manifest.
    """
    shards = finished_shards(directory)
    if (directory / MANIFEST).is_file():  # only files are to be removed
        manifest = json.loads((directory / MANIFEST).read_bytes())
    else:
        index = _write_index(directory, shards, tokenizer)
        named = []
        for number, shard in enumerate(shards):
            name = f"{shard_name(number)}-of-{len(shards):05d}.tfrecord"
            with suppress(FileNotFoundError):  # renamed before a kill
                os.replace(directory / f"{shard_name(number)}.tfrecord", directory / name)
            named.append({"file": name, **{k: v for k, v in shard.items() if k != "next_ordinal"}})
        dtype = token_type(tokenizer.vocabulary_size)
        manifest = {
            "format": corpus.FORMAT,
            "version": corpus.VERSION,
            "digest": "",
            "token_type": dtype.name,
            **{name: sum(shard[name] for shard in shards) for name in COUNTS},
            **more,
            "tokenizer": tokenizer_entry(directory / TOKENIZER, tokenizer),
            "settings": dict(settings),
            "index": index,
            "shards": named,
        }
        manifest["digest"] = _digest(manifest)
        write_json(directory / MANIFEST, manifest)
    for number in range(len(manifest["shards"])):
        for suffix in (".npz", ".json"):
            (directory / shard_name(number)).with_suffix(suffix).unlink(missing_ok=True)
    return manifest


def write_corpus(
    directory: str | Path,
    documents: Iterable[Sequence[Sequence[int]]],
    tokenizer: Tokenizer,
    settings: Mapping[str, Any] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Corpus:
    """Write a corpus of documents that are ids already, in one process: for small corpora.

    Args:
        directory: A new directory.
        documents: Each a list of sentences of at least one token.
        tokenizer: The tokenizer of the ids.
        settings: Recorded in the manifest.
        shard_bytes: The approximate size of a shard.
    """
    folder = Path(directory)
    writer = ShardWriter(folder, shard_bytes)
    dtype = token_type(tokenizer.vocabulary_size)
    done = 0
    for batch in _batches(documents):
        numbers = range(done, done + len(batch))
        writer.add(build_records(batch, dtype, numbers, unk_token_id=tokenizer.unk_token_id))
        done += len(batch)
    writer.close()
    tokenizer.save(folder / TOKENIZER)
    finish(folder, tokenizer, settings or {})
    return open_corpus(folder)


def finished_shards(directory: Path) -> list[dict[str, Any]]:
    """Read the description of every finished shard, in order."""
    shards: list[dict[str, Any]] = []
    while (path := directory / f"{shard_name(len(shards))}.json").is_file():
        shards.append(json.loads(path.read_bytes()))
    return shards


def shard_name(number: int) -> str:
    """Return the name of the files of a shard, without suffix."""
    return f"shard-{number:05d}"


def tokenizer_entry(directory: Path, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the manifest's entry of the tokenizer: its files, and one digest of all of them.

    Args:
        directory: The tokenizer's files.
        tokenizer: The tokenizer.
    """
    files = {path.name: file_entry(path) for path in sorted(directory.iterdir())}
    joined = "".join(f"{name} {entry['sha256']}\n" for name, entry in files.items())
    return {
        "kind": tokenizer.kind,
        "vocabulary_size": tokenizer.vocabulary_size,
        "digest": hashlib.sha256(joined.encode()).hexdigest(),
        "files": files,
    }


def file_entry(path: Path) -> dict[str, int | str]:
    """Return the manifest's entry of a file: its size and checksum."""
    return {"bytes": path.stat().st_size, "sha256": file_digest(path)}


def write_json(path: Path, value: object) -> None:
    """Write a small JSON file atomically."""
    with replacing(path) as file:
        file.write(json.dumps(value, indent=1, ensure_ascii=False).encode() + b"\n")


class replacing:
    """Opens a binary file under a temporary name, renamed to `path` when the block succeeds."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> BinaryIO:
        self.file = _part(self.path).open("w+b")
        return self.file

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.file.flush()
            os.fsync(self.file.fileno())
        finally:
            with suppress(OSError):
                self.file.close()
            if kind is not None:
                _part(self.path).unlink(missing_ok=True)
        if kind is None:
            os.replace(_part(self.path), self.path)


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


def _digest(manifest: Mapping[str, Any]) -> str:
    """The digest of tokens, sentences, documents and vocabulary, without the settings."""
    parts = [str(corpus.VERSION), manifest["tokenizer"]["digest"]]
    parts += [shard["sha256"] for shard in manifest["shards"]]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _write_index(
    directory: Path, shards: list[dict[str, Any]], tokenizer: Tokenizer
) -> dict[str, Any]:
    """The arrays over all shards, one shard in memory at a time."""
    folder = directory / INDEX
    folder.mkdir(exist_ok=True)
    documents = sum(shard["documents"] for shard in shards)
    sentences = sum(shard["sentences"] for shard in shards)
    shapes = {
        corpus.SENTENCE_LENGTHS: (np.int32, sentences),
        corpus.TOKEN_STARTS: (np.int64, sentences + 1),
        corpus.DOCUMENT_STARTS: (np.int64, documents + 1),
        corpus.PAYLOADS: (np.int64, documents),
    }
    arrays = {
        name: np.lib.format.open_memmap(folder / name, "w+", dtype, (count,))
        for name, (dtype, count) in shapes.items()
    }
    document = sentence = token = 0
    for part in _parts(directory, len(shards)):
        counts, lengths = part["sentence_counts"], part["sentence_lengths"]
        to_document, to_sentence = document + len(counts), sentence + len(lengths)
        arrays[corpus.PAYLOADS][document:to_document] = part["payloads"]
        arrays[corpus.DOCUMENT_STARTS][document + 1 : to_document + 1] = sentence + counts.cumsum()
        arrays[corpus.SENTENCE_LENGTHS][sentence:to_sentence] = lengths
        ends = token + lengths.cumsum(dtype=np.int64)
        arrays[corpus.TOKEN_STARTS][sentence + 1 : to_sentence + 1] = ends
        document, sentence, token = to_document, to_sentence, int(ends[-1])
    for array in arrays.values():
        array.flush()
    del arrays
    table = word_starts(tokenizer)
    if table is not None:
        np.save(folder / corpus.WORD_STARTS, table)
    return {path.name: file_entry(path) for path in sorted(folder.iterdir())}


def _parts(directory: Path, count: int) -> Iterator[dict[str, np.ndarray]]:
    for number in range(count):
        with np.load(directory / f"{shard_name(number)}.npz") as part:
            yield {name: part[name] for name in PARTS}


def _batches(documents: Iterable[Sequence[Sequence[int]]]) -> Iterator[list]:
    batch: list = []
    for document in documents:
        batch.append(document)
        if len(batch) == BATCH_DOCUMENTS:
            yield batch
            batch = []
    if batch:
        yield batch
