"""Statistics of the lengths of sentences and documents of a corpus, as JSON and as a plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tfllm.data.corpora.corpus import Corpus
from tfllm.data.corpora.shards import write_json

FILES = NUMBERS, PICTURE = "lengths.json", "lengths.png"
PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
DOTS_PER_INCH = 150
COUNTED_AT_ONCE = 1 << 20  # sentences


def write_lengths(corpus: Corpus, directory: Path) -> dict[str, Any]:
    """Write lengths.json and lengths.png.

    Args:
        corpus: The corpus.
        directory: Where they are written.

    Returns:
        The content of lengths.json.
    """
    starts = corpus.document_starts
    counts_by_name = {
        "sentence_tokens": _counts(corpus.sentence_lengths),
        "document_sentences": _counts(starts, difference=True),
        "document_tokens": _counts(starts, difference=True, of=corpus.token_starts),
    }
    numbers = {name: _summary(counts) for name, counts in counts_by_name.items()}
    write_json(directory / NUMBERS, numbers)
    draw(counts_by_name, directory / PICTURE)
    return numbers


def _counts(
    array: np.ndarray, difference: bool = False, of: np.ndarray | None = None
) -> dict[int, int]:
    """How often each value occurs, or each difference of neighbours, in constant memory.

    `of`: an array of which the values are indices.
    """
    totals: dict[int, int] = {}
    rows = len(array) - difference
    for start in range(0, rows, COUNTED_AT_ONCE):
        part = array[start : min(start + COUNTED_AT_ONCE, rows) + difference]
        part = part if of is None else of[part]
        values, counts = np.unique(np.diff(part) if difference else part, return_counts=True)
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            totals[value] = totals.get(value, 0) + count
    return dict(sorted(totals.items()))


def _summary(counts: dict[int, int]) -> dict[str, Any]:
    """Count, mean, extremes, percentiles, and a histogram whose bins double in width."""
    values = np.fromiter(counts, np.int64)
    numbers = np.fromiter(counts.values(), np.int64)
    ends = numbers.cumsum()
    total = int(ends[-1])
    bins: dict[str, int] = {}
    for value, count in counts.items():
        low = 1 << max(value.bit_length() - 1, 0)
        name = f"{low}-{2 * low - 1}"
        bins[name] = bins.get(name, 0) + count
    percentiles = {
        str(share): int(values[np.searchsorted(ends, total * share / 100)]) for share in PERCENTILES
    }
    return {
        "count": total,
        "mean": round(float((values * numbers).sum() / total), 2),
        "smallest": int(values[0]),
        "largest": int(values[-1]),
        "percentiles": percentiles,
        "histogram": bins,
    }


def draw(counts_by_name: dict[str, dict[int, int]], path: Path) -> None:
    """Plot a histogram of each kind of length with its median, on a logarithmic axis.

    Args:
        counts_by_name: Name such as "sentence_tokens" -> length -> how often it occurs.
        path: A PNG file.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context({"font.family": "DejaVu Sans"}):  # matplotlib's own: the same everywhere
        figure = Figure(figsize=(6, 7), layout="constrained")
        FigureCanvasAgg(figure)
        for axes, (name, counts) in zip(
            figure.subplots(len(counts_by_name), 1), counts_by_name.items(), strict=True
        ):
            values = np.fromiter(counts, float)
            weights = np.fromiter(counts.values(), float)
            edges = _edges(values[-1])
            axes.hist(values, bins=edges, weights=weights, color="#4c78a8", edgecolor="white")
            median = values[np.searchsorted(weights.cumsum(), weights.sum() / 2)]
            axes.axvline(median, color="black", linestyle="--", label=f"median {median:,.0f}")
            axes.set(xscale="log", xlim=(edges[0], edges[-1]))
            kind, _, unit = name.partition("_")
            axes.set(xlabel=f"{unit} in a {kind}", ylabel=f"{kind}s")
            axes.xaxis.set_major_formatter("{x:,.0f}")
            axes.legend(frameon=False)
        figure.savefig(path, dpi=DOTS_PER_INCH, format="png")


def _edges(largest: float) -> np.ndarray:
    """The edges of bins, each 2 ** 0.25 times as wide as the last where whole numbers allow."""
    steps = np.arange(0, 4 * np.log2(largest + 1) + 1)
    return np.unique(np.round(2 ** (steps / 4))) - 0.5 if largest > 1 else np.array([0.5, 1.5])
