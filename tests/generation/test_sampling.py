"""Filters and penalties against transformers' processors, by goldens, and the draw itself."""

import numpy as np
import pytest
import tensorflow as tf

from tests.generation.goldens import golden
from tfllm.generation import penalties, random, sampling
from tfllm.generation.config import GenerationConfig, GraphFlags, batch_configs, graph_flags

EVERYTHING = GraphFlags(True, True, True, 4, 4)


def processed(name):
    return golden()[f"processed/{name}"]


def rows_of(count=3, **fields):
    settings = GenerationConfig(**{"temperature": 1.0, **fields})
    made = batch_configs([settings] * count, [100] * count)
    return tf.nest.map_structure(tf.constant, made)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("temperature", {"temperature": 0.7}),
        ("top_k", {"top_k": 5}),
        ("top_p", {"top_p": 0.8}),
        ("min_p", {"min_p": 0.1}),
    ],
)
@pytest.mark.parametrize("front", [3, 43])
def test_filters_equal_transformers(name, fields, front, monkeypatch):
    """With `front` 3 the whole vocabulary has to be sorted."""
    monkeypatch.setattr(sampling, "FRONT", front)
    likely = sampling.filtered_probabilities(
        processed("logits"), rows_of(**fields), EVERYTHING
    ).numpy()
    wanted = np.exp(processed(name) - processed(name).max(-1, keepdims=True))
    np.testing.assert_allclose(likely, wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("repetition", {"repetition_penalty": 1.3}),
        ("ngram_2", {"no_repeat_ngram_size": 2}),
        ("ngram_3", {"no_repeat_ngram_size": 3}),
        ("bad_words", {"bad_words_ids": "golden"}),
    ],
)
def test_penalties_equal_transformers(name, fields):
    ids = processed("ids")
    if "bad_words_ids" in fields:
        first, second = ids[0].tolist(), ids[1].tolist()
        fields = {"bad_words_ids": ((4,), (first[-1], 9), (second[-2], second[-1], 10), (999,))}
    lengths = tf.constant([12, 12, 12])
    padded = tf.pad(ids, [[0, 0], [0, 5]], constant_values=3)
    got = penalties.apply_penalties(
        processed("logits"), padded, lengths, lengths - 4, rows_of(**fields), EVERYTHING
    ).numpy()
    wanted = processed(name)
    np.testing.assert_array_equal(got < -1e29, np.isneginf(wanted))
    np.testing.assert_allclose(got[got > -1e29], wanted[got > -1e29], rtol=1e-6)
    assert (got != processed("logits")).any()


def test_presence_and_frequency_count_the_text_without_the_prompt():
    ids = tf.constant([[1, 1, 2, 2, 2, 4, 0, 0]])
    settings = rows_of(1, presence_penalty=0.5, frequency_penalty=0.25)
    got = penalties.apply_penalties(
        tf.zeros([1, 6]), ids, tf.constant([6]), tf.constant([3]), settings, EVERYTHING
    )
    np.testing.assert_allclose(got[0], [0, 0, -0.5 - 2 * 0.25, 0, -0.75, 0])


def test_every_row_has_its_own_settings():
    logits = processed("logits")
    each = [
        GenerationConfig(temperature=1.0),
        GenerationConfig(temperature=0.5, top_k=2),
        GenerationConfig(temperature=2.0, top_p=0.5, min_p=0.2),
    ]
    made = tf.nest.map_structure(tf.constant, batch_configs(each, [9] * 3))
    together = sampling.filtered_probabilities(logits, made, EVERYTHING).numpy()
    for row, one in enumerate(each):
        alone = tf.nest.map_structure(tf.constant, batch_configs([one], [9]))
        got = sampling.filtered_probabilities(logits[row : row + 1], alone, EVERYTHING)
        np.testing.assert_allclose(got[0], together[row], rtol=1e-6)
    assert [(row > 0).sum() for row in together][:2] == [43, 2]


def test_all_barred_still_chooses_a_token():
    settings = rows_of(1, bad_words_ids=tuple((token,) for token in range(4)))
    logits = penalties.apply_penalties(
        tf.constant([[1.0, 2.0, 3.0, 0.0]]), tf.zeros([1, 5], tf.int32), tf.constant([1]),
        tf.constant([1]), settings, EVERYTHING,
    )  # fmt: skip
    token = sampling.choose_token(logits, settings, tf.constant([0]), EVERYTHING)
    assert 0 <= int(token[0]) < 4


def test_draws_follow_the_probabilities():
    count = 40_000
    probabilities = np.array([0.5, 0.25, 0.15, 0.1, 0.0], "float32")
    number = random.uniform(7, 0, tf.range(count))
    drawn = sampling.draw_token(tf.tile(probabilities[None] / 0.5, [count, 1]), number).numpy()
    shares = np.bincount(drawn, minlength=5) / count
    np.testing.assert_allclose(shares, probabilities, atol=0.01)
    assert shares[4] == 0


def test_the_ends_of_the_range_draw_tokens_that_are_possible():
    likely = tf.constant([[0.0, 1.0, 0.0, 1e-12, 0.5, 0.0]] * 2)
    drawn = sampling.draw_token(likely, tf.constant([0, 2**30 - 1]))
    assert drawn.numpy().tolist() == [1, 4]


def test_temperature_zero_is_greedy_and_a_tiny_one_nearly():
    logits = tf.constant(processed("logits"))
    for temperature in (0.0, 1e-30, 1e-6):
        settings = rows_of(temperature=temperature)
        token = sampling.choose_token(logits, settings, tf.constant([1, 2, 3]), EVERYTHING)
        np.testing.assert_array_equal(token, np.argmax(logits, -1))


def test_few_kinds_of_graphs():
    kinds = {
        graph_flags(GenerationConfig(**fields))
        for fields in (
            {}, {"temperature": 0.5}, {"temperature": 1.0, "top_k": 3}, {"no_repeat_ngram_size": 2},
            {"no_repeat_ngram_size": 3, "temperature": 1.0}, {"repetition_penalty": 2.0},
            {"bad_words_ids": ((1, 2),)},
        )
    }  # fmt: skip
    assert len(kinds) == 3
