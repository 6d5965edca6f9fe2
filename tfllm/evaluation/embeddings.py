"""How well cosines of vectors follow human scores, or find the right partner of a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tfllm.evaluation.classification import correlations, number
from tfllm.tasks.base import Answer
from tfllm.tasks.features import Example

RANKS = (1, 5, 10)  # recall@k
SCORED_AT_ONCE = 1024  # queries; bounds the matrix of cosines at 1024 x candidates


def embeddings(answers: Sequence[Answer], examples: Sequence[Example]) -> dict[str, Any]:
    """Return correlations of cosines with scores, or retrieval metrics.

    With a number as `label`: Spearman's and Pearson's correlation of the cosines with it, as STS-B
    counts. Without: each `text` looks for its own `text_pair` among all of them, which gives `mrr`
    (mean of 1 / rank), `recall_at_k`, and `accuracy`, which is recall at 1. A candidate with the
    same text as the partner is the partner. Ties count against the model: the rank is the last.

    Args:
        answers: {"embedding": [...], "embedding_pair": [...]}, vectors [D].
        examples: {"text", "text_pair"}, and `label` or none.
    """
    first = _unit(np.array([answer["embedding"] for answer in answers], np.float64))
    second = _unit(np.array([answer["embedding_pair"] for answer in answers], np.float64))
    if examples[0].get("label") is not None:
        cosines = np.einsum("nd,nd->n", first, second)
        return correlations(cosines, np.array([number(example) for example in examples]))
    ranks = _ranks(first, second, [example["text_pair"] for example in examples])
    return {
        "accuracy": float(np.mean(ranks == 1)),
        "mrr": float(np.mean(1 / ranks)),
        **{f"recall_at_{rank}": float(np.mean(ranks <= rank)) for rank in RANKS},
    }


def _ranks(queries: np.ndarray, candidates: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    """int [N]: the position, from 1, of each query's own candidate by falling cosine."""
    positions = {text: position for position, text in reversed(list(enumerate(texts)))}
    own = np.array([positions[text] for text in texts])
    candidates = candidates[sorted(positions.values())]
    own = np.searchsorted(sorted(positions.values()), own)
    ranks = []
    for start in range(0, len(queries), SCORED_AT_ONCE):
        targets = own[start : start + SCORED_AT_ONCE]
        cosines = queries[start : start + SCORED_AT_ONCE] @ candidates.T
        reached = cosines[np.arange(len(targets)), targets][:, None]
        ranks.append((cosines >= reached).sum(axis=1))
    return np.concatenate(ranks)


def _unit(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths == 0, 1, lengths)
