"""Entity-level measures against a count by hand."""

import json

import pytest

from tfllm.errors import DataError
from tfllm.evaluation.entities import entities, tags
from tfllm.evaluation.metrics import measure
from tfllm.tasks import TokenClassification

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
    result = entities(answers, [gold, gold])
    assert result["precision"] == pytest.approx(2 / 4)  # right: Ada Lovelace, twice
    assert result["recall"] == pytest.approx(2 / 4)
    assert result["f1"] == pytest.approx(1 / 2)
    assert result["token_accuracy"] == pytest.approx((4 + 3) / 12)
    assert result["per_class"]["PER"]["f1"] == 1
    assert result["per_class"]["LOC"] == {"precision": 0, "recall": 0, "f1": 0, "entities": 2}


def test_tags_are_taken_as_they_are():
    gold = {"words": ["a", "b"], "tags": ["B-X", "I-X"]}
    assert entities([{"tags": ["I-X", "I-X"]}], [gold])["f1"] == 1
    assert entities([{"tags": ["B-X", "I-X"]}], [gold])["token_accuracy"] == 1


def test_a_line_that_does_not_fit_is_named():
    with pytest.raises(DataError, match="ner.conll:3: 2 words but 1 tags"):
        entities(
            [{"entities": []}], [{"words": ["a", "b"], "tags": ["O"], "_where": "ner.conll:3"}]
        )


def test_tags_without_a_prefix_are_entities_of_one_word():
    gold = {"words": ["old", "dogs", "cats", "."], "tags": ["ADJ", "NOUN", "NOUN", "PUNCT"]}
    found = entities([{"tags": ["ADJ", "NOUN", "VERB", "PUNCT"]}], [gold])
    assert set(found["per_class"]) == {"ADJ", "NOUN", "VERB", "PUNCT"}
    assert found["per_class"]["NOUN"] == {"precision": 1, "recall": 0.5, "f1": 2 / 3, "entities": 2}
    assert found["f1"] == pytest.approx(3 / 4) and found["token_accuracy"] == 3 / 4


def test_entities_alone_measure_the_same_as_tags():
    """An artifact that answers with entities has the numbers of the checkpoint that has tags."""
    gold = {"words": ["old", "dogs", "cats"], "tags": ["ADJ", "NOUN", "NOUN"]}
    tagged = ["ADJ", "NOUN", "VERB"]
    starts = (0, 4, 9)
    spans = zip(tagged, starts, gold["words"], strict=True)
    answer = [{"label": tag, "start": start, "end": start + len(w)} for tag, start, w in spans]
    by_entities = entities([{"entities": answer}], [gold])
    assert by_entities == entities([{"tags": tagged}], [gold])


@pytest.mark.parametrize("scheme", ["BIOES", "BMES", "IOB1"])
def test_schemes_of_tags_give_the_same_entities(scheme):
    tags = {
        "BIOES": ["B-PER", "I-PER", "E-PER", "O", "S-LOC"],
        "BMES": ["B-PER", "M-PER", "E-PER", "O", "S-LOC"],
        "IOB1": ["I-PER", "I-PER", "I-PER", "O", "I-LOC"],
    }[scheme]
    gold = {"words": list("abcde"), "tags": tags}
    found = entities([{"tags": ["B-PER", "I-PER", "I-PER", "O", "B-LOC"]}], [gold])
    assert found["f1"] == 1


def test_measures_without_any_entity_are_undefined():
    gold = {"words": ["a", "b"], "tags": ["O", "O"]}
    found = entities([{"tags": ["O", "O"]}], [gold])
    assert found["f1"] is found["f1_macro"] is found["precision"] is None
    assert found["token_accuracy"] == 1 and found["per_class"] == {}
    assert "NaN" not in json.dumps(found)


def test_gold_tags_may_be_the_places_of_the_model_s_tags():
    gold = {"words": ["Ada", "ran"], "tags": [1, 0]}
    task = TokenClassification(labels=("O", "B-PER", "I-PER"))
    found = measure(task, [{"tags": ["B-PER", "O"]}], [gold])
    assert found["f1"] == 1 and set(found["per_class"]) == {"PER"}
