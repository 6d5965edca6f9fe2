"""Beam search against transformers, by goldens; and its graph with another kind of model."""

import functools
import json

import numpy as np
import pytest
import tensorflow as tf

from tests.generation.goldens import golden, gpt2
from tfllm.generation import beam_search
from tfllm.generation.config import GenerationConfig
from tfllm.generation.engine import Engine

CASES = json.loads(str(golden()["beams"]))
NAMES = {"no_repeat_ngram_size": "no_repeat_ngram_size"}
OURS = ("num_beams", "length_penalty", "early_stopping", "repetition_penalty")


def settings_of(case):
    fields = {NAMES.get(name, name): value for name, value in case.items()}
    fields = {name: fields[name] for name in (*OURS, "no_repeat_ngram_size") if name in fields}
    return GenerationConfig(
        max_new_tokens=16,
        num_return_sequences=case["num_beams"],
        eos_token_id=tuple(case["stops"]),
        **fields,
    )


# Each case is a graph of its own, and takes seconds to trace.
QUICK = (2, 6)
NUMBERS = [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in range(len(CASES))]


@functools.cache
def engine():
    return Engine(gpt2())


@pytest.mark.parametrize("number", NUMBERS)
def test_texts_and_scores_equal_transformers(number):
    case = CASES[number]
    prompts = golden()["prompts"].tolist()
    results = engine().generate(prompts, settings_of(case))
    assert [result.ids for result in results] == case["texts"]
    np.testing.assert_allclose([one.score for one in results], case["scores"], atol=2e-5)
    for result in results:
        ended = "length" if len(result.ids) == 16 else "stop"
        assert result.finish_reason == ended
        assert len(result.log_probabilities) == len(result.ids)


def test_prompts_of_unlike_length_equal_each_alone_and_share_graphs():
    prompts = [[3, 5, 11, 2, 9, 9, 4], [8], [40, 41]]
    settings = settings_of(CASES[2])
    shared = engine()
    together = shared.generate(prompts, settings)
    traces = shared.traces
    apart = [result for prompt in prompts for result in shared.generate([prompt], settings)]
    assert [one.ids for one in together] == [one.ids for one in apart]
    assert shared.traces == traces
    np.testing.assert_allclose(
        [one.score for one in together], [one.score for one in apart], atol=1e-5
    )


def test_log_probabilities_add_up_to_the_score():
    update = {"length_penalty": 0.0, "num_return_sequences": 1, "eos_token_id": (98, 99)}
    result = engine().generate([[3, 5]], settings_of(CASES[2]).model_copy(update=update))[0]
    assert sum(result.log_probabilities) == pytest.approx(result.score, abs=1e-4)


def test_other_settings_beside_beam_search():
    greedy, search = GenerationConfig(max_new_tokens=5), settings_of(CASES[2])
    results = engine().generate([[3], [4], [3]], [greedy, search, greedy])
    assert results[0] == results[-1]
    assert len(results) == 6


def test_any_model_that_can_be_stepped_is_searched():
    """A chain of words: the state is carried along and picked with its beam."""
    chain = np.log(np.random.default_rng(3).dirichlet(np.ones(6) * 0.3, 6)).astype("float32")

    def step(newest, count, state):
        tokens, steps = state
        tf.debugging.assert_equal(steps, count)
        return tf.gather(chain, newest), (tf.concat([tokens[:, 1:], newest[:, None]], 1), steps + 1)

    @tf.function(autograph=False)
    def search():
        start = (tf.zeros([4, 2], tf.int32), tf.zeros([4], tf.int32))
        return beam_search.search(
            step,
            start,
            tf.gather(chain, tf.constant([2, 2, 5, 5])),
            num_beams=2,
            max_new_tokens=3,
            row_limits=tf.constant([3, 3]),
            eos_token_id=tf.fill([2, 1], -1),
            length_penalty=0.0,
            early_stopping="never",
        )

    found = search()
    for row, first in enumerate((2, 5)):
        scores = {
            (a, b, c): chain[first, a] + chain[a, b] + chain[b, c]
            for a in range(6) for b in range(6) for c in range(6)
        }  # fmt: skip
        best = max(scores.values())
        assert found.scores[row, 0] <= best + 1e-5
        ids = tuple(found.ids[row, 0].numpy().tolist())
        assert scores[ids] == pytest.approx(float(found.scores[row, 0]), abs=1e-4)
