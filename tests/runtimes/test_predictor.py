"""From examples to answers through a model that is a plain function: order, batches, chunks."""

import math

import numpy as np
import pytest

from tfllm.errors import CheckpointError, DataError, SettingError
from tfllm.evaluation.harness import evaluate, measured_answers, report
from tfllm.evaluation.masked_tokens import masked_tokens
from tfllm.evaluation.metrics import headline
from tfllm.runtimes import token_predictor
from tfllm.runtimes.benchmark import measure_speed, sample_examples
from tfllm.runtimes.token_predictor import TokenPredictor
from tfllm.tasks import Classification, Embedding, MaskedLM, QuestionAnswering
from tfllm.tokenizers.wordpiece import WordPiece

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["good", "bad", "film", "actor", "plot", "scene"]
VOCABULARY = [*SPECIALS, *WORDS]
GOOD, BAD = VOCABULARY.index("good"), VOCABULARY.index("bad")


@pytest.fixture(scope="module")
def tokenizer():
    return WordPiece.from_vocabulary(VOCABULARY)


def counting(inputs):
    """Raw scores [B, 2]: how often "bad" and "good" stand in a row; padding is asserted unread."""
    assert np.all((inputs["token_ids"] == 0) == (inputs["padding_mask"] == 0))
    ids = inputs["token_ids"]
    return np.stack([(ids == BAD).sum(1), (ids == GOOD).sum(1)], axis=1).astype(np.float32)


def classifier(tokenizer, call=counting):
    task = Classification(labels=("bad", "good"))
    return TokenPredictor(task, tokenizer, {"kind": "test"}, 2, call)


def reviews(count):
    rng = np.random.default_rng(0)
    return [
        {"text": " ".join(rng.choice(WORDS, rng.integers(1, 12)).tolist()), "label": "good"}
        for _ in range(count)
    ]


def test_order_is_kept_and_batches_do_not_matter(tokenizer, monkeypatch):
    monkeypatch.setattr(token_predictor, "MAX_CHUNK_BATCHES", 2)
    examples = reviews(23)
    seen = []
    whole = classifier(tokenizer).predict(examples, 100, seen.append)
    assert sum(seen) == pytest.approx(23)
    for example, answer in zip(examples, whole, strict=True):
        words = example["text"].split()
        difference = words.count("good") - words.count("bad")
        assert answer["scores"]["good"] == pytest.approx(1 / (1 + math.exp(-difference)), abs=1e-6)
    assert classifier(tokenizer).predict(examples, 3) == whole
    assert classifier(tokenizer).predict([], 3) == []


def test_rows_of_like_length_share_a_batch(tokenizer):
    areas = []

    def call(inputs):
        areas.append(inputs["token_ids"].size)
        return counting(inputs)

    examples = [{"text": " ".join(["film"] * (1 + n % 10))} for n in range(40)]
    classifier(tokenizer, call).predict(examples, 4)
    assert sum(areas) == sum(2 + 1 + n % 10 for n in range(40))


def test_evaluate_and_report(tokenizer):
    examples = [{"text": "good good", "label": "good"}, {"text": "bad", "label": 1}]
    assert evaluate(classifier(tokenizer), examples)["accuracy"] == 0.5
    measured = measured_answers(classifier(tokenizer), examples)
    written = report(measured, model="m", data="d.tsv")
    assert set(written) == {"metrics", "examples", "seconds", "model", "data", "versions"}
    assert (written["examples"], written["model"], written["data"]) == (2, "m", "d.tsv")
    assert written["versions"]["numpy"] == np.__version__
    assert headline(classifier(tokenizer).task, measured.metrics) == ("accuracy", 0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"language": "en"}, "a model for classification has no option 'language'"),
        ({"stride": 4}, "has no option 'stride'"),
        ({"tokenize": "zh"}, "has no option 'tokenize'"),
        ({"truncate": True}, "truncate is for models that write texts after sources"),
        ({"generation": {"top_k": 3}}, "top_k is for models that write texts after sources"),
    ],
)
def test_an_option_that_the_task_has_no_use_for_is_an_error(tokenizer, options, message):
    with pytest.raises(SettingError, match=message):
        evaluate(classifier(tokenizer), [{"text": "good", "label": "good"}], **options)
    with pytest.raises(TypeError, match="langauge"):
        evaluate(classifier(tokenizer), [{"text": "good", "label": "good"}], langauge="en")


def test_examples_without_gold_are_named_before_anything_runs(tokenizer):
    def never(inputs):
        raise AssertionError

    model = classifier(tokenizer, never)
    good = {"text": "good", "label": "good", "_where": "f.tsv:2"}
    for bad, said in [
        ({"text": "x", "_where": "f.tsv:3"}, "f.tsv:3: the field 'label' is missing"),
        ({"text": "x", "label": "odd", "_where": "f.tsv:3"}, "f.tsv:3: unknown label 'odd'"),
    ]:
        with pytest.raises(DataError, match=said):
            evaluate(model, [good, bad])
    with pytest.raises(DataError, match="no examples"):
        evaluate(model, [])


def test_scores_that_are_no_numbers(tokenizer):
    model = classifier(tokenizer, lambda inputs: counting(inputs) * np.nan)
    with pytest.raises(CheckpointError, match="NaN or infinite scores"):
        model.predict(reviews(2))


def test_pairs_of_an_embedding(tokenizer):
    def call(inputs):  # counts of the six words
        ids = inputs["token_ids"]
        return np.stack([(ids == 5 + n).sum(1) for n in range(6)], 1).astype(np.float32)

    model = TokenPredictor(Embedding(), tokenizer, {}, 6, call)
    examples = [{"text": word, "text_pair": f"{word} {word}"} for word in WORDS]
    assert evaluate(model, examples, batch_size=5)["accuracy"] == 1


def uniform_but(token):
    def call(inputs):
        scores = np.zeros((*inputs["token_ids"].shape, len(VOCABULARY)), np.float32)
        scores[..., token] = 2.0
        return scores

    return call


def test_masked_token_log_probs(tokenizer):
    model = TokenPredictor(MaskedLM(), tokenizer, {}, 10, uniform_but(GOOD))
    all_good = [{"text": "good " * n} for n in (3, 9, 5)]
    result = evaluate(model, all_good, batch_size=2)
    probability = math.exp(2) / (math.exp(2) + len(VOCABULARY) - 1)
    assert result["accuracy_at_1"] == result["accuracy_at_5"] == 1
    assert result["perplexity"] == pytest.approx(1 / probability)
    assert evaluate(model, all_good, batch_size=1) == result
    assert evaluate(model, [{"text": "bad bad bad"}])["accuracy_at_1"] == 0


def test_masked_measures_by_hand():
    answers = [
        {"ranks": [1, 6], "log_probabilities": [math.log(0.5), math.log(0.125)]},
        {"ranks": [3], "log_probabilities": [math.log(0.25)]},
        {"ranks": [], "log_probabilities": []},
    ]
    result = masked_tokens(answers, [])
    assert result["accuracy_at_1"] == pytest.approx(1 / 3)
    assert result["accuracy_at_5"] == pytest.approx(2 / 3)
    assert result["perplexity"] == pytest.approx(4)
    assert masked_tokens(answers[2:], [])["perplexity"] is None


@pytest.mark.parametrize("length", [8, 16])
def test_sample_texts_have_the_length_asked_for(tokenizer, length):
    for task in (
        Classification(labels=("a", "b")),
        Classification(labels=("a", "b"), pair=True),
        Embedding(),
        QuestionAnswering(max_length=length, stride=0),
    ):
        features = task.features(sample_examples(task, VOCABULARY, length, 4), tokenizer)
        assert features.lengths.tolist() == [length] * 4, task.kind


def test_speed_has_its_fields(tokenizer):
    row = measure_speed(classifier(tokenizer), reviews(7), 4, 0.0)
    assert row["batch_size"] == 4 and row["calls"] >= 5
    assert 0 < row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"]
