"""Exact match and F1 of answers, against values worked out with the official formulas by hand."""

import pytest

from tfllm.evaluation import span_answers as spans


def score(pairs, language="auto", question="Who is it?"):
    answers = [{"answer": answer} for answer, _ in pairs]
    examples = [
        {"question": question, "context": "", "answers": {"text": gold}} for _, gold in pairs
    ]
    return spans.span_answers(answers, examples, language)


def test_normalising():
    assert spans.normalize("The  Cat's, an (old) Hat!") == "cats old hat"
    assert spans.normalize("Theatre – an act") == "theatre – act"  # whole words, ASCII signs only


def test_version_1_by_hand():
    result = score(
        [
            ("the Denver Broncos!", ["Denver Broncos", "Broncos"]),  # exact
            ("Denver", ["Denver Broncos"]),  # precision 1, recall 1/2
            ("blue blue car", ["blue car"]),  # two of three, two of two
            ("The", ["the"]),  # equal, but no words: F1 is 0 in version 1.1
        ]
    )
    assert result["exact_match"] == pytest.approx(2 / 4)
    assert result["f1"] == pytest.approx((1 + 2 / 3 + 0.8 + 0) / 4)
    assert "no_answer_f1" not in result


def test_version_2_by_hand():
    result = score(
        [
            ("Paris", ["Paris"]),
            ("", ["Paris"]),  # had an answer
            ("", []),  # rightly none
            ("Paris", []),  # wrongly some
            ("the", ["the", "."]),  # gold that normalises to nothing counts as none
        ]
    )
    assert result["exact_match"] == pytest.approx(3 / 5)
    assert result["f1"] == pytest.approx(3 / 5)
    assert result["has_answer_exact_match"] == pytest.approx(2 / 3)
    assert result["no_answer_f1"] == pytest.approx(1 / 2)
    assert (result["has_answer_examples"], result["no_answer_examples"]) == (3, 2)


def test_chinese_segments():
    assert spans.segments("他用GPT-4写作。 In 2020年") == [
        *"他用", "gpt4", *"写作", "in", "2020", "年"
    ]  # fmt: skip


def test_chinese_by_hand():
    result = score(
        [
            ("《红楼梦》", ["红楼梦"]),  # exact: signs do not count
            ("曹雪芹写的", ["是曹雪芹"]),  # run of 3: 3/5 and 3/4
            ("1990年5月", ["1990年"]),  # 2 of 4 segments, 2 of 2
            ("北京", ["上海", "北京市"]),  # the best gold: 2/2 and 2/3
        ],
        question="谁写了这本书？",
    )
    f1 = [1, 2 * 0.6 * 0.75 / 1.35, 2 * 0.5 / 1.5, 2 * (2 / 3) / (5 / 3)]
    assert result["exact_match"] == pytest.approx(1 / 4)
    assert result["f1"] == pytest.approx(sum(f1) / 4)


def test_chinese_needs_one_run_not_a_bag():
    assert spans.chinese_f1("天气好", "好天气") == pytest.approx(2 / 3)
    assert spans.squad_f1("fine weather", "weather fine") == 1


def test_language_is_found_or_set():
    assert spans.is_chinese("范廷颂是什么时候被任为主教的？")
    assert not spans.is_chinese("What does 道 mean in the text?")
    assert not spans.is_chinese("1990")
    pair = [("天气好", ["好天气"])]
    assert score(pair, "zh")["f1"] == pytest.approx(2 / 3)
    assert score(pair, "en")["f1"] == 0


@pytest.mark.parametrize("answers", [{"text": ["a"], "start": [3]}, ["a"], {"text": "a"}])
def test_forms_of_gold_answers(answers):
    assert spans.gold_texts({"answers": answers}) == ["a"]
