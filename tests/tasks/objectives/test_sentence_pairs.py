"""Pairs of text: lengths, truncation, halves, against what was published."""

import random
from types import SimpleNamespace

import numpy as np
import pytest

from tfllm.errors import DataError
from tfllm.tasks.objectives import sentence_pairs

RANDOM_TOLERANCE = 0.03  # of about 3,000 pairs


def corpus(documents):
    """Sentences whose token ids are their places; `documents`: lengths of sentences."""
    lengths = np.array([n for document in documents for n in document], np.int64)
    counts = [len(document) for document in documents]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    return SimpleNamespace(
        sentence_lengths=lengths,
        document_starts=np.concatenate([[0], np.cumsum(counts)]),
        token_starts=starts,
        tokens=lambda begin, end: np.arange(begin, end, dtype=np.int32),
    )


def drawn(plan, epoch=0):
    return [plan.pair(row, np.random.default_rng((1, epoch, row))) for row in range(len(plan))]


def size(part):
    return part[1] - part[0]


@pytest.fixture(scope="module")
def some():
    chance = np.random.default_rng(0)
    return corpus([chance.integers(3, 40, chance.integers(2, 30)) for _ in range(600)])


def test_every_row_has_its_length_and_two_parts(some):
    plan = sentence_pairs.plan_pairs(some, 61)
    for row, pair in enumerate(drawn(plan)):
        assert size(pair.first) >= 1 and size(pair.second) >= 1
        assert size(pair.first) + size(pair.second) == plan.total[row] <= 61


def test_rows_hold_every_sentence_of_every_document_once(some):
    plan = sentence_pairs.plan_pairs(some, 61)
    assert plan.begin[0] == 0 and plan.end[-1] == len(some.sentence_lengths)
    assert (plan.begin[1:] == plan.end[:-1]).all()
    documents = np.searchsorted(some.document_starts, plan.begin, side="right") - 1
    assert (documents == plan.document).all()
    assert (plan.end <= some.document_starts[plan.document + 1]).all()


def test_half_of_the_pairs_do_not_follow(some):
    plan = sentence_pairs.plan_pairs(some, 61)
    several = plan.end - plan.begin > 1  # a single sentence has nothing that follows
    pairs = drawn(plan)
    followed = np.array([pair.is_next for pair in pairs])
    assert not followed[~several].any()
    assert followed[several].mean() == pytest.approx(0.5, abs=RANDOM_TOLERANCE)
    owner = np.repeat(np.arange(600), np.diff(some.token_starts[some.document_starts]))
    for row, pair in enumerate(pairs):
        assert owner[pair.first[0]] == plan.document[row]
        assert (owner[pair.second[0]] == plan.document[row]) == pair.is_next
        assert owner[pair.second[0]] == owner[pair.second[1] - 1]  # of one document


def test_a_part_begins_and_ends_with_sentences_unless_it_is_cut(some):
    plan = sentence_pairs.plan_pairs(some, 10_000)  # nothing is too long
    starts = set(some.token_starts.tolist())
    for row, pair in enumerate(drawn(plan)):
        if plan.end[row] - plan.begin[row] > 1 and pair.is_next:
            assert {*pair.first, *pair.second} <= starts
            assert pair.first[1] == pair.second[0]


def test_other_epochs_have_other_pairs_of_the_same_length(some):
    plan = sentence_pairs.plan_pairs(some, 61)
    first, second = drawn(plan, 0), drawn(plan, 1)
    assert drawn(plan, 0) == first
    assert sum(a != b for a, b in zip(first, second, strict=True)) > len(plan) / 2


def test_a_tenth_of_the_documents_has_shorter_rows():
    documents = [[10] * 40 for _ in range(3000)]
    plan = sentence_pairs.plan_pairs(corpus(documents), 100)
    longest = np.zeros(3000)
    np.maximum.at(longest, plan.document, plan.total)
    # A length from 2 to 100, drawn for a tenth; up to 90 it shows in rows of whole sentences.
    assert (longest < 100).mean() == pytest.approx(0.1 * 89 / 99, abs=0.02)


def test_the_only_other_document_is_taken_as_it_is():
    plan = sentence_pairs.plan_pairs(corpus([[50, 50], [4]]), 90)
    pairs = [plan.pair(0, np.random.default_rng(seed)) for seed in range(20)]
    assert {pair.second for pair in pairs if not pair.is_next} == {(100, 104)}
    with pytest.raises(DataError, match="need two documents"):
        sentence_pairs.plan_pairs(corpus([[5, 5]]), 90)


def published(first, second, longest, rng):
    """truncate_seq_pair of google-research/bert, create_pretraining_data.py."""
    while len(first) + len(second) > longest:
        tokens = first if len(first) > len(second) else second
        if rng.random() < 0.5:
            del tokens[0]
        else:
            tokens.pop()


def test_truncation_keeps_as_much_of_each_part_as_the_published_one():
    rng = random.Random(0)
    for _ in range(300):
        a, b = rng.randint(1, 30), rng.randint(1, 30)
        total = rng.randint(2, 40)
        left, right = list(range(a)), list(range(b))
        published(left, right, total, rng)
        first, second = sentence_pairs.truncate_pair(
            (0, a), (100, 100 + b), total, np.random.default_rng(0)
        )
        assert (size(first), size(second)) == (len(left), len(right))
        assert 0 <= first[0] and first[1] <= a and 100 <= second[0] and second[1] <= 100 + b


def test_truncation_takes_from_both_ends():
    begins = [
        sentence_pairs.truncate_pair((0, 60), (60, 70), 50, np.random.default_rng(seed))[0][0]
        for seed in range(500)
    ]
    # 20 tokens, each from the begin or the end: binomial, as one at a time is.
    assert np.mean(begins) == pytest.approx(10, abs=0.5)
    assert np.var(begins) == pytest.approx(5, abs=1.2)
