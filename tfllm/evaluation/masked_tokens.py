"""Masked-LM accuracy, perplexity and next-sentence accuracy (Devlin et al. 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tfllm.evaluation.language_model import perplexity
from tfllm.tasks.base import Answer
from tfllm.tasks.features import Example


def masked_tokens(answers: Sequence[Answer], examples: Sequence[Example]) -> dict[str, Any]:
    """Return masked-LM accuracy (at 1 and at 5) and perplexity over the masked tokens.

    Args:
        answers: {"ranks": [...], "log_probabilities": [...]} of the true token at every masked
            position; rank 1 is the best, the logarithm is natural.
        examples: Not read.
    """
    ranks = [rank for answer in answers for rank in answer["ranks"]]
    logs = [value for answer in answers for value in answer["log_probabilities"]]
    if not ranks:
        return {"accuracy_at_1": None, "accuracy_at_5": None, "perplexity": None, "tokens": 0}
    return {
        "accuracy_at_1": sum(rank <= 1 for rank in ranks) / len(ranks),
        "accuracy_at_5": sum(rank <= 5 for rank in ranks) / len(ranks),
        "perplexity": perplexity(-sum(logs) / len(logs)),
        "tokens": len(ranks),
    }


def masked_tokens_and_pairs(
    answers: Sequence[Answer], examples: Sequence[Example]
) -> dict[str, Any]:
    """Return those of `masked_tokens`, and next-sentence accuracy over all pairs.

    Args:
        answers: One per row of the task, as for `masked_tokens`, with {"next_sentence": whether
            it was right}.
        examples: Not read.
    """
    right = [answer["next_sentence"] for answer in answers]
    return {
        **masked_tokens(answers, examples),
        "next_sentence_accuracy": sum(right) / len(right) if right else None,
        "pairs": len(right),
    }
