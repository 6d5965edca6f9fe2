"""Perplexity, bits per byte and accuracy of a language model, from log-probabilities per text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfllm.errors import DataError
from tfllm.runtimes.predictor import Answer, Example

LARGEST_LOSS = 700.0  # e to more is above the largest float64


def language_model(
    answers: Sequence[Answer], examples: Sequence[Example], measure: str = "all"
) -> dict:
    """The measures over all tokens together, whatever text they belong to.

    `answers`: see `runtimes.token_log_probs.scored`. `measure` "last_word": a word is right when
    all its tokens are.
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
    """e to the mean loss of the tokens, which is no finite number beyond LARGEST_LOSS."""
    return math.exp(min(loss, LARGEST_LOSS))
