"""Cosines against scores, and retrieval, by hand."""

import numpy as np
import pytest
from scipy import stats

from tfllm.evaluation.embeddings import embeddings


def pairs(first, second):
    return [
        {"embedding": list(one), "embedding_pair": list(two)}
        for one, two in zip(first, second, strict=True)
    ]


def test_cosines_against_scores():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 30, 8))
    gold = rng.uniform(0, 5, 30)
    cosines = (
        (first * second).sum(1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)
    )
    result = embeddings(
        pairs(first, second),
        [{"text": "a", "text_pair": "b", "label": str(score)} for score in gold],
    )
    assert result["spearman"] == pytest.approx(stats.spearmanr(cosines, gold).statistic)
    assert result["pearson"] == pytest.approx(stats.pearsonr(cosines, gold).statistic)


def test_retrieval_by_hand():
    first = [[1, 0], [0, 1], [1, 0.9]]
    second = [[1, 0.1], [0.2, 1], [0, 1]]  # the third's own one is the last of three
    examples = [{"text": str(n), "text_pair": f"p{n}"} for n in range(3)]
    result = embeddings(pairs(first, second), examples)
    # the second query prefers p2 (cosine 1) to its own p1; ranks 1, 2, 3
    assert result["accuracy"] == pytest.approx(1 / 3)
    assert result["mrr"] == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
    assert result["recall_at_1"] == pytest.approx(1 / 3)
    assert result["recall_at_5"] == 1


def test_the_same_partner_twice_is_one_candidate():
    first = [[1, 0], [1, 0.1], [0, 1]]
    second = [[1, 0], [1, 0], [0, 1]]
    examples = [{"text": str(n), "text_pair": text} for n, text in enumerate("aab")]
    assert embeddings(pairs(first, second), examples)["accuracy"] == 1


def test_a_constant_model_finds_nothing():
    same = [[1.0, 1.0]] * 4
    examples = [{"text": str(n), "text_pair": f"p{n}"} for n in range(4)]
    result = embeddings(pairs(same, same), examples)
    assert result["accuracy"] == 0
    assert result["mrr"] == pytest.approx(1 / 4)
