"""Preparation of a corpus: read files, find duplicates, train or load a tokenizer, encode.

One process reads in order; several process batches of documents; the first writes their results in
order. So the result does not depend on the number of processes. Everything is streamed in batches:
memory grows by about 30 bytes a document.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from tfllm.data.corpora import deduplication, document_encoding
from tfllm.data.corpora.corpus import MANIFEST, TOKENIZER, open_corpus
from tfllm.data.corpora.document_encoding import SentenceSplit
from tfllm.data.corpora.documents import Document, check_files, documents
from tfllm.data.corpora.lengths import write_lengths
from tfllm.data.corpora.minhash import EXACT, NEAR, SEED, UNIQUE
from tfllm.data.corpora.process_pool import worker_pool
from tfllm.data.corpora.read_stats import ReadStats
from tfllm.data.corpora.settings import PrepareSettings
from tfllm.data.corpora.shards import ShardWriter, finish, finished_shards
from tfllm.data.corpora.staging_dir import staging_directory
from tfllm.data.read_settings import ReadSettings
from tfllm.data.settings import held_out
from tfllm.errors import DataError
from tfllm.tokenizers.base import Tokenizer
from tfllm.tokenizers.loading import load_tokenizer

BATCH_CHARACTERS = 1 << 20
BATCH_DOCUMENTS = 4000
SMALL_BYTES = 4 << 20  # less than this is done before other processes have started
REJECTED, REPEATED = "rejected.jsonl", "repeated.jsonl"
VALIDATION = "validation"

ProgressCallback = Callable[[str, int, int], None]
"""(stage, bytes read, bytes in all)"""
TokenizerFactory = Callable[[Iterable[str]], Tokenizer]
Batch = tuple[list[int], list[str]]


@dataclass(frozen=True)
class CorpusJob:
    """Inputs and settings of one corpus."""

    paths: tuple[str, ...]
    reading: ReadSettings
    settings: PrepareSettings
    split: SentenceSplit
    limit: int | None = None
    """Read at most this many documents."""
    share: float | None = None
    """The share of documents to hold out, by a hash of their text."""
    held_out: bool = False
    """Whether this is the corpus of held-out documents."""

    def describe(self) -> dict[str, Any]:
        """Return the settings as the manifest records them."""
        reading = self.reading.model_dump(include=set(ReadSettings.model_fields), exclude_none=True)
        return {
            "files": list(self.paths), "reading": reading,
            **self.settings.model_dump(exclude={"sentences"}), "sentences": self.split,
            "limit": self.limit, "validation_share": self.share, "held_out": self.held_out,
        }  # fmt: skip


@dataclass
class DocumentCounts:
    """How many documents were read, dropped and chosen."""

    documents: int = 0
    short: int = 0
    held_out: int = 0
    exact: int = 0
    near: int = 0
    chosen: int = 0


def build_corpus(
    train: CorpusJob,
    validation: CorpusJob | None,
    output: Path,
    make_tokenizer: TokenizerFactory,
    identity: dict[str, Any],
    *,
    workers: int,
    progress: ProgressCallback = lambda *_: None,
    notice: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Prepare a corpus, with the held-out one in its folder validation/.

    The same call after a kill resumes; the result is the same, byte for byte. A corpus that is not
    complete leaves only OUTPUT.unfinished, from which to resume.

    Args:
        train: Of the training corpus.
        validation: Of the validation corpus, if any.
        output: A new folder.
        make_tokenizer: (lines of the training documents) -> Tokenizer.
        identity: Describes that tokenizer; a resumed call must have the same.
        workers: Processes.
        progress: Called with stage, bytes read and total bytes.
        notice: Called with messages for the user.

    Returns:
        The manifest of the training corpus.

    Raises:
        DataError: A file cannot be read, or no documents are left.
        SettingError: The settings do not go together.
        StorageError: The output cannot be written.
    """
    plan = {"train": train.describe(), "tokenizer": identity, "sources": _sources(train)}
    if validation is not None:
        plan["validation"] = validation.describe()
        plan["sources"] |= _sources(validation)
    with staging_directory(output, plan) as work:
        if done := finished_shards(work):
            notice(f"resumes in '{work}', where {len(done)} shards are finished")
        prepare = partial(_prepare_one, workers=workers, progress=progress)
        manifest = prepare(train, work, make_tokenizer)
        if validation is not None:
            inner = work / VALIDATION
            inner.mkdir(exist_ok=True)
            if validation.paths == train.paths and (work / deduplication.LABELS).is_file():
                # The same documents: their duplicates are known.
                shutil.copyfile(work / deduplication.LABELS, inner / deduplication.LABELS)
            prepare(validation, inner, lambda _: load_tokenizer(work / TOKENIZER))
        for folder in (work, work / VALIDATION):
            deduplication.clear(folder)
    return manifest


def _prepare_one(
    job: CorpusJob,
    work: Path,
    make_tokenizer: TokenizerFactory,
    *,
    workers: int,
    progress: ProgressCallback,
) -> dict[str, Any]:
    check_files(job.paths)
    size = ReadStats(job.paths).total_bytes
    workers = 1 if size < SMALL_BYTES else workers
    if (work / MANIFEST).is_file():  # killed near the end
        manifest = finish(work, load_tokenizer(work / TOKENIZER), {})
        write_lengths(open_corpus(work), work)
        return manifest
    duplicates = _find_duplicates(job, work, workers, progress)
    tokenizer = _tokenizer(job, work, make_tokenizer, duplicates, progress)
    count, stats = _encode(job, work, duplicates, workers, progress)
    shards = finished_shards(work)
    if not shards:
        raise DataError(_nothing_left(job, count, stats))
    written = sum(shard["documents"] for shard in shards)
    about = {
        "files": len(job.paths), "documents": count.documents, "bad_lines": stats.error_count,
        "short": count.short, "exact_duplicates": count.exact, "near_duplicates": count.near,
        "held_out": count.held_out, "without_tokens": count.chosen - written,
    }  # fmt: skip
    manifest = finish(work, tokenizer, job.describe(), read=about, seed=SEED)
    write_lengths(open_corpus(work), work)
    return manifest


def _find_duplicates(
    job: CorpusJob, work: Path, workers: int, progress: ProgressCallback
) -> np.ndarray | None:
    """Labels of `minhash.find_duplicates` [documents], or None where duplicates are kept."""
    if job.settings.duplicates == "keep":
        return None
    if (work / deduplication.LABELS).is_file():
        return np.load(work / deduplication.LABELS, mmap_mode="r")
    done = deduplication.count_signatures(work)
    near = job.settings.duplicates == "near"
    similarity = job.settings.similarity
    signatures = partial(deduplication.batch_signatures, near=near, similarity=similarity)
    with worker_pool(workers) as ordered_map:
        stats = ReadStats(job.paths, job.settings.max_bad_lines)
        numbered = _numbered(job, stats, DocumentCounts(), partial(progress, "repetitions"))
        batches = _batches(numbered, done)
        deduplication.write_signatures(work, ordered_map(signatures, batches))
    return deduplication.classify_documents(work, similarity)


def _tokenizer(
    job: CorpusJob,
    work: Path,
    make_tokenizer: TokenizerFactory,
    duplicates: np.ndarray | None,
    progress: ProgressCallback,
) -> Tokenizer:
    """The tokenizer in tokenizer/, created once."""
    if not (work / TOKENIZER).is_dir():
        tokenizer = make_tokenizer(_Lines(job, duplicates, partial(progress, "vocabulary")))
        part = work / f".{TOKENIZER}.part"
        shutil.rmtree(part, ignore_errors=True)
        tokenizer.save(part)
        part.rename(work / TOKENIZER)
    return load_tokenizer(work / TOKENIZER)


class _Lines:
    """The lines of the chosen documents; may be iterated several times."""

    def __init__(
        self, job: CorpusJob, duplicates: np.ndarray | None, report: Callable[[int, int], None]
    ):
        self.job, self.duplicates, self.report = job, duplicates, report

    def __iter__(self) -> Iterator[str]:
        stats = ReadStats(self.job.paths, self.job.settings.max_bad_lines)
        for _, document in _chosen(self.job, stats, DocumentCounts(), self.duplicates, self.report):
            yield from document.text.split("\n")


def _encode(
    job: CorpusJob,
    work: Path,
    duplicates: np.ndarray | None,
    workers: int,
    progress: ProgressCallback,
) -> tuple[DocumentCounts, ReadStats]:
    """Write the missing shards. The files are read from the beginning in any case."""
    count = DocumentCounts()
    arguments = (str(work / TOKENIZER), job.split, job.settings.join_lines)
    encode = partial(
        document_encoding.encode_batch,
        tokenizer=arguments[0],
        split=job.split,
        join_lines=job.settings.join_lines,
    )
    writer = ShardWriter(work, job.settings.shard_megabytes << 20)
    with (work / REJECTED).open("w", encoding="utf-8") as rejected:
        stats = ReadStats(job.paths, job.settings.max_bad_lines, rejected)
        with (work / REPEATED).open("w", encoding="utf-8") as repeated:
            report = partial(progress, "encoding")
            chosen = _chosen(job, stats, count, duplicates, report, repeated)
            try:
                with worker_pool(workers, document_encoding.start_worker, arguments) as ordered_map:
                    batches = _batches(chosen, writer.next_ordinal)
                    for encoded in ordered_map(encode, batches):
                        writer.add(encoded)
                writer.close()
            except BaseException:
                writer.abandon()
                raise
    for name in (REJECTED, REPEATED):
        if (work / name).stat().st_size == 0:
            (work / name).unlink()
    return count, stats


def _numbered(
    job: CorpusJob, stats: ReadStats, count: DocumentCounts, report: Callable[[int, int], None]
) -> Iterator[tuple[int, Document]]:
    """Number the documents that are long enough: the same in every pass."""
    for document in documents(job.paths, job.reading, job.settings, stats):
        if len(document.text.strip()) < job.settings.shortest_characters:
            count.short += 1
            continue
        if count.documents == job.limit:
            return
        yield count.documents, document
        count.documents += 1
        if count.documents % 100 == 0:
            report(min(stats.bytes_read, stats.total_bytes - 1), stats.total_bytes)
    report(stats.total_bytes, stats.total_bytes)


def _chosen(
    job: CorpusJob,
    stats: ReadStats,
    count: DocumentCounts,
    duplicates: np.ndarray | None,
    report: Callable[[int, int], None],
    repeated: TextIO | None = None,
) -> Iterator[tuple[int, Document]]:
    """Choose the documents of this corpus: held out or not, without duplicates."""
    for ordinal, document in _numbered(job, stats, count, report):
        if job.share and held_out({"text": document.text}, job.share) != job.held_out:
            count.held_out += 1
            continue
        label = UNIQUE if duplicates is None else duplicates[ordinal]
        if label == UNIQUE:
            count.chosen += 1
            yield ordinal, document
            continue
        count.exact += int(label == EXACT)
        count.near += int(label == NEAR)
        if repeated is not None:
            kind = "exact" if label == EXACT else "near"
            line = {"where": document.where, "document": ordinal, "repeats": kind}
            repeated.write(json.dumps(line, ensure_ascii=False) + "\n")


def _batches(numbered: Iterable[tuple[int, Document]], first: int) -> Iterator[Batch]:
    """Batches of about a million characters, from document number `first` on."""
    ordinals, texts, size = list[int](), list[str](), 0
    for ordinal, document in numbered:
        if ordinal < first:
            continue
        ordinals.append(ordinal)
        texts.append(document.text)
        size += len(document.text)
        if size >= BATCH_CHARACTERS or len(texts) == BATCH_DOCUMENTS:
            yield ordinals, texts
            ordinals, texts, size = [], [], 0
    if texts:
        yield ordinals, texts


def _sources(job: CorpusJob) -> dict[str, Any]:
    """Sizes and times of the files, to check that they are the same when a run resumes."""
    sources = {}
    for path, file in zip(job.paths, check_files(job.paths), strict=True):
        status = file.stat()
        sources[path] = f"{status.st_size} bytes of {status.st_mtime_ns} ns"
    return sources


def _nothing_left(job: CorpusJob, count: DocumentCounts, stats: ReadStats) -> str:
    names = job.paths[0] + (f" and {len(job.paths) - 1} more" if len(job.paths) > 1 else "")
    parts = {
        "bad lines": stats.error_count, "too short": count.short, "held out": count.held_out,
        "duplicates": count.exact + count.near, "without a token": count.chosen,
    }  # fmt: skip
    reasons = ", ".join(f"{number} {name}" for name, number in parts.items() if number)
    first = f" The first bad line: {stats.first_error}" if stats.first_error else ""
    return (
        f"{names}: no documents are left ({reasons or 'no text'}). Check the files, data.columns "
        f"and data.prepare.{first}"
    )


def validation_job(train: CorpusJob, paths: tuple[str, ...] | None) -> CorpusJob | None:
    """Return the job of the validation corpus; None where there is none.

    Args:
        train: The job of the training corpus, whose held-out documents may be the validation
            corpus.
        paths: Files of its own, or None.
    """
    if paths:
        return replace(train, paths=paths, limit=None)
    return replace(train, held_out=True) if train.share else None
