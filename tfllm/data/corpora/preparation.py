"""Files to a prepared corpus: read, find repetitions, learn or load a vocabulary, encode.

One process reads, in order; several work on batches of documents; the first writes what they make,
in order. So nothing depends on how many there are. Everything passes through in batches: memory
does not grow with the corpus but for some 30 bytes a document.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tfllm.data.corpora import deduplication, document_encoding
from tfllm.data.corpora.corpus import MANIFEST, TOKENIZER, open_corpus
from tfllm.data.corpora.document_encoding import SentenceSplit
from tfllm.data.corpora.documents import Document, check_files, documents
from tfllm.data.corpora.lengths import write_lengths
from tfllm.data.corpora.minhash import EXACT, KEPT, NEAR, SEED
from tfllm.data.corpora.process_pool import processes
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

Progress = Callable[[str, int, int], None]
"""(stage, bytes read, bytes in all)"""
MakeTokenizer = Callable[[Iterable[str]], Tokenizer]
Batch = tuple[list[int], list[str]]


@dataclass(frozen=True)
class Job:
    """What one corpus is made of."""

    paths: tuple[str, ...]
    reading: ReadSettings
    settings: PrepareSettings
    cut: SentenceSplit
    limit: int | None = None
    """Read at most so many documents."""
    share: float | None = None
    """The part of the documents that is held out, by a hash of their text."""
    held_out: bool = False
    """Whether this corpus is made of these, rather than of the others."""

    def described(self) -> dict[str, Any]:
        """What makes the corpus, as the manifest shows it."""
        reading = self.reading.model_dump(include=set(ReadSettings.model_fields), exclude_none=True)
        return {
            "files": list(self.paths), "reading": reading,
            **self.settings.model_dump(exclude={"sentences"}), "sentences": self.cut,
            "limit": self.limit, "validation_share": self.share, "held_out": self.held_out,
        }  # fmt: skip


@dataclass
class Count:
    """What became of the documents."""

    documents: int = 0
    short: int = 0
    held_out: int = 0
    exact: int = 0
    near: int = 0
    chosen: int = 0


def build_corpus(
    train: Job,
    validation: Job | None,
    output: Path,
    make_tokenizer: MakeTokenizer,
    identity: dict[str, Any],
    *,
    workers: int,
    progress: Progress = lambda *_: None,
    notice: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """A corpus at `output`, with the one to measure on in its validation/; the first's manifest.

    `make_tokenizer` is given the lines of the training documents; `identity` says what it makes.
    The same call after a kill goes on with what is finished; the result is the same, byte by byte.
    Raises DataError, SettingError, StorageError; nothing is left of a corpus that is not whole but
    `output`.unfinished, to go on with.
    """
    plan = {"train": train.described(), "tokenizer": identity, "sources": _sources(train)}
    if validation is not None:
        plan["validation"] = validation.described()
        plan["sources"] |= _sources(validation)
    with staging_directory(output, plan) as work:
        if done := finished_shards(work):
            notice(f"goes on in '{work}', where {len(done)} shards are finished")
        steps = partial(_prepare_one, workers=workers, progress=progress)
        manifest = steps(train, work, make_tokenizer)
        if validation is not None:
            inner = work / VALIDATION
            inner.mkdir(exist_ok=True)
            if validation.paths == train.paths and (work / deduplication.FATE).is_file():
                # The same documents: what repeats is known.
                shutil.copyfile(work / deduplication.FATE, inner / deduplication.FATE)
            steps(validation, inner, lambda _: load_tokenizer(work / TOKENIZER))
        for folder in (work, work / VALIDATION):
            deduplication.clear(folder)
    return manifest


def _prepare_one(
    job: Job, work: Path, make_tokenizer: MakeTokenizer, *, workers: int, progress: Progress
) -> dict[str, Any]:
    check_files(job.paths)
    size = ReadStats(job.paths).total_bytes
    workers = 1 if size < SMALL_BYTES else workers
    if (work / MANIFEST).is_file():  # killed near the end
        manifest = finish(work, load_tokenizer(work / TOKENIZER), {})
        write_lengths(open_corpus(work), work)
        return manifest
    fate = _fate(job, work, workers, progress)
    tokenizer = _tokenizer(job, work, make_tokenizer, fate, progress)
    count, stats = _encode(job, work, fate, workers, progress)
    shards = finished_shards(work)
    if not shards:
        raise DataError(_nothing_left(job, count, stats))
    written = sum(shard["documents"] for shard in shards)
    about = {
        "files": len(job.paths), "documents": count.documents, "bad_lines": stats.error_count,
        "short": count.short, "exact_duplicates": count.exact, "near_duplicates": count.near,
        "held_out": count.held_out, "without_tokens": count.chosen - written,
    }  # fmt: skip
    manifest = finish(work, tokenizer, job.described(), read=about, seed=SEED)
    write_lengths(open_corpus(work), work)
    return manifest


def _fate(job: Job, work: Path, workers: int, progress: Progress) -> np.ndarray | None:
    """Which documents repeat earlier ones: [documents], or None where all may stay."""
    if job.settings.duplicates == "keep":
        return None
    if (work / deduplication.FATE).is_file():
        return np.load(work / deduplication.FATE, mmap_mode="r")
    done = deduplication.done(work)
    near = job.settings.duplicates == "near"
    with processes(workers, deduplication.start, (near, job.settings.similarity)) as ordered:
        batches = _batches(_numbered(job, ReadStats(job.paths, job.settings.max_bad_lines), Count(),
                                     partial(progress, "repetitions")), done)  # fmt: skip
        deduplication.collect(work, ordered(deduplication.signatures_of, batches))
    return deduplication.decide(work, job.settings.similarity)


def _tokenizer(
    job: Job,
    work: Path,
    make_tokenizer: MakeTokenizer,
    fate: np.ndarray | None,
    progress: Progress,
) -> Tokenizer:
    """The tokenizer in tokenizer/, made once."""
    if not (work / TOKENIZER).is_dir():
        made = make_tokenizer(_Lines(job, fate, partial(progress, "vocabulary")))
        part = work / f".{TOKENIZER}.part"
        shutil.rmtree(part, ignore_errors=True)
        made.save(part)
        part.rename(work / TOKENIZER)
    return load_tokenizer(work / TOKENIZER)


class _Lines:
    """The lines of the documents that stay; may be gone through several times."""

    def __init__(self, job: Job, fate: np.ndarray | None, told: Callable[[int, int], None]):
        self.job, self.fate, self.told = job, fate, told

    def __iter__(self) -> Iterator[str]:
        stats = ReadStats(self.job.paths, self.job.settings.max_bad_lines)
        for _, document in _chosen(self.job, stats, Count(), self.fate, self.told):
            yield from document.text.split("\n")


def _encode(
    job: Job, work: Path, fate: np.ndarray | None, workers: int, progress: Progress
) -> tuple[Count, ReadStats]:
    """Writes the shards that are missing. The files are read from the beginning in any case."""
    count = Count()
    arguments = (str(work / TOKENIZER), job.cut, job.settings.join_lines)
    writer = ShardWriter(work, job.settings.shard_megabytes << 20)
    with (work / REJECTED).open("w", encoding="utf-8") as rejected:
        stats = ReadStats(job.paths, job.settings.max_bad_lines, rejected)
        with (work / REPEATED).open("w", encoding="utf-8") as repeated:
            told = partial(progress, "encoding")
            chosen = _chosen(job, stats, count, fate, told, repeated)
            try:
                with processes(workers, document_encoding.start, arguments) as ordered:
                    batches = _batches(chosen, writer.next_ordinal)
                    for encoded in ordered(document_encoding.encode, batches):
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
    job: Job, stats: ReadStats, count: Count, told: Callable[[int, int], None]
) -> Iterator[tuple[int, Document]]:
    """The documents that are long enough, numbered: the same in every pass."""
    for document in documents(job.paths, job.reading, job.settings, stats):
        if len(document.text.strip()) < job.settings.shortest_characters:
            count.short += 1
            continue
        if count.documents == job.limit:
            return
        yield count.documents, document
        count.documents += 1
        if count.documents % 100 == 0:
            told(min(stats.bytes_read, stats.total_bytes - 1), stats.total_bytes)
    told(stats.total_bytes, stats.total_bytes)


def _chosen(
    job: Job,
    stats: ReadStats,
    count: Count,
    fate: np.ndarray | None,
    told: Callable[[int, int], None],
    repeated: Any = None,
) -> Iterator[tuple[int, Document]]:
    """The documents of this corpus: of the right side, without repetitions."""
    for ordinal, document in _numbered(job, stats, count, told):
        if job.share and held_out({"text": document.text}, job.share) != job.held_out:
            count.held_out += 1
            continue
        why = KEPT if fate is None else fate[ordinal]
        if why == KEPT:
            count.chosen += 1
            yield ordinal, document
            continue
        count.exact += int(why == EXACT)
        count.near += int(why == NEAR)
        if repeated is not None:
            kind = "exact" if why == EXACT else "near"
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


def _sources(job: Job) -> dict[str, Any]:
    """Sizes and times of the files, to see that they are the same when work goes on."""
    found = {}
    for path, place in zip(job.paths, check_files(job.paths), strict=True):
        about = place.stat()
        found[path] = f"{about.st_size} bytes of {about.st_mtime_ns} ns"
    return found


def _nothing_left(job: Job, count: Count, stats: ReadStats) -> str:
    names = job.paths[0] + (f" and {len(job.paths) - 1} more" if len(job.paths) > 1 else "")
    parts = {
        "bad lines": stats.error_count, "too short": count.short, "held out": count.held_out,
        "duplicates": count.exact + count.near, "without a token": count.chosen,
    }  # fmt: skip
    said = ", ".join(f"{number} {name}" for name, number in parts.items() if number)
    first = f" The first bad line: {stats.first_error}" if stats.first_error else ""
    return (
        f"{names}: no documents are left ({said or 'no text'}). Check the files, data.columns and "
        f"data.prepare.{first}"
    )


def validation_job(train: Job, paths: tuple[str, ...] | None) -> Job | None:
    """The job for the corpus to measure on: other files, or those held out; None for neither."""
    if paths:
        return replace(train, paths=paths, limit=None)
    return replace(train, held_out=True) if train.share else None
