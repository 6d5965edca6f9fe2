"""Encoder-decoders: the engine's texts equal transformers' token for token, by goldens."""

import functools
from dataclasses import replace

import numpy as np
import pytest

from tests.generation.seq2seq_models import NAMES, checkpoint, told
from tfllm.errors import SettingError
from tfllm.generation import seq2seq_generator
from tfllm.generation.checkpoint_config import checkpoint_config
from tfllm.generation.config import generation_config
from tfllm.generation.cpu_decoding import optimize_for_cpu
from tfllm.generation.engine import Engine
from tfllm.models.encoder_decoder import get_encoder_decoder

SOURCES = told()["sources"]
# Sums of some dozen float32 log-probabilities, of which T5's are up to -100 in all.
SCORES = {"atol": 5e-5, "rtol": 1e-5}
ROUNDING = 1e-5  # of one step in another batch


@functools.cache
def engine(name):
    one = checkpoint(name)
    return Engine(optimize_for_cpu(get_encoder_decoder(one.model, one.family, one.config)))


def starts(name, count):
    return [[checkpoint(name).decoder_start_token_id]] * count


def settings_of(name, case):
    """The checkpoint's settings with the case's, through the same door as a checkpoint's files."""
    one = checkpoint(name)
    generation = {**one.generation_config, "max_length": None, **case["case"]}
    asking = replace(one, generation_config=generation)
    plain = {
        "bad_words_ids": ("bad_words_ids", ()),
        "forced_eos_token_id": ("forced_eos_token_id", None),
    }
    none = dict(value for key, value in plain.items() if case["case"].get(key, 0) is None)
    return checkpoint_config(asking).model_copy(
        update={"eos_token_id": tuple(case["stops"]), **none}
    )


def written(name, settings, sources=None):
    sources = SOURCES if sources is None else sources
    return engine(name).generate(starts(name, len(sources)), settings, sources=sources)


# Each case is a graph of its own, and takes seconds to trace.
QUICK = {("marian", 0), ("bart", 6)}
CASES = [
    pytest.param(name, number, marks=() if (name, number) in QUICK else pytest.mark.slow)
    for name in NAMES
    for number in range(len(told()["models"][name]))
]


@pytest.mark.parametrize(("name", "number"), CASES)
def test_texts_and_scores_equal_transformers(name, number):
    case = told()["models"][name][number]
    results = written(name, settings_of(name, case))
    assert [result.ids for result in results] == case["texts"]
    if case["scores"] is not None:
        np.testing.assert_allclose([one.score for one in results], case["scores"], **SCORES)


def test_sources_of_unlike_length_equal_each_alone_and_share_graphs():
    name, case = "bart", told()["models"]["bart"][6]
    settings = settings_of(name, case)
    together = written(name, settings)
    traces = engine(name).traces
    apart = [one for source in SOURCES for one in written(name, settings, [source])]
    assert [one.ids for one in together] == [one.ids for one in apart]
    assert engine(name).traces == traces
    scores = [[one.score for one in results] for results in (together, apart)]
    np.testing.assert_allclose(*scores, **SCORES)


def test_sampled_texts_do_not_depend_on_neighbours():
    settings = generation_config(
        max_new_tokens=9, temperature=1.3, num_return_sequences=3, seed=5, eos_token_id=(0,)
    )
    model = Engine(engine("marian_apart").decoder, max_batch_size=5)  # rows leave, others join
    prompts = starts("marian_apart", len(SOURCES))
    together = model.generate(prompts, settings, sources=SOURCES)
    apart = [
        one for source in SOURCES for one in model.generate(prompts[:1], settings, sources=[source])
    ]
    assert [one.ids for one in together] == [one.ids for one in apart]
    assert len({tuple(one.ids) for one in together}) > len(SOURCES)


@pytest.mark.slow
def test_coverage_is_that_of_the_finished_text():
    """The score of Wu et al. 2016 from the alignments of a whole pass."""
    name, penalty = "marian_apart", 0.7
    settings = generation_config(
        num_beams=4,
        max_new_tokens=9,
        eos_token_id=(2, 3),
        coverage_penalty=penalty,
        early_stopping=True,
    )
    model, coverages = engine(name).decoder, []
    for source in SOURCES:
        (result,) = written(name, settings, [source])
        ended = result.finish_reason == "stop"
        # Where a token looked depends on those before it: any may stand for the one that ended it.
        tokens = [*result.ids, *settings.eos_token_id[:ended]]
        start = checkpoint(name).decoder_start_token_id
        (weights,) = seq2seq_generator.alignments(model, start, [source], [tokens])
        np.testing.assert_allclose(weights.sum(axis=1), 1.0, atol=ROUNDING)
        coverage = np.log(np.minimum(weights.sum(axis=0), 1.0)).sum()
        coverages.append(coverage)
        logs = log_probabilities(name, source, tokens)
        total = logs[np.arange(len(result.ids)), result.ids].sum()
        total += logs[-1, list(settings.eos_token_id)].max() if ended else 0.0
        expected = total / len(tokens) + penalty * coverage
        assert result.score == pytest.approx(expected, abs=SCORES["atol"], rel=SCORES["rtol"])
    assert min(coverages) < -1  # far from nothing, for a source longer than its text


def log_probabilities(name, source, tokens):
    """Of every token at the place of each of `tokens`, float64 [T, V], by the whole model."""
    one = checkpoint(name)
    row = np.array([[one.decoder_start_token_id, *tokens[:-1]]], np.int32)
    given = {"source_ids": np.array([source], np.int32), "token_ids": row}
    masks = {
        "source_padding_mask": np.ones([1, len(source)], np.int32),
        "padding_mask": np.ones_like(row),
    }
    logits = np.asarray(one.model({**given, **masks}))[0].astype(np.float64)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def test_nothing_is_written_after_what_cannot_be_read():
    settings = generation_config(max_new_tokens=2)
    for sources, problem in (
        ([[]], "source 1 is empty"),
        ([[3] * 17], "17 tokens, and the model reads 16"),
        ([[99]], "outside 0 to"),
        (None, "one for each prompt"),
    ):
        with pytest.raises(SettingError, match=problem):
            engine("bart").generate(starts("bart", 1), settings, sources=sources)
    with pytest.raises(SettingError, match="num_beams 41: .* only 40 tokens"):
        written("bart", generation_config(num_beams=41))
    with pytest.raises(SettingError, match="raise num_beams"):
        generation_config(coverage_penalty=0.5)


def test_settings_of_the_checkpoint_and_of_the_caller():
    one = checkpoint("marian")
    settings = checkpoint_config(one)
    assert (settings.num_beams, settings.bad_words_ids, settings.forced_eos_token_id) == (
        4,
        ((39,),),
        0,
    )
    assert settings.max_new_tokens == one.config.max_sequence_length - 1
    sampled = checkpoint_config(one, temperature=0.5)
    assert (sampled.num_beams, sampled.temperature) == (1, 0.5)
    assert checkpoint_config(one, num_beams=2, length_penalty=None).length_penalty == 1.0
