"""The engine against plain recomputation, and batches against each text alone."""

from copy import copy

import numpy as np
import pytest
import tensorflow as tf

from tests.generation.conftest import FakeDecoder
from tfllm.errors import SettingError
from tfllm.generation.config import GenerationConfig, generation_config
from tfllm.generation.engine import Engine
from tfllm.generation.scheduler import Request, Scheduler

PROMPTS = [[5, 9, 3], [7], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [40, 41]]


def plain_greedy(decoder, prompt, count):
    """(ids, log-probabilities) by running the whole sequence for every token."""
    ids, scores = list(prompt), []
    for _ in range(count):
        logits = decoder.reference(ids)[-1].astype("float64")
        scores.append((logits - np.log(np.exp(logits).sum())).max())
        ids.append(int(logits.argmax()))
    return ids[len(prompt) :], scores


DECODER = FakeDecoder()
ENGINE = Engine(DECODER)  # shared, because every engine traces its own graphs


@pytest.mark.parametrize("window", [None, pytest.param(5, marks=pytest.mark.slow)])
def test_greedy_equals_running_the_whole_sequence(window):
    decoder = FakeDecoder(window=window) if window else DECODER
    results = (Engine(decoder) if window else ENGINE).generate(
        PROMPTS, GenerationConfig(max_new_tokens=20)
    )
    for prompt, result in zip(PROMPTS, results, strict=True):
        ids, scores = plain_greedy(decoder, prompt, 20)
        assert result.ids == ids
        np.testing.assert_allclose(result.log_probabilities, scores, atol=1e-5)
        assert result.finish_reason == "length"


SETTINGS = [
    GenerationConfig(max_new_tokens=9),
    GenerationConfig(max_new_tokens=20, temperature=1.0, top_k=7, seed=3),
    GenerationConfig(max_new_tokens=14, temperature=1.3, top_p=0.8, repetition_penalty=1.2),
    GenerationConfig(max_new_tokens=20, no_repeat_ngram_size=2, bad_words_ids=((4,), (1, 2))),
]


def test_a_ragged_batch_of_unlike_settings_equals_each_text_alone():
    together = ENGINE.generate(PROMPTS, SETTINGS)
    for prompt, settings, result in zip(PROMPTS, SETTINGS, together, strict=True):
        alone = ENGINE.generate([prompt], settings)[0]
        assert alone.ids == result.ids
        np.testing.assert_allclose(alone.log_probabilities, result.log_probabilities, atol=1e-5)


def test_more_prompts_than_rows_and_any_number_of_steps_change_nothing():
    prompts, settings = PROMPTS * 3, SETTINGS * 3
    wanted = [one.ids for one in ENGINE.generate(prompts, settings)]
    few = copy(ENGINE)
    few.max_batch_size = 3
    assert [one.ids for one in few.generate(prompts, settings, steps=1)] == wanted
    assert [one.ids for one in few.generate(prompts, settings, steps=5)] == wanted


def test_graphs_are_traced_once_for_all_lengths_and_batches():
    engine = Engine(DECODER)
    for length in (1, 17, 70):
        for batch in (1, 2, 5):
            settings = GenerationConfig(max_new_tokens=length)
            engine.generate([[1] * length] * batch, settings)
    assert engine.traces == 2


def test_several_texts_of_a_prompt_share_one_reading_and_differ():
    engine = ENGINE
    settings = GenerationConfig(temperature=1.0, num_return_sequences=4, max_new_tokens=12)
    results = engine.generate(PROMPTS[:2], settings)
    assert len(results) == 8
    assert len({tuple(one.ids) for one in results[:4]}) == 4
    # The first text is the one that is written when only one is asked for.
    single = settings.model_copy(update={"num_return_sequences": 1})
    assert engine.generate(PROMPTS[:1], single)[0].ids == results[0].ids


def test_stop_ids_end_a_text_and_are_not_part_of_it():
    whole = ENGINE.generate([PROMPTS[0]], GenerationConfig(max_new_tokens=20))[0]
    stop = whole.ids[7]
    first = whole.ids.index(stop)
    settings = GenerationConfig(max_new_tokens=20, eos_token_id=(stop, 10**6))
    result = ENGINE.generate([PROMPTS[0]], settings)[0]
    assert result.ids == whole.ids[:first]
    assert result.finish_reason == "stop"
    assert len(result.log_probabilities) == first


def test_a_text_ends_at_the_window():
    engine = Engine(FakeDecoder(places=16))
    result = engine.generate([[1] * 10], GenerationConfig(max_new_tokens=50))[0]
    assert len(result.ids) == 6
    assert result.finish_reason == "length"


@pytest.mark.parametrize("steps", [1, 4])
def test_the_listener_hears_every_token_and_can_end_a_text(steps):
    whole = ENGINE.generate(PROMPTS[:2], GenerationConfig(max_new_tokens=20))
    heard = {0: [], 1: []}

    def on_token(number, token, log_probability):
        heard[number].append(token)
        assert log_probability < 0
        return number == 0 and len(heard[0]) == 6

    settings = GenerationConfig(max_new_tokens=20)
    results = ENGINE.generate(PROMPTS[:2], settings, on_token, steps=steps)
    assert results[0].ids == heard[0] == whole[0].ids[:6]
    assert results[0].finish_reason == "stop"
    assert results[1].ids == heard[1] == whole[1].ids


def test_requests_join_and_leave_between_steps_without_disturbing_others():
    wanted = [
        ENGINE.generate([prompt], settings)[0].ids
        for prompt, settings in zip(PROMPTS, SETTINGS, strict=True)
    ]
    scheduler = Scheduler(ENGINE)
    requests = [Request(p, s) for p, s in zip(PROMPTS, SETTINGS, strict=True)]
    scheduler.add(requests[:1])
    scheduler.step()
    scheduler.add(requests[1:3])
    scheduler.step()
    scheduler.step()
    scheduler.remove(requests[2])
    left = list(requests[2].ids)
    scheduler.add(requests[3:])
    while scheduler.requests:
        scheduler.step()
    assert [requests[row].ids for row in (0, 1, 3)] == [wanted[row] for row in (0, 1, 3)]
    assert left == requests[2].ids == wanted[2][: len(left)]
    assert len(left) == 3
    assert scheduler.step() == []


@pytest.mark.parametrize(
    ("prompt", "words"),
    [([], "prompt 2 is empty"), ([1] * 256, "no room for more"), ([61], "0 to 60"), ([-1], "0 to")],
)
def test_prompts_that_cannot_be_continued(prompt, words):
    with pytest.raises(SettingError, match=words):
        ENGINE.generate([[1], prompt], GenerationConfig())


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"num_beams": 3, "temperature": 1.0}, "samples"),
        ({"num_beams": 2, "num_return_sequences": 3}, "raise num_beams"),
        ({"num_return_sequences": 2}, "same text 2 times"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"seed": 2**31}, "seed"),
        ({"bad_words_ids": ((),)}, "bad_words_ids"),
    ],
)
def test_settings_that_make_no_sense(fields, words):
    with pytest.raises(SettingError, match=words):
        generation_config(**fields)


def test_top_k_beyond_the_vocabulary_means_all():
    settings = GenerationConfig(temperature=1.0, max_new_tokens=20)
    many = settings.model_copy(update={"top_k": 10**6})
    engine = ENGINE
    assert engine.generate(PROMPTS, many) == engine.generate(PROMPTS, settings)


def test_no_state_is_left_in_the_engine():
    engine = ENGINE
    settings = GenerationConfig(max_new_tokens=5, temperature=1.0)
    first = engine.generate(PROMPTS, settings)
    assert engine.generate(PROMPTS, settings) == first
    assert tf.executing_eagerly()
