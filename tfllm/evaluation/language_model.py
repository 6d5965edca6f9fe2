"""Perplexity, bits per byte and accuracy of a language model, from log-probabilities per text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfllm.errors import DataError
from tfllm.runtimes.protocols import Example, Prediction

LARGEST_LOSS = 700.0  # e to more is above the largest float64


def language_model(
    answers: Sequence[Prediction], examples: Sequence[Example], measure: str = "all"
) -> dict:
    """Return perplexity, bits and accuracy over the tokens of all texts together.

    Args:
        answers: Per text `log_probability` (natural), `token_count`, `correct`, `byte_count` and
            `character_count`, see `runtimes.token_log_probs`.
        examples: Not read.
        measure: "all" tokens, or the "last_word" of every text, which is right when all its
            tokens are (LAMBADA: Paperno et al. 2016).

    Raises:
        DataError: No text has a token that could be predicted.
    """
    total = {
        name: sum(answer.get(name, 0) for answer in answers)
        for name in ("log_probability", "token_count", "correct", "byte_count", "character_count")
    }
    tokens = total["token_count"]
    if not tokens:
        raise DataError(
            "The texts have no token that could be predicted from others. Give longer ones."
        )
    result: dict[str, Any] = {
        "perplexity": perplexity(-total["log_probability"] / tokens),
        "loss": -total["log_probability"] / tokens,
    }
    if measure == "last_word":
        right = [answer["correct"] == answer["token_count"] for answer in answers]
        return {"last_word_accuracy": float(np.mean(right)), **result, "tokens": tokens}
    for name, unit in (("bits_per_byte", "byte_count"), ("bits_per_character", "character_count")):
        if total[unit]:
            result[name] = -total["log_probability"] / math.log(2) / total[unit]
    if all("correct" in answer for answer in answers):
        result["next_token_accuracy"] = total["correct"] / tokens
    return {**result, "tokens": tokens}


def perplexity(loss: float) -> float:
    """Return e to the mean loss of the tokens, with losses above LARGEST_LOSS cut to it."""
    return math.exp(min(loss, LARGEST_LOSS))
