"""Entity-level measures against a count by hand."""

import pytest

from tfllm.errors import DataError
from tfllm.evaluation.tagging import tags, token_classification

WORDS = ["Ada", "Lovelace", "visited", "New", "York", "."]


def entity(text, label):
    start = " ".join(WORDS).index(text)
    return {"text": text, "label": label, "start": start, "end": start + len(text), "score": 1.0}


def test_tags_of_entities():
    found = tags(WORDS, [entity("Ada Lovelace", "PER"), entity("New York", "LOC")])
    assert found == ["B-PER", "I-PER", "O", "B-LOC", "I-LOC", "O"]
    # a part of a word stands for the word
    assert tags(WORDS, [entity("ork", "LOC")]) == ["O", "O", "O", "O", "B-LOC", "O"]
    assert tags([], []) == []


def test_whole_entities_count():
    gold = {"words": WORDS, "tags": ["B-PER", "I-PER", "O", "B-LOC", "I-LOC", "O"]}
    answers = [
        {"entities": [entity("Ada Lovelace", "PER"), entity("York", "LOC")]},
        {"entities": [entity("Ada Lovelace", "PER"), entity("visited", "ORG")]},
    ]
    result = token_classification(answers, [gold, gold])
    assert result["precision"] == pytest.approx(2 / 4)  # right: Ada Lovelace, twice
    assert result["recall"] == pytest.approx(2 / 4)
    assert result["f1"] == pytest.approx(1 / 2)
    assert result["token_accuracy"] == pytest.approx((4 + 3) / 12)
    assert result["per_class"]["PER"]["f1"] == 1
    assert result["per_class"]["LOC"] == {"precision": 0, "recall": 0, "f1": 0, "entities": 2}


def test_tags_are_taken_as_they_are():
    gold = {"words": ["a", "b"], "tags": ["B-X", "I-X"]}
    assert token_classification([{"tags": ["I-X", "I-X"]}], [gold])["f1"] == 1
    assert token_classification([{"tags": ["B-X", "I-X"]}], [gold])["token_accuracy"] == 1


def test_a_line_that_does_not_fit_is_named():
    with pytest.raises(DataError, match="ner.conll:3: 2 words but 1 tags"):
        token_classification(
            [{"entities": []}], [{"words": ["a", "b"], "tags": ["O"], "_where": "ner.conll:3"}]
        )
