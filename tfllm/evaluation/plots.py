"""Plots of metrics as PNG files. Nothing is shown on a screen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tfllm.evaluation.classification import calibration_bins
from tfllm.tasks.base import Answer
from tfllm.tasks.features import Example
from tfllm.tasks.label_names import label_index

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DOTS_PER_INCH = 150
MOST_LABELS_WITH_COUNTS = 25  # with more, the numbers inside the fields cannot be read
LONGEST_LABEL = 18  # characters
FONTS = (  # the first is inside matplotlib; the others, where installed, have Chinese
    "DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Source Han Sans SC",
    "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "PingFang SC", "Microsoft YaHei", "SimHei",
)  # fmt: skip


def write_plots(
    measured: dict[str, Any],
    answers: Sequence[Answer],
    examples: Sequence[Example],
    directory: str | Path,
) -> list[Path]:
    """Write the plots that fit the metrics: confusion_matrix.png and calibration.png.

    Only answers with one label out of several give any.

    Args:
        measured: The metrics by name.
        answers: One dict per example, as `tfllm predict` writes them.
        examples: Dicts with the field `label`.
        directory: Where to write; it is created.

    Returns:
        The files written.
    """
    matrix = measured.get("confusion_matrix")
    if matrix is None:
        return []
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    labels = matrix["labels"]
    confidence = np.array([max(answer["scores"].values()) for answer in answers])
    correct = np.array(
        [
            labels.index(answer["label"]) == label_index(example["label"], labels, example)
            for answer, example in zip(answers, examples, strict=True)
        ]
    )
    return [
        confusion_matrix(matrix["counts"], labels, directory / "confusion_matrix.png"),
        calibration(
            calibration_bins(confidence, correct),
            measured["calibration_error"],
            directory / "calibration.png",
        ),
    ]


def confusion_matrix(counts: Any, labels: Sequence[str], path: str | Path) -> Path:
    """Plot a confusion matrix.

    Args:
        counts: int [C, C]: row = gold label, column = prediction.
        labels: Names of the labels.
        path: The picture's file.

    Returns:
        `path`.
    """
    counts = np.asarray(counts)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = len(labels)
    side = min(max(4.0, 0.55 * size + 2.5), 20.0)
    with _picture(path, side + 0.8, side) as (figure, axes):
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        figure.colorbar(image, ax=axes, label="share of the gold label", fraction=0.046, pad=0.04)
        names = [_drawable(label, index) for index, label in enumerate(labels)]
        turned = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if size > 2 else {}
        axes.set_xticks(range(size), names, **turned)
        axes.set_yticks(range(size), names)
        axes.set(xlabel="predicted", ylabel="gold", title="Confusion matrix")
        if size <= MOST_LABELS_WITH_COUNTS:
            for (row, column), count in np.ndenumerate(counts):
                colour = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, f"{count:,}", ha="center", va="center", color=colour)
    return Path(path)


def calibration(bins: Sequence[dict[str, float]], error: float, path: str | Path) -> Path:
    """Plot a reliability diagram: accuracy per bin of confidence, and the examples of each bin.

    Args:
        bins: Of `classification.calibration_bins`.
        error: The expected calibration error.
        path: The picture's file.

    Returns:
        `path`.
    """
    starts = [row["lower"] for row in bins]
    bars = {"width": [row["upper"] - row["lower"] for row in bins], "align": "edge"}
    accuracy = [row["accuracy"] for row in bins]
    with _picture(path, 5.0, 6.0, rows=2, height_ratios=[3, 1]) as (_, (above, below)):
        above.bar(starts, accuracy, color="#4c78a8", edgecolor="white", label="accuracy", **bars)
        above.plot([0, 1], [0, 1], "--", color="grey", label="perfect calibration")
        above.plot(
            [row["confidence"] for row in bins], accuracy, "ko", markersize=3, label="bin's mean"
        )
        above.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
        above.set_title(f"Calibration: expected error {error:.3f}")
        above.legend(loc="upper left", frameon=False)
        below.bar(
            starts, [row["count"] for row in bins], color="#9ecae9", edgecolor="white", **bars
        )
        below.set(xlim=(0, 1), xlabel="confidence", ylabel="examples")
    return Path(path)


@contextmanager
def _picture(
    path: str | Path, width: float, height: float, rows: int = 1, **grid: Any
) -> Iterator[tuple[Figure, Any]]:
    """A figure (inches) and its axes, drawn by the Agg backend and written when the block ends."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context({"font.family": [font.name for font in _fonts()]}):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure, figure.subplots(rows, 1, gridspec_kw=grid or None)
        figure.savefig(path, dpi=DOTS_PER_INCH, format="png")


@cache
def _fonts() -> list[Any]:
    """matplotlib's own font and those fonts for Chinese that this machine has."""
    from matplotlib.font_manager import fontManager

    installed = {entry.name: entry for entry in fontManager.ttflist}
    return [installed[name] for name in FONTS if name in installed]


@cache
def _characters() -> frozenset[int]:
    from matplotlib.font_manager import get_font

    return frozenset().union(*(get_font(font.fname).get_charmap() for font in _fonts()))


def _drawable(label: str, index: int) -> str:
    """The label, cut when long; #index where no font here has its characters."""
    if any(ord(character) not in _characters() for character in label):
        return f"#{index}"
    return label if len(label) <= LONGEST_LABEL else label[: LONGEST_LABEL - 1] + "…"
