"""Labels from data files: one class per number, a fixed order, no class out of nothing."""

import math
import os
import subprocess
import sys

import pytest

from tfllm.errors import DataError, SettingError
from tfllm.evaluation.span_answers import gold_texts
from tfllm.tasks import Classification, Embedding, TokenClassification, answer_spans, label_names


def labels_of(*labels, **options):
    examples = [{"text": "x", "label": label, "_where": f"a.csv:{line}"}
                for line, label in enumerate(labels, 2)]  # fmt: skip
    return Classification(**options).infer_settings(examples).labels


def test_numbers_of_one_value_are_one_label():
    assert labels_of("1", "1.0", "0", 0.0, 1) == ("0", "1")
    assert labels_of("10", "9.5", "+2") == ("+2", "9.5", "10")
    assert labels_of(12345678901234567890, 12345678901234567891) == (
        "12345678901234567890", "12345678901234567891",
    )  # fmt: skip
    assert labels_of("1_0", "inf", "infinity") == ("1_0", "inf", "infinity")  # names, not numbers


def test_the_order_does_not_change_from_process_to_process():
    code = (
        "from tfllm.tasks import label_names\n"
        "names = ['1', '1.0', '0', '0.0', 'a'][:{}]\n"
        "print(label_names.collect_labels(({{}}, name) for name in names))"
    )
    for count in (4, 5):
        printed = {
            subprocess.run(
                [sys.executable, "-c", code.format(count)], capture_output=True, text=True,
                check=True, env={**os.environ, "PYTHONHASHSEED": seed},
            ).stdout
            for seed in ("0", "1", "2")
        }  # fmt: skip
        assert len(printed) == 1


@pytest.mark.parametrize("label", ["1.0", 1.0, 1, "1", "01"])
def test_a_label_is_found_by_its_value(label):
    assert label_names.label_index(label, ("0", "1"), {}) == 1
    assert label_names.label_index(label, ("negative", "positive"), {}) == 1  # a place
    with pytest.raises(DataError, match="unknown label"):
        label_names.label_index(label, ("0", "2"), {})


@pytest.mark.parametrize("label", [1.5, -1, "2", "nan", "1e400"])
def test_what_is_no_place_is_unknown(label):
    with pytest.raises(DataError, match="unknown label"):
        label_names.label_index(label, ("negative", "positive"), {})


@pytest.mark.parametrize("label", ["", "  ", math.nan])
def test_an_empty_label_is_no_class(label):
    with pytest.raises(DataError, match=r"a\.csv:3: the label is"):
        labels_of("a", label, "b")
    with pytest.raises(DataError, match="the label is"):
        TokenClassification().infer_settings([{"words": ["a"], "tags": [label]}])


def test_nan_among_numbers_is_a_missing_number():
    with pytest.raises(DataError, match=r"a\.csv:3: the label is 'nan'"):
        labels_of("1", "nan", "0")
    assert labels_of("nan", "pita") == ("nan", "pita")  # breads


def test_tags_that_are_numbers_are_said(caplog):
    task = TokenClassification().infer_settings([{"words": ["a", "b", "c"], "tags": [0, 10, 2]}])
    assert task.labels == ("0", "2", "10")
    assert "task.labels: [O, B-PER" in caplog.text


def test_tags_begin_with_O_and_are_sorted_by_what_they_name():
    examples = [{"words": list("abcde"), "tags": ["NOUN", "-LRB-", "O", "I-PER", "B-PER"]}]
    tags = TokenClassification().infer_settings(examples).labels
    assert tags == ("O", "-LRB-", "NOUN", "B-PER", "I-PER")


def test_a_score_outside_its_range_is_named(tokenizer):
    pairs = [{"text": "a", "text_pair": "b", "label": label, "_where": f"sts.tsv:{label}"}
             for label in (0, 5, 6)]  # fmt: skip
    task = Embedding(score_range=(0, 5))
    features = task.features(pairs[:2], tokenizer)
    assert [float(target) for target in features.targets] == [0, 0, 1, 1]
    with pytest.raises(DataError, match=r"sts\.tsv:6: the label 6 lies outside task.score_range"):
        task.features(pairs, tokenizer)


@pytest.mark.parametrize("scores", [(1, 1), (5, 0), (0, math.inf), (math.nan, 1)])
def test_an_impossible_range_of_scores_is_refused(scores):
    with pytest.raises(SettingError, match="the lower number first"):
        Embedding(score_range=scores)


def test_labels_of_pairs_that_nothing_reads_are_said(tokenizer, caplog):
    pairs = [{"text": "a", "text_pair": "b", "label": label} for label in (0, 1)]
    Embedding().features(pairs, tokenizer)
    assert "Set task.score_range" in caplog.text


@pytest.mark.parametrize("start", [None, math.nan, 0, 0.0, "0"])
def test_an_answer_whose_start_is_not_known_is_looked_for(start):
    example = {"context": "C = C", "answers": {"text": ["C"], "start": [start]}}
    assert answer_spans.gold_span(example) == (0, 1)


@pytest.mark.parametrize("start", ["x", 1.5, [0], math.inf])
def test_a_start_that_is_no_whole_number_is_named(start):
    example = {
        "context": "C", "answers": {"text": ["C"], "start": [start]}, "_where": "q.jsonl:7",
    }  # fmt: skip
    with pytest.raises(DataError, match=r"q\.jsonl:7: the answer's start"):
        answer_spans.gold_span(example)


@pytest.mark.parametrize("task", [Classification, TokenClassification])
@pytest.mark.parametrize("labels", [("a", "b", "a"), ("0", "1", "1.0")])
def test_a_label_that_is_named_twice_is_refused(task, labels):
    with pytest.raises(SettingError, match="are the same label"):
        task(labels=labels)


@pytest.mark.parametrize("text", [None, [], [None]])
def test_a_question_may_have_no_answer_in_every_way_of_writing_it(text):
    example = {"context": "C", "answers": {"text": text or [], "start": []}}
    assert answer_spans.gold_span(example) is None
    assert gold_texts({"answers": {"text": text, "start": None}}) == []
