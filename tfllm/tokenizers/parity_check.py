"""The Python tokenizer against the same as TensorFlow ops, line by line."""

from __future__ import annotations

import gzip
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from tfllm.errors import DataError

if TYPE_CHECKING:
    from tfllm.tokenizers.base import Encoding, Tokenizer
    from tfllm.tokenizers.graph.base import TokenizerGraph

BATCH_LINES = 256
BATCH_BYTES = 1 << 18
SHOWN_DIFFERENCES = 5

Progress = Callable[[float], None]
Tokens = list[tuple[int, int, int]]
"""(id, start, end) of each token; offsets are code points"""


@dataclass(frozen=True)
class Difference:
    """A line on which the two do not agree."""

    line: int
    """Counted from 1."""
    text: str
    python: Tokens
    graph: Tokens


@dataclass
class Report:
    """What was compared in one file."""

    path: str
    lines: int = 0
    size_bytes: int = 0
    tokens: int = 0
    different: int = 0
    python_seconds: float = 0.0
    """Of processor time, all threads together: what one core would need."""
    graph_seconds: float = 0.0
    examples: list[Difference] = field(default_factory=list)
    """The first few differences."""


def check_file(
    path: str | Path,
    tokenizer: Tokenizer,
    graph: TokenizerGraph,
    progress: Progress = lambda _: None,
    batch_lines: int = BATCH_LINES,
) -> Report:
    """Compares ids, offsets and texts on every line of a file, `.gz` or not, in constant memory.

    Lines are taken as they are, whatever the file's format; each call gets up to `batch_lines`.
    Raises DataError for a file that cannot be read.
    """
    report = Report(str(path))
    compare([b"warm-up"], tokenizer, graph, Report(""))  # the first call builds the graph
    for batch in _batches(read_lines(path, progress), batch_lines):
        compare(batch, tokenizer, graph, report)
    return report


def compare(
    lines: list[bytes], tokenizer: Tokenizer, graph: TokenizerGraph, report: Report
) -> None:
    """Compares one batch of lines and adds what it found to the report."""
    import tensorflow as tf

    begun = time.process_time()
    texts = [line.decode("utf-8", errors="replace") for line in lines]
    rows = tokenizer.encode_batch(texts, add_special_tokens=False)
    parted = time.process_time()
    results = graph.tokenize_with_offsets(tf.constant(lines))
    ended = time.process_time()
    report.graph_seconds += ended - parted
    report.python_seconds += parted - begun
    report.size_bytes += sum(map(len, lines))
    ids, starts, ends = (result.to_list() for result in results)
    written = _texts_back(tokenizer, graph, results[0])
    for text, row, back, *graph_row in zip(texts, rows, written, ids, starts, ends, strict=True):
        report.lines += 1
        ours, theirs = _tokens(row), list(zip(*graph_row, strict=True))
        report.tokens += len(ours)
        if ours != theirs or back is not None and back != tokenizer.decode(row.ids):
            report.different += 1
            if len(report.examples) < SHOWN_DIFFERENCES:
                report.examples.append(Difference(report.lines, text, ours, theirs))


def _texts_back(tokenizer: Tokenizer, graph: TokenizerGraph, ids: Any) -> Sequence[str | None]:
    """What the graph makes of its own ids, None where it does not write texts."""
    if tokenizer.kind == "wordpiece":
        return [None] * ids.nrows().numpy()
    return [text.decode() for text in graph.detokenize(ids).numpy()]


def read_lines(path: str | Path, progress: Progress = lambda _: None) -> Iterator[bytes]:
    """The lines of a file without their ends; `progress` is told the bytes read from disk."""
    path = Path(path)
    try:
        with path.open("rb") as raw:
            file = cast(IO[bytes], gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw)
            told = 0
            for number, line in enumerate(file):
                if number % 1000 == 0:
                    progress(raw.tell() - told)
                    told = raw.tell()
                yield line.removesuffix(b"\n").removesuffix(b"\r")
            progress(raw.tell() - told)
    except FileNotFoundError:
        raise DataError(f"There is no file '{path}'. Check the path.") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: not a whole gzip file: {error}. Copy it again.") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from None


def _batches(lines: Iterable[bytes], batch_lines: int) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    size_bytes = 0
    for line in lines:
        batch.append(line)
        size_bytes += len(line)
        if len(batch) == batch_lines or size_bytes > BATCH_BYTES:
            yield batch
            batch, size_bytes = [], 0
    if batch:
        yield batch


def _tokens(row: Encoding) -> Tokens:
    return [(i, *offset) for i, offset in zip(row.ids, row.offsets, strict=True)]
