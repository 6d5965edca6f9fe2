"""Which tokens are hidden: shares, whole words, spans of Chinese characters."""

import numpy as np
import pytest

from tfllm import tasks
from tfllm.errors import SettingError
from tfllm.tasks.features import IGNORED
from tfllm.tasks.objectives import masking
from tfllm.tokenizers.characters import from_characters

SHARE_TOLERANCE = 0.02  # of 3,000 draws with a share of 0.8: three standard errors


def chance(seed=0):
    return np.random.default_rng(seed)


def ids_of(tokenizer, text):
    return np.asarray(tokenizer.encode(text, add_special_tokens=False).ids, np.int32)


def test_the_count_is_the_published_one(tokenizer):
    rule = masking.masking_rule(tokenizer, 0.15)
    # create_pretraining_data.py: max(1, int(round(len(tokens) * masked_lm_prob)))
    assert [rule.count(length) for length in (1, 3, 10, 64, 128)] == [1, 1, 2, 10, 19]
    ids = np.full(64, 5, np.int32)
    free = np.ones(64, bool)
    free[[0, 63]] = False
    places = masking.choose_positions(ids, free, rule, chance())
    assert len(places) == 10 and sorted(places) == list(places) and {0, 63}.isdisjoint(places)
    assert len(masking.choose_positions(ids, np.zeros(64, bool), rule, chance())) == 0


def test_what_stands_in_place_of_hidden_tokens(tokenizer):
    rule = masking.masking_rule(tokenizer, 0.15)
    ids = np.full(4000, 7, np.int32)
    places = np.arange(500, 3500)
    hidden, target = masking.mask_tokens(ids, places, rule, chance())
    assert (target[places] == 7).all() and (np.delete(target, places) == IGNORED).all()
    assert (np.delete(hidden, places) == 7).all()
    shares = [(hidden[places] == value).mean() for value in (tokenizer.mask_token_id, 7)]
    by_chance = 0.1 / tokenizer.vocabulary_size  # a random token may be any, these too
    assert shares == pytest.approx([0.8 + by_chance, 0.1 + by_chance], abs=SHARE_TOLERANCE)
    assert len(set(hidden[places])) == tokenizer.vocabulary_size


def test_whole_words_are_hidden_whole(tokenizer):
    rule = masking.masking_rule(tokenizer, 0.5, whole_word=True)
    ids = ids_of(tokenizer, "the unwatchable film was unwatchable")  # un ##watch ##able: 3 pieces
    assert len(ids) == 9
    words = [{0}, {1, 2, 3}, {4}, {5}, {6, 7, 8}]
    for seed in range(50):
        places = set(masking.choose_positions(ids, np.ones(9, bool), rule, chance(seed)).tolist())
        assert 1 <= len(places) <= 4  # round(9 * 0.5)
        assert all(word <= places or not word & places for word in words)


def test_a_word_longer_than_all_that_may_be_hidden_is_hidden_in_part(tokenizer):
    rule = masking.masking_rule(tokenizer, 0.15, whole_word=True)
    ids = ids_of(tokenizer, "unwatchable")
    assert masking.choose_positions(ids, np.ones(3, bool), rule, chance()).tolist() == [0]


def test_chinese_is_hidden_in_spans(tokenizer):
    """Of the lengths of MacBERT: 1 to 4 characters for 40, 30, 20 and 10 %."""
    rule = masking.masking_rule(tokenizer, 0.15, whole_word=True)
    ids = np.tile(ids_of(tokenizer, "中国京北"), 1000)
    starts = masking._starts(ids, np.arange(len(ids)), rule, chance())
    sizes = np.diff(np.flatnonzero(starts))
    shares = [(sizes == size).mean() for size in (1, 2, 3, 4)]
    assert shares == pytest.approx([0.4, 0.3, 0.2, 0.1], abs=0.04)  # about 2,000 spans
    assert sizes.max() == 4


def test_spans_end_where_other_words_stand(tokenizer):
    rule = masking.masking_rule(tokenizer, 0.15, whole_word=True)
    ids = ids_of(tokenizer, "the 中国京北 unwatchable 中国")
    for seed in range(30):
        starts = masking._starts(ids, np.arange(len(ids)), rule, chance(seed))
        # the, 中, un, 中 begin something in any case; ##watch and ##able nothing
        assert starts[[0, 1, 5, 8]].all() and not starts[[6, 7]].any()


def test_places_that_are_left_out_end_words(tokenizer):
    rule = masking.masking_rule(tokenizer, 0.15, whole_word=True)
    ids = ids_of(tokenizer, "中国京北")
    places = np.array([0, 3])
    assert masking._starts(ids[places], places, rule, chance()).tolist() == [True, True]


def test_refusals(tokenizer):
    without = from_characters("abc", ())
    with pytest.raises(SettingError, match="no mask token"):
        masking.masking_rule(without, 0.15)
    with pytest.raises(SettingError, match="does not say where words begin"):
        masking.masking_rule(from_characters("abc", ("[MASK]",)), 0.15, whole_word=True)


def test_positions_say_where_scores_are_needed(tokenizer):
    task = tasks.MaskedLM(max_length=32)
    features = task.features([{"text": "the film was good"}, {"text": "a b c d e f"}], tokenizer)
    inputs, targets = task.for_epoch(features, 1, 0).batch([1, 0], 16)
    assert inputs["positions"].shape == (2, 2)  # round(16 * 0.15)
    for row, places in enumerate(inputs["positions"]):
        told = np.flatnonzero(targets[row] != IGNORED).tolist()
        assert [place for place in places.tolist() if place] == told
