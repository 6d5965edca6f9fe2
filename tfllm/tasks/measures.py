"""The measures of every task by name, and whether a higher or a lower value is better.

Who compares two measurements (the best checkpoint, early stopping, a search) asks here. A measure
without a direction (`length_ratio`, counts) is not in the tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Direction = Literal["maximize", "minimize"]


def _higher(*names: str) -> dict[str, Direction]:
    return dict.fromkeys(names, "maximize")


def _lower(*names: str) -> dict[str, Direction]:
    return dict.fromkeys(names, "minimize")


_AVERAGES = tuple(
    f"{name}{average}"
    for name in ("precision", "recall", "f1")
    for average in ("", "_macro", "_micro")
)
_LABELS = _higher("accuracy", *_AVERAGES, "mcc", "auc") | _lower("calibration_error")
_TOKENS = _higher("accuracy", "accuracy_at_1", "accuracy_at_5") | _lower("perplexity")

# By the task's `problem`, else its kind; each has `loss` as well.
MEASURES: Mapping[str, Mapping[str, Direction]] = {
    kind: _lower("loss") | measures
    for kind, measures in {
        "single_label": _LABELS,
        "multi_label": _LABELS | _lower("hamming_loss"),
        "regression": _higher("pearson", "spearman") | _lower("mse", "mae"),
        "next_sentence": _LABELS,
        "token_classification": _higher(
            "accuracy", "token_accuracy", "precision", "recall", "f1", "f1_macro"
        ),
        "question_answering": _higher(
            "accuracy",
            *(
                f"{part}{name}"
                for part in ("", "has_answer_", "no_answer_")
                for name in ("exact_match", "f1")
            ),
        ),
        "embedding": _higher(
            "accuracy", "mrr", "recall_at_1", "recall_at_5", "recall_at_10", "pearson", "spearman"
        ),
        "masked_lm": _TOKENS,
        "pretraining": _TOKENS | _higher("masked_accuracy", "next_sentence_accuracy"),
        "causal_lm": _higher("accuracy", "next_token_accuracy", "last_word_accuracy")
        | _lower("perplexity", "bits_per_byte", "bits_per_character"),
        "seq2seq": _higher("accuracy", "bleu", "chrf", "rouge_1", "rouge_2", "rouge_l")
        | _lower("perplexity", "ter"),
    }.items()
}

# Names that a measure of the user's own may have, as the field uses them.
USUAL: Mapping[str, Direction] = (
    _lower(
        "rmse", "mape", "msle", "brier", "brier_score", "log_loss", "nll", "error_rate", "wer",
        "cer", "ece", "eer", "edit_distance",
    )
    | _higher("r2", "kendall", "kappa", "map", "ndcg", "balanced_accuracy", "meteor")
)  # fmt: skip


def direction(name: str) -> Direction | None:
    """Whether a measure is maximized or minimized; None where that is not known."""
    known = [measures[name] for measures in (*MEASURES.values(), USUAL) if name in measures]
    return known[0] if known else None
