"""Measures of answers that name a label, several labels, or a number.

All of them are fractions between 0 and 1 (or -1 and 1), never percent. A measure that the data
leaves undefined, such as the AUC when every example has the same label, is None, not a made-up
number.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats
from sklearn import metrics as sk

from tfllm.errors import DataError
from tfllm.tasks import label_names
from tfllm.tasks.base import Answer
from tfllm.tasks.features import Example

BINS = 15  # of equal width, as in Guo et al. 2017, "On Calibration of Modern Neural Networks"

Answers = Sequence[Answer]
Examples = Sequence[Example]


def single_label(answers: Answers, examples: Examples) -> dict[str, Any]:
    """Return accuracy, precision, recall, F1, MCC, AUC, calibration error and confusion matrix.

    With two labels, `precision`, `recall`, `f1` and `auc` are those of the second one, as GLUE
    counts them; with more, `auc` is the mean of one-vs-rest.

    Args:
        answers: {"label": name, "scores": {name: probability}}, the names in the model's order.
        examples: {"label": name or index}.
    """
    labels = list(answers[0]["scores"])
    gold = np.array(
        [label_names.label_index(example["label"], labels, example) for example in examples]
    )
    predicted = np.array([labels.index(answer["label"]) for answer in answers])
    scores = score_matrix(answers, labels)
    present = list(range(len(labels)))
    result = {
        "accuracy": float(sk.accuracy_score(gold, predicted)),
        **_averages(gold, predicted, present),
        "mcc": _mcc(gold, predicted),
        "auc": _auc(gold, scores),
        "calibration_error": calibration_error(scores.max(axis=1), predicted == gold),
        "per_class": _per_class(gold, predicted, labels),
        "confusion_matrix": {
            "labels": labels,
            "counts": sk.confusion_matrix(gold, predicted, labels=present).tolist(),
        },
    }
    return result


def multi_label(answers: Answers, examples: Examples) -> dict[str, Any]:
    """Return the same for any number of labels per example, and the Hamming loss.

    `accuracy` asks for the exact set. MCC and AUC are means over the labels, the calibration error
    is over every (example, label).

    Args:
        answers: {"label": [names], "scores": {name: probability}}.
        examples: {"label": [names]}.
    """
    labels = list(answers[0]["scores"])
    gold = np.array([_indicator(example["label"], labels, example) for example in examples])
    predicted = np.array([_indicator(answer["label"], labels, {}) for answer in answers])
    scores = score_matrix(answers, labels)
    columns = range(len(labels))
    areas = [_binary_auc(gold[:, column], scores[:, column]) for column in columns]
    return {
        "accuracy": float(sk.accuracy_score(gold, predicted)),
        "hamming_loss": float(sk.hamming_loss(gold, predicted)),
        **_averages(gold, predicted, None),
        "mcc": float(np.mean([_mcc(gold[:, c], predicted[:, c]) for c in columns])),
        "auc": _mean_of_defined(areas),
        "calibration_error": calibration_error(
            np.maximum(scores, 1 - scores).ravel(), ((scores > 0.5) == gold).ravel()
        ),
        "per_class": _per_class(gold, predicted, labels),
    }


def regression(answers: Answers, examples: Examples) -> dict[str, Any]:
    """Return Pearson and Spearman correlation, mean squared and mean absolute error.

    Args:
        answers: {"label": number}; or {"scores": {name: number}} where an example has several
            numbers, over which each metric is the mean then.
        examples: {"label": number}, or {"label": [numbers]}.
    """
    if "scores" in answers[0]:
        names = list(answers[0]["scores"])
        predicted = score_matrix(answers, names)
        gold = np.stack([label_names.numeric_label(example, len(names)) for example in examples])
    else:
        predicted = np.array([[float(answer["label"])] for answer in answers])
        gold = np.array([[number(example)] for example in examples])
    if not np.isfinite(predicted).all():  # of a broken model
        return dict.fromkeys(("pearson", "spearman", "mse", "mae"))
    columns = [correlations(*pair) for pair in zip(predicted.T, gold.T, strict=True)]
    return {
        **{name: _mean_of_defined([column[name] for column in columns]) for name in columns[0]},
        "mse": float(sk.mean_squared_error(gold, predicted)),
        "mae": float(sk.mean_absolute_error(gold, predicted)),
    }


def _mean_of_defined(values: Sequence[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None


def correlations(first: np.ndarray, second: np.ndarray) -> dict[str, float | None]:
    """Return Pearson's r and Spearman's rho; None for constant sides, single values and NaN.

    Args:
        first: Numbers [N].
        second: Numbers [N].
    """
    usable = len(first) > 1 and bool(np.isfinite([first, second]).all())
    if not usable or np.ptp(first) == 0 or np.ptp(second) == 0:
        return {"pearson": None, "spearman": None}
    return {
        "pearson": float(stats.pearsonr(first, second).statistic),
        "spearman": float(stats.spearmanr(first, second).statistic),
    }


def calibration_error(
    confidence: np.ndarray, correct: np.ndarray, bins: int = BINS
) -> float | None:
    """Return the expected calibration error: mean distance of confidence and accuracy.

    None where a confidence is not a number. Source: Guo et al. 2017.

    Args:
        confidence: Probabilities [N] of the predicted labels.
        correct: Whether they are right: bool [N].
        bins: Number of bins of equal width.
    """
    if not np.isfinite(confidence).all():
        return None
    table = calibration_bins(confidence, correct, bins)
    return float(
        sum(row["count"] * abs(row["confidence"] - row["accuracy"]) for row in table)
        / max(len(confidence), 1)
    )


def calibration_bins(
    confidence: np.ndarray, correct: np.ndarray, bins: int = BINS
) -> list[dict[str, float]]:
    """Group predictions by confidence.

    Args:
        confidence: Probabilities [N] of the predicted labels.
        correct: Whether they are right: bool [N].
        bins: Number of bins of equal width. A bin holds (lower, upper], the first one also 0.

    Returns:
        `lower` and `upper` edge, `count`, mean `confidence` and `accuracy` of each bin that is not
        empty.
    """
    position = np.clip(np.ceil(np.asarray(confidence) * bins).astype(int) - 1, 0, bins - 1)
    table = []
    for index in np.unique(position):
        here = position == index
        table.append(
            {
                "lower": float(index) / bins,
                "upper": float(index + 1) / bins,
                "count": int(here.sum()),
                "confidence": float(np.mean(confidence[here])),
                "accuracy": float(np.mean(correct[here])),
            }
        )
    return table


def score_matrix(answers: Answers, labels: Sequence[str]) -> np.ndarray:
    """Return the answers' `scores` as float64 [examples, labels]."""
    return np.array([[answer["scores"][label] for label in labels] for answer in answers])


def number(example: Example) -> float:
    """Return the example's label as a number.

    Raises:
        DataError: It is no finite number; the message names file and line.
    """
    try:
        value = float(example["label"])
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        where = f"{example['_where']}: " if "_where" in example else ""
        raise DataError(
            f"{where}the label {example['label']!r} is not a number, and this model answers with "
            "one. Name the column that holds it: --set columns.label=NAME."
        )
    return value


def _averages(
    gold: np.ndarray, predicted: np.ndarray, present: list[int] | None
) -> dict[str, float]:
    """Precision, recall, F1: `_macro`, `_micro`, and of the second of two labels without ending."""
    kinds = [("_macro", "macro"), ("_micro", "micro")]
    if present is not None and len(present) == 2:
        kinds.insert(0, ("", "binary"))
    result: dict[str, float] = {}
    for ending, average in kinds:
        chosen = None if average == "binary" else present
        precision, recall, f1, _ = sk.precision_recall_fscore_support(
            gold, predicted, labels=chosen, average=average, zero_division=0
        )
        values = zip(("precision", "recall", "f1"), (precision, recall, f1), strict=True)
        result |= {f"{name}{ending}": float(value) for name, value in values}
    return result


def _per_class(
    gold: np.ndarray, predicted: np.ndarray, labels: Sequence[str]
) -> dict[str, dict[str, float]]:
    columns = sk.precision_recall_fscore_support(
        gold, predicted, labels=list(range(len(labels))), zero_division=0
    )
    return {
        label: {
            "precision": float(precision),
            "recall": float(recall),
            "f1": float(f1),
            "examples": int(support),
        }
        for label, precision, recall, f1, support in zip(labels, *columns, strict=True)
    }


def _mcc(gold: np.ndarray, predicted: np.ndarray) -> float:
    """Matthews' correlation; 0 where everything has one label, which scikit-learn warns about."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return float(sk.matthews_corrcoef(gold, predicted))


def _auc(gold: np.ndarray, scores: np.ndarray) -> float | None:
    """Area under the ROC curve: of the second of two labels, or the mean of one-vs-rest."""
    if scores.shape[1] == 2:
        return _binary_auc(gold, scores[:, 1])
    areas = [_binary_auc(gold == index, scores[:, index]) for index in range(scores.shape[1])]
    return _mean_of_defined(areas)


def _binary_auc(gold: np.ndarray, score: np.ndarray) -> float | None:
    if not 0 < np.sum(gold) < len(gold) or not np.isfinite(score).all():
        return None
    return float(sk.roc_auc_score(gold, score))


def _indicator(chosen: Any, labels: Sequence[str], example: Example) -> list[int]:
    """[labels] of 0 and 1 from a list of names or indices."""
    positions = label_names.label_indices(chosen, labels, example)
    return [int(index in positions) for index in range(len(labels))]
