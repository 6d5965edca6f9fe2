"""From outputs to answers: labels, entities, spans, filled masks."""

import json
from itertools import islice

import numpy as np
import pytest

from tfllm import tasks
from tfllm.data import sources
from tfllm.errors import DataError
from tfllm.tasks import answer_spans, entities
from tfllm.tasks.masked_lm import fill_masks
from tfllm.tokenizers.loading import read_vocabulary
from tfllm.tokenizers.wordpiece import WordPiece


def test_labels():
    single = tasks.Classification(labels=("bad", "good"))
    answer = single.answers([np.array([0.0, np.log(3.0)])], None)[0]
    assert answer["label"] == "good"
    assert answer["scores"] == pytest.approx({"bad": 0.25, "good": 0.75})
    several = tasks.Classification(labels=("a", "b", "c"), problem="multi_label")
    answer = several.answers([np.array([1.0, -1.0, 2.0])], None)[0]
    assert answer["label"] == ["a", "c"]
    assert answer["scores"]["b"] == pytest.approx(1 / (1 + np.e))
    number = tasks.Classification(problem="regression")
    assert number.answers([np.array([2.5])], None) == [{"label": 2.5}]
    assert tasks.NextSentence().answers([np.array([3.0, 0.0])], None)[0]["label"] == "is_next"
    json.dumps([answer, single.answers([np.array([0.0, 1.0])], None)])


@pytest.mark.parametrize(
    "tags, wanted",
    [
        ("O B-PER I-PER O", [("PER", 1, 3)]),
        ("B-PER B-PER I-LOC", [("PER", 0, 1), ("PER", 1, 2), ("LOC", 2, 3)]),
        ("I-PER I-PER O I-LOC", [("PER", 0, 2), ("LOC", 3, 4)]),
        ("B-A M-A E-A S-A E-A", [("A", 0, 3), ("A", 3, 4), ("A", 4, 5)]),
        ("NOUN NOUN O", [("NOUN", 0, 1), ("NOUN", 1, 2)]),
        ("", []),
    ],
)
def test_entities_of_tags(tags, wanted):
    assert entities.tag_spans(tags.split()) == wanted


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("ann lives in paris.", ["ann", "lives", "in", "paris", "."]),
        ("at&t, (a) a-b a. b.", ["at&t", ",", "(", "a", ")", "a-b", "a", ".", "b", "."]),
        ("北京 a中b", ["北", "京", "a", "中", "b"]),
        ("unwatchable--film", ["unwatchable", "-", "-", "film"]),
        (" zzz \u200b x", ["zzz", "x"]),
        ("a.", ["a", "."]),
        ("", []),
    ],
)
def test_words_of_a_text(tokenizer, text, wanted):
    task = tasks.TokenClassification(labels=("O", "X"))
    detail = task.features([{"text": text}], tokenizer).details[0]
    places = zip(detail["starts"], detail["ends"], strict=True)
    assert [text[start:end] for start, end in places] == wanted


def test_tags_come_back_as_entities(tokenizer):
    labels = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
    task = tasks.TokenClassification(labels=labels)
    split, tags = ["Ann", "Lee", "lives", "in", "New", "York"], [1, 2, 0, 0, 3, 4]
    given = [{"words": split, "tags": [labels[tag] for tag in tags]}, {"words": ["a"], "tags": "O"}]
    features = task.features([given[0], {"words": [], "tags": []}], tokenizer)
    outputs = [np.where(np.arange(5) == row[:, None], 4.0, 0.0) for row in features.targets]
    answers = task.answers(outputs, features)
    assert answers[0]["tags"] == given[0]["tags"]
    score = np.exp(4) / (np.exp(4) + 4)
    assert answers[0]["entities"] == [
        {"text": "Ann Lee", "label": "PER", "start": 0, "end": 7, "score": pytest.approx(score)},
        {"text": "New York", "label": "LOC", "start": 17, "end": 25, "score": pytest.approx(score)},
    ]
    assert answers[1] == {"entities": [], "tags": []}

    plain = task.features([{"text": "Ann Lee lives in New York."}], tokenizer)
    padded = np.zeros((1, 12, 5), np.float32)
    padded[0, np.arange(1, 8), [*tags, 0]] = 4.0
    found = task.answers(padded, plain)[0]
    assert found["entities"] == answers[0]["entities"] and "tags" not in found
    json.dumps(found)


def answer_outputs(features, value=9.0):
    """Scores that are highest at the targets."""
    rows = []
    for ids, (start, end) in zip(features.token_ids, features.targets, strict=True):
        scores = np.zeros((len(ids), 2), np.float32)
        scores[start, 0] = scores[end, 1] = value
        rows.append(scores)
    return rows


def test_windows_hold_the_answer_or_point_at_the_start(tokenizer):
    task = tasks.QuestionAnswering(max_length=12, stride=2)
    context = "a b c d e f g paris a b c d"
    answers = {"text": ["paris a"], "start": [14]}
    example = {"question": "who made it ?", "context": context, "answers": answers}
    features = task.features([example], tokenizer)
    rows = [[tokenizer.vocabulary[i] for i in row[6:-1]] for row in features.token_ids]
    assert rows[:2] == [["a", "b", "c", "d", "e"], ["d", "e", "f", "g", "paris"]]
    assert [target.tolist() for target in features.targets] == [[0, 0], [0, 0], [7, 8], [0, 0]]
    answer = task.answers(answer_outputs(features), features)[0]
    assert (answer["answer"], answer["start"], answer["end"]) == ("paris a", 14, 21)


def test_the_best_span_is_that_of_a_search_through_all(tokenizer):
    task = tasks.QuestionAnswering(max_length=12, stride=2, max_answer_length=3, n_best=4)
    example = {"question": "who made it ?", "context": "a b c d e f g paris a b c d"}
    features = task.features([example], tokenizer)
    random = np.random.default_rng(5)
    outputs = [random.normal(size=(len(ids), 2)) for ids in features.token_ids]
    found, starts, ends = {}, [], []
    for scores, detail in zip(outputs, features.details, strict=True):
        allowed = [0, *np.flatnonzero(detail["inside"])]
        starts.extend(np.exp(scores[allowed, 0]))
        ends.extend(np.exp(scores[allowed, 1]))
        for i in allowed[1:]:
            for j in allowed[1:]:
                if i <= j < i + 3:
                    span = (int(detail["offsets"][i][0]), int(detail["offsets"][j][1]))
                    score = np.exp(scores[i, 0] + scores[j, 1])
                    found[span] = max(found.get(span, 0), score)
    ranked = sorted(found.items(), key=lambda item: -item[1])[:4]
    answer = task.answers(outputs, features)[0]
    given = [answer, *answer["alternatives"]]
    assert [(a["start"], a["end"]) for a in given] == [span for span, _ in ranked]
    wanted = [score / sum(starts) / sum(ends) for _, score in ranked]
    assert [a["score"] for a in given] == pytest.approx(wanted, rel=1e-5)


def test_no_answer(tokenizer):
    task = tasks.QuestionAnswering(no_answer=True)
    example = {"question": "who ?", "context": "a b c", "answers": {"text": [], "start": []}}
    features = task.features([example], tokenizer)
    assert features.targets[0].tolist() == [0, 0]
    outputs = answer_outputs(features)
    answer = task.answers(outputs, features)[0]
    assert (answer["answer"], answer["start"], answer["end"]) == ("", 0, 0)
    assert answer["score"] == pytest.approx((np.exp(9) / (np.exp(9) + 3)) ** 2)
    bold = task.model_copy(update={"no_answer_threshold": 20.0})
    assert bold.answers(outputs, features)[0]["answer"] != ""
    with pytest.raises(DataError, match="task.no_answer: true"):
        tasks.QuestionAnswering().features([example], tokenizer)
    empty = task.features([{"question": "", "context": ""}], tokenizer)
    assert task.answers([np.zeros((3, 2))], empty)[0]["answer"] == ""


def test_gold_answers_are_aligned():
    def gold(text, start, context="a cat, a dog, a cat"):
        return answer_spans.gold_span(
            {"context": context, "answers": {"text": [text], "start": [start]}}
        )

    assert gold("cat", 2) == (2, 5)
    assert gold("cat", 14) == (16, 19)  # a wrong start: the nearest place
    assert gold("cat", -1) == (2, 5)
    with pytest.raises(DataError, match="'cow' is not in the context"):
        gold("cow", 0)
    with pytest.raises(DataError, match="both lists"):
        answer_spans.gold_span({"context": "a", "answers": "a"})


def test_masks_are_filled(tokenizer):
    task = tasks.MaskedLM(top_k=2, max_length=8)
    examples = [{"text": "the [MASK] was [MASK]"}, {"text": "the film"}]
    features = task.features(examples, tokenizer)
    outputs = np.zeros((2, 6, tokenizer.vocabulary_size), np.float32)
    outputs[0, 2, tokenizer.vocabulary.index("film")] = 9
    outputs[0, 4, tokenizer.vocabulary.index("good")] = 9
    first, second = task.answers(outputs, features)
    assert first["text"] == "the film was good"
    assert [mask["token"] for mask in first["masks"]] == ["film", "good"]
    assert len(first["masks"][0]["candidates"]) == 2
    assert second == {"text": "the film", "masks": []}
    able = tokenizer.fill_mask_texts[tokenizer.vocabulary.index("##able")]
    assert fill_masks("un [MASK] [MASK]!", "[MASK]", [able]) == "unable [MASK]!"
    json.dumps([first, second])


def test_embeddings(tokenizer, tiny, run):
    task = tasks.Embedding()
    model = tiny(task)
    features = task.features([{"text": "the film", "text_pair": "the film"}], tokenizer)
    answer = task.answers(run(model, features), features)[0]
    assert answer["embedding"] == pytest.approx(answer["embedding_pair"], abs=1e-6)
    assert answer["similarity"] == pytest.approx(1.0, abs=1e-6)
    assert np.linalg.norm(answer["embedding"]) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(
    "file, vocabulary, most",
    [
        ("squad/squad_v1_train_17titles.json.gz", "bert_base_uncased_vocab.txt", None),
        ("drcd/DRCD_dev.json.gz", "bert_base_chinese_vocab.txt", 1000),
    ],
)
def test_gold_answers_come_back_from_real_data(data, file, vocabulary, most):
    """Scores at the gold tokens give the gold text, but for answers that cut into a token."""
    path = data / "tokenizers" / vocabulary
    tokenizer = WordPiece.from_vocabulary(read_vocabulary(path))
    task = tasks.QuestionAnswering(max_answer_length=100)
    examples = list(islice(sources.read(data / file, format="squad"), most))
    features = task.features(examples, tokenizer)
    answers = task.answers(answer_outputs(features), features)
    assert len(answers) == len(examples) > 500
    wrong = [
        (example["answers"]["text"][0], answer["answer"])
        for example, answer in zip(examples, answers, strict=True)
        if answer["answer"] != example["answers"]["text"][0].strip()
    ]
    print(file, len(examples), "questions,", len(wrong), "differ:", wrong[:50])
    assert all(gold in answer for gold, answer in wrong)
