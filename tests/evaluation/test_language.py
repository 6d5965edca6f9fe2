"""Perplexity in sliding windows, bits per byte, last words: against sums made by hand."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfllm.checkpoints import store
from tfllm.errors import ArtifactError, DataError, SettingError
from tfllm.evaluation import harness, language_model
from tfllm.models import gpt2
from tfllm.runtimes import inputs, token_log_probs
from tfllm.runtimes.checkpoint import open_checkpoint
from tfllm.runtimes.savedmodel import SavedModelPredictor
from tfllm.tasks import CausalLM
from tfllm.tokenizers.characters import from_characters

WINDOW = 8


@pytest.fixture(scope="module")
def predictor():
    tokenizer = from_characters("abcdefghijé \n", specials=("<s>", "</s>"))
    keras.utils.set_random_seed(3)
    config = gpt2.Config(
        vocabulary_size=tokenizer.vocabulary_size, num_layers=1, num_heads=2, hidden_dim=8,
        max_sequence_length=WINDOW, initializer_range=0.7,
    )  # fmt: skip
    task = CausalLM(max_length=WINDOW)
    return open_checkpoint(store.create("gpt2", config, tokenizer, task))


def log_probabilities(predictor, ids):
    """Of every token but the first, from one row."""
    given = {
        "token_ids": np.array([ids[:-1]]),
        "padding_mask": np.ones((1, len(ids) - 1), np.int32),
    }
    logits = np.asarray(predictor.checkpoint.model(given), np.float64)[0]
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    return logits[np.arange(len(ids) - 1), ids[1:]]


def test_windows_score_every_token_once_with_enough_before_it():
    for length in (2, 5, 9, 10, 17, 40):
        for stride in (1, 3, WINDOW):
            ids = np.arange(length, dtype=np.int32)
            text = token_log_probs.ScoredText(ids, ids > 0, 0, 0)
            seen = []
            for row in token_log_probs.windows([text], WINDOW, stride):
                assert len(row.ids) <= WINDOW
                told = row.targets[row.targets >= 0]
                seen += told.tolist()
                context = told[0] - row.ids[0]
                assert context >= min(told[0], WINDOW - stride)
            assert seen == list(range(1, length))


def test_short_texts_are_measured_as_by_hand(predictor):
    texts = ["abc", "jéd d"]
    metrics = harness.evaluate(predictor, [{"text": text} for text in texts])
    logs = [
        value
        for text in texts
        for value in log_probabilities(
            predictor, [0, *predictor.checkpoint.tokenizer.encode_ids([text])[0]]
        )
    ]
    assert metrics["tokens"] == 8 and len(logs) == 8
    assert metrics["loss"] == pytest.approx(-np.mean(logs), rel=1e-5)
    assert metrics["perplexity"] == pytest.approx(math.exp(-np.mean(logs)), rel=1e-5)
    bits = -sum(logs) / math.log(2)
    assert metrics["bits_per_byte"] == pytest.approx(bits / 9, rel=1e-5)
    assert metrics["bits_per_character"] == pytest.approx(bits / 8, rel=1e-5)
    assert 0 <= metrics["next_token_accuracy"] <= 1


@pytest.mark.parametrize("stride", [1, 4])
def test_a_long_text_is_measured_in_windows(predictor, stride):
    ids = np.array([0, *predictor.checkpoint.tokenizer.encode_ids(["abcdefghij abcd fee"])[0]])
    expected, told, begin = 0.0, 0, 0
    while told < len(ids) - 1:
        end = min(begin + WINDOW, len(ids) - 1)
        logs = log_probabilities(predictor, ids[begin : end + 1])
        expected += logs[told - begin :].sum()
        begin, told = begin + stride, end
    metrics = harness.evaluate(
        predictor, [{"text": "abcdefghij abcd fee"}], stride=stride, batch_size=2
    )
    assert metrics["loss"] == pytest.approx(-expected / (len(ids) - 1), rel=1e-5)
    assert metrics["tokens"] == len(ids) - 1


def test_the_last_word_is_right_when_all_its_tokens_are(predictor):
    def right(text):
        metrics = harness.evaluate(predictor, [{"text": text}], measure="last_word")
        assert metrics["tokens"] == 3  # the space and two letters
        return metrics["last_word_accuracy"]

    prompt = {"text": "ab", "_where": "x"}
    written = predictor.predict([prompt])[0]["text"]
    assert isinstance(written, str)
    scores = {right(f"ab {a}{b}") for a in "abcdefghij" for b in "ab"}
    assert scores <= {0.0, 1.0}
    texts = [{"text": "ab cd"}, {"text": "ab ce "}]
    answers = predictor.score(texts, measure="last_word")
    assert [answer["token_count"] for answer in answers] == [3, 3]
    assert language_model.language_model(
        [{**answers[0], "correct": 3}, {**answers[1], "correct": 2}], texts, "last_word"
    )["last_word_accuracy"] == 0.5  # fmt: skip


def test_predict_reads_text_prompt_and_asks_for_one_of_them(predictor):
    examples = [{"text": "ab"}, {"prompt": "ab", "text": "no"}, {"text": ""}]
    checked = list(inputs.check_examples(examples, predictor.task))
    answers = predictor.predict(checked)
    assert answers[0] == answers[1] and set(answers[2]) == {"text"}
    with pytest.raises(DataError, match="the field 'text' is missing"):
        list(inputs.check_examples([{"label": 1}], predictor.task))
    with pytest.raises(DataError, match="not a conversation"):
        list(inputs.check_examples([{"messages": "x"}], predictor.task))


def test_what_cannot_be_measured_is_refused(predictor):
    with pytest.raises(SettingError, match="between 1 and the model's window of 8"):
        harness.evaluate(predictor, [{"text": "abc"}], stride=9)
    with pytest.raises(DataError, match="f:3: 'abc' has no word before"):
        harness.evaluate(predictor, [{"text": "abc", "_where": "f:3"}], measure="last_word")
    with pytest.raises(DataError, match="no token that could be predicted"):
        harness.evaluate(predictor, [{"text": ""}])


def test_a_savedmodel_is_measured_by_its_signature(tmp_path):
    """`score` gives sums per text; the measures are made of them as of a checkpoint's."""

    class Module:
        signatures = {
            "score": lambda text: {
                "log_probability": tf.fill(tf.shape(text), -2.0),
                "token_count": tf.fill(tf.shape(text), 4),
            }
        }

    made = SavedModelPredictor(CausalLM(), {}, tmp_path, Module())
    metrics = harness.evaluate(made, [{"text": "abcd"}, {"text": "é"}])
    assert metrics["perplexity"] == pytest.approx(math.exp(0.5))
    assert metrics["bits_per_byte"] == pytest.approx(4 / math.log(2) / 6)
    assert "next_token_accuracy" not in metrics
    with pytest.raises(SettingError, match="need a checkpoint"):
        harness.evaluate(made, [{"text": "abcd"}], stride=2)
    Module.signatures = {}
    with pytest.raises(ArtifactError, match="no signature score"):
        harness.evaluate(made, [{"text": "abcd"}])
