"""BLEU, chrF, TER and ROUGE of written texts: the packages' own numbers, and what words are."""

import math

import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from tfllm.evaluation.rouge import is_chinese, is_english, rouge
from tfllm.evaluation.text_to_text import SAMPLES, text_to_text

GERMAN = ["Ein Mann schläft in einem grünen Raum auf einem Sofa.", "Zwei Hunde laufen im Schnee."]
WRITTEN = ["Ein Mann schläft auf einem grünen Sofa.", "Zwei Hunde rennen durch den Schnee."]


def answers(texts):
    return [{"text": text} for text in texts]


def examples(targets, source="a source"):
    return [{"source": source, "target": target} for target in targets]


def test_bleu_chrf_and_ter_are_sacrebleus():
    found = text_to_text(answers(WRITTEN), examples(GERMAN))
    assert found["bleu"] == sacrebleu.corpus_bleu(WRITTEN, [GERMAN]).score
    assert found["chrf"] == sacrebleu.corpus_chrf(WRITTEN, [GERMAN]).score
    assert found["ter"] == sacrebleu.corpus_ter(WRITTEN, [GERMAN]).score
    assert found["length_ratio"] == sacrebleu.corpus_bleu(WRITTEN, [GERMAN]).ratio
    assert found["bleu_signature"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|")
    assert found["rouge_words"] == "words"


def test_several_right_targets():
    second = "Zwei Hunde rennen im Schnee."
    found = text_to_text(answers(WRITTEN), examples([GERMAN[0], [GERMAN[1], second]]))
    streams = [GERMAN, [None, second]]
    assert found["bleu"] == sacrebleu.corpus_bleu(WRITTEN, streams).score
    alone = text_to_text(answers(WRITTEN), examples(GERMAN))
    assert found["bleu"] > alone["bleu"] and found["rouge_1"] > alone["rouge_1"]


def test_chinese_is_measured_by_characters():
    target, text = ["林志颖公司疑涉虚假营销,3个月"], ["林志颖公司涉虚假营销3个月"]
    found = text_to_text(answers(text), examples(target))
    assert found["bleu"] == sacrebleu.corpus_bleu(text, [target], tokenize="zh").score
    assert "tok:zh" in found["bleu_signature"] and "asian:yes" in found["ter_signature"]
    # 13 of 14 words of the target: its characters and the number 3.
    assert found["rouge_words"] == "characters"
    assert found["rouge_1"] == pytest.approx(2 * 13 / (13 + 14))
    named = text_to_text(answers(text), examples(target), tokenize="13a")
    assert "tok:13a" in named["bleu_signature"] and named["bleu"] < found["bleu"]


def test_english_is_measured_as_rouge_score_does():
    targets = ["We show that deeper networks are learning faster.", "Attention is all you need"]
    texts = ["Deep networks learn faster, we show", "You need attention"]
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    found = rouge(texts, [[target] for target in targets])
    assert found.pop("rouge_words") == "stemmed"
    for name, kind in zip(found, ("rouge1", "rouge2", "rougeL"), strict=True):
        each = [scorer.score(a, b)[kind].fmeasure for a, b in zip(targets, texts, strict=True)]
        assert found[name] == pytest.approx(sum(each) / 2)


def test_languages_are_told_apart():
    assert is_chinese(["韩方应对路径 CEO 123"]) and not is_chinese(["the 3 rivers of 中国"])
    assert not is_chinese(["", "12"])
    assert is_english(["the naïve approach of many words" + " which are in English" * 5])
    assert not is_english(GERMAN)


def test_empty_texts_and_targets_are_measured():
    found = text_to_text(answers(["", "x"]), examples(["a b", ""]))
    assert found["bleu"] == 0 and found["rouge_1"] == 0 and math.isfinite(found["ter"])


def test_likelihood_of_targets():
    told = [
        {"text": "a", "log_probability": -2.0, "token_count": 3, "correct": 2},
        {"text": "b", "log_probability": -1.0, "token_count": 1, "correct": 0},
    ]
    found = text_to_text(told, examples(["a", "b"]))
    assert found["loss"] == 0.75 and found["perplexity"] == pytest.approx(math.exp(0.75))
    assert found["accuracy"] == 0.5


def test_samples_come_from_the_whole_file():
    found = text_to_text(answers(map(str, range(100))), examples(map(str, range(100))))
    assert [sample["text"] for sample in found["samples"]] == [str(n) for n in range(0, 100, 5)]
    assert len(found["samples"]) == SAMPLES == 20
    assert found["samples"][1] == {"source": "a source", "target": "5", "text": "5"}
    few = text_to_text(answers("ab"), examples("ab"))
    assert [sample["text"] for sample in few["samples"]] == ["a", "b"]
