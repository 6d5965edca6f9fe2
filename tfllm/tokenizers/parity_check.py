"""Comparison of a Python tokenizer with its in-graph tokenizer, line by line."""

from __future__ import annotations

import gzip
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

from tfllm.errors import DataError

if TYPE_CHECKING:
    import tensorflow as tf

    from tfllm.tokenizers.base import Encoding, InGraphTokenizer, Tokenizer

BATCH_LINES = 256
BATCH_BYTES = 1 << 18
SHOWN_DIFFERENCES = 5

Progress = Callable[[float], None]
TokenSpans = list[tuple[int, int, int]]
"""(id, start, end) of each token; offsets count code points."""


@dataclass(frozen=True)
class Difference:
    """A line on which the two tokenizers do not agree."""

    line: int
    """Counted from 1."""
    text: str
    python: TokenSpans
    graph: TokenSpans


@dataclass
class Report:
    """The result of the comparison on one file."""

    path: str
    lines: int = 0
    size_bytes: int = 0
    tokens: int = 0
    different: int = 0
    """Lines on which the two do not agree."""
    python_seconds: float = 0.0
    """CPU time of the Python tokenizer, of all threads."""
    graph_seconds: float = 0.0
    """CPU time of the in-graph tokenizer, of all threads."""
    examples: list[Difference] = field(default_factory=list)
    """The first few differences."""


def check_file(
    path: str | Path,
    tokenizer: Tokenizer,
    graph: InGraphTokenizer,
    progress: Progress = lambda _: None,
    batch_lines: int = BATCH_LINES,
) -> Report:
    """Compare ids, offsets and texts on every line of a file in constant memory.

    Args:
        path: A file of any format, `.gz` or not; its lines are compared unchanged.
        tokenizer: The Python tokenizer.
        graph: Its in-graph tokenizer.
        progress: Called with the bytes read from the disk since the last call.
        batch_lines: Lines of one call at most.

    Raises:
        DataError: The file cannot be read.
    """
    report = Report(str(path))
    compare([b"warm-up"], tokenizer, graph, Report(""))  # the first call builds the graph
    for batch in _batches(read_lines(path, progress), batch_lines):
        compare(batch, tokenizer, graph, report)
    return report


def compare(
    lines: list[bytes], tokenizer: Tokenizer, graph: InGraphTokenizer, report: Report
) -> None:
    """Compare one batch of lines.

    Args:
        lines: The lines, as bytes.
        tokenizer: The Python tokenizer.
        graph: Its in-graph tokenizer.
        report: The result is added to it.
    """
    import tensorflow as tf

    start = time.process_time()
    texts = [line.decode("utf-8", errors="replace") for line in lines]
    rows = tokenizer.encode_batch(texts, add_special_tokens=False)
    middle = time.process_time()
    results = graph.tokenize_with_offsets(tf.constant(lines))
    end = time.process_time()
    report.graph_seconds += end - middle
    report.python_seconds += middle - start
    report.size_bytes += sum(map(len, lines))
    ids, starts, ends = (result.to_list() for result in results)
    decoded = _decode(tokenizer, graph, results[0])
    for text, row, graph_text, *graph_row in zip(
        texts, rows, decoded, ids, starts, ends, strict=True
    ):
        report.lines += 1
        ours, theirs = _token_spans(row), list(zip(*graph_row, strict=True))
        report.tokens += len(ours)
        if ours != theirs or graph_text is not None and graph_text != tokenizer.decode(row.ids):
            report.different += 1
            if len(report.examples) < SHOWN_DIFFERENCES:
                report.examples.append(Difference(report.lines, text, ours, theirs))


def _decode(
    tokenizer: Tokenizer, graph: InGraphTokenizer, ids: tf.RaggedTensor
) -> Sequence[str | None]:
    """The texts that the graph decodes from its own ids; None where it does not decode."""
    if tokenizer.kind == "wordpiece":
        return [None] * ids.nrows().numpy()
    return [text.decode() for text in graph.detokenize(ids).numpy()]


def read_lines(path: str | Path, progress: Progress = lambda _: None) -> Iterator[bytes]:
    """Yield the lines of a file without their line ends.

    Args:
        path: A file, `.gz` or not.
        progress: Called with the bytes read from the disk since the last call.

    Raises:
        DataError: The file cannot be read.
    """
    path = Path(path)
    try:
        with path.open("rb") as raw:
            file = cast(IO[bytes], gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw)
            reported = 0
            for number, line in enumerate(file):
                if number % 1000 == 0:
                    progress(raw.tell() - reported)
                    reported = raw.tell()
                yield line.removesuffix(b"\n").removesuffix(b"\r")
            progress(raw.tell() - reported)
    except FileNotFoundError:
        raise DataError(f"There is no file '{path}'. Check the path.") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: not a complete gzip file: {error}. Copy it again.") from None
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


def _token_spans(row: Encoding) -> TokenSpans:
    return [(i, *offset) for i, offset in zip(row.ids, row.offsets, strict=True)]
