"""Metrics by name, and whether a higher or a lower value is better.

Whoever compares two measurements (the best checkpoint, early stopping, a search) asks here. A
metric without a direction (`length_ratio`, counts) is not in the table. A name has one direction,
whatever task measures it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Direction = Literal["maximize", "minimize"]

LABEL_METRICS = (
    "accuracy",
    *(
        f"{name}{mean}"
        for name in ("precision", "recall", "f1")
        for mean in ("", "_macro", "_micro")
    ),
    "mcc",
    "auc",
    "calibration_error",
)
MASKED_TOKEN_METRICS = ("accuracy", "accuracy_at_1", "accuracy_at_5", "perplexity")

MINIMIZED = (
    "loss", "perplexity", "calibration_error", "hamming_loss", "mse", "mae", "bits_per_byte",
    "bits_per_character", "ter",
    # Metrics of the user's own, by the names that the field uses.
    "rmse", "mape", "msle", "brier", "brier_score", "log_loss", "nll", "error_rate", "wer", "cer",
    "ece", "eer", "edit_distance",
)  # fmt: skip
MAXIMIZED = (
    *(name for name in (*LABEL_METRICS, *MASKED_TOKEN_METRICS) if name not in MINIMIZED),
    "pearson", "spearman", "token_accuracy", "exact_match", "has_answer_exact_match",
    "has_answer_f1", "no_answer_exact_match", "no_answer_f1", "mrr", "recall_at_1", "recall_at_5",
    "recall_at_10", "masked_accuracy", "next_sentence_accuracy", "next_token_accuracy",
    "last_word_accuracy", "bleu", "chrf", "rouge_1", "rouge_2", "rouge_l",
    "r2", "kendall", "kappa", "map", "ndcg", "balanced_accuracy", "meteor",
)  # fmt: skip

DIRECTIONS: Mapping[str, Direction] = {
    **dict.fromkeys(MINIMIZED, "minimize"),
    **dict.fromkeys(MAXIMIZED, "maximize"),
}


def direction(name: str) -> Direction | None:
    """Return whether a metric is maximized or minimized; None where that is not known."""
    return DIRECTIONS.get(name)
