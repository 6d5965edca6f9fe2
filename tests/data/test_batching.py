"""Batches: every row once an epoch, little padding, the same whenever asked."""

import numpy as np
import pytest

from tfllm.data.batching import Batches, bucket_length, bucket_lengths, padding_share

LENGTHS = np.random.default_rng(0).gamma(2.0, 8.0, size=1003).astype(int) + 3


def batches(**options):
    group = options.pop("group", 1)
    units = np.arange(len(LENGTHS) // group * group).reshape(-1, group)
    return Batches(LENGTHS, units, **{"batch_size": 16, "seed": 3, **options})


def test_ladder():
    assert bucket_lengths(3) == [4]
    assert bucket_lengths(33) == [4, 8, 12, 16, 20, 24, 28, 32, 40]
    assert bucket_lengths(128)[-5:] == [64, 80, 96, 112, 128]
    assert all(n % 4 == 0 for n in bucket_lengths(5000))


@pytest.mark.parametrize("options", [{}, {"batch_tokens": 512}, {"shuffle": False}, {"group": 2}])
def test_every_row_once_an_epoch(options):
    for epoch in (0, 1):
        rows = np.concatenate([b.rows for b in batches(**options).epoch(epoch)])
        assert sorted(rows) == list(range(len(LENGTHS) // options.get("group", 1) * options.get(
            "group", 1)))  # fmt: skip


def test_steps_are_constant_and_only_one_batch_is_smaller():
    for epoch in range(3):
        sizes = [len(b.rows) for b in batches().epoch(epoch)]
        assert len(sizes) == 63
        assert sorted(sizes)[:2] == [1003 % 16, 16]
    assert {len(b.rows) for b in batches(smallest=16).epoch(0)} == {16}


def test_rows_of_a_group_stay_together_in_order():
    for batch in batches(group=2).epoch(0):
        pairs = batch.rows.reshape(-1, 2)
        assert (pairs[:, 0] % 2 == 0).all() and (pairs[:, 1] == pairs[:, 0] + 1).all()
        assert batch.examples == len(pairs)  # what examples a second are counted from


def test_lengths_hold_the_rows_and_are_on_the_ladder():
    for batch in batches().epoch(0):
        longest = LENGTHS[batch.rows].max()
        assert batch.length == next(n for n in bucket_lengths(200) if n >= longest)
        assert batch.tokens == LENGTHS[batch.rows].sum() <= batch.slots


def test_token_budget():
    for batch in batches(batch_tokens=512, batch_size=64).epoch(0):
        assert batch.slots <= 512 or len(batch.rows) == 1
        assert len(batch.rows) <= 64


def test_little_padding_and_shuffled():
    one, two = batches().epoch(0), batches().epoch(1)
    assert padding_share(one) < 0.25
    assert [b.rows.tolist() for b in one] != [b.rows.tolist() for b in two]
    assert len({b.length for b in one[:10]}) > 3, "long and short batches are mixed"
    assert np.abs(np.diff([b.length for b in one])).mean() > 5


def test_any_step_can_be_the_first():
    whole = [b.rows.tolist() for b in batches().epoch(0) + batches().epoch(1)]
    feed = batches().from_step(0, 40)
    assert [next(feed).rows.tolist() for _ in range(60)] == whole[40:100]
    feed = batches().from_step(1, 2)
    assert next(feed).rows.tolist() == whole[65]


def test_seeds_differ():
    assert batches(seed=1).epoch(0)[0].rows.tolist() != batches(seed=2).epoch(0)[0].rows.tolist()


SOURCES = (LENGTHS * np.random.default_rng(1).uniform(0.5, 2.0, size=len(LENGTHS))).astype(int) + 1


def test_pairs_are_padded_on_both_sides():
    made = batches(source_lengths=SOURCES, batch_tokens=600, batch_size=64).epoch(0)
    for batch in made:
        rows = batch.rows
        assert batch.length == bucket_length(LENGTHS[rows].max())
        assert batch.source_length == bucket_length(SOURCES[rows].max())
        assert batch.tokens == LENGTHS[rows].sum() + SOURCES[rows].sum() <= batch.slots
        assert batch.slots == len(rows) * (batch.length + batch.source_length)
        assert (batch.slots <= 600 or len(rows) == 1) and len(rows) <= 64
    assert sorted(np.concatenate([b.rows for b in made])) == list(range(len(LENGTHS)))
    unsorted = batches(source_lengths=SOURCES, shuffle=False, batch_size=1003).epoch(0)
    assert padding_share(made) < 0.3 < padding_share(unsorted)
