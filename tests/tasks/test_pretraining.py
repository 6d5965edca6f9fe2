"""BERT's objective: rows, loss, and scores at the hidden places only."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfllm import tasks
from tfllm.errors import SettingError
from tfllm.tasks import metrics
from tfllm.tasks.features import IGNORED

EXACT = 1e-5  # float32 sums in another order
WORDS = "the film was good bad very who made it paris new york ann lee at in lives".split()
TASK = tasks.Pretraining(max_length=32)


def documents(count=40):
    chance = np.random.default_rng(3)
    sentences = [
        [" ".join(chance.choice(WORDS, chance.integers(2, 9))) + "." for _ in range(6)]
        for _ in range(count)
    ]
    return [{"text": " ".join(s.capitalize() for s in document)} for document in sentences]


@pytest.fixture(scope="module")
def features(tokenizer):
    return TASK.features(documents(), tokenizer)


def test_a_row_is_two_texts_with_their_types_and_label(tokenizer, features):
    drawn = TASK.for_epoch(features, seed=1, epoch=0)
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    labels = []
    for row in range(len(drawn)):
        made = drawn.masked_row(row)
        assert len(made.ids) == drawn.lengths[row] == len(made.types) <= 32
        plain = np.where(made.target != IGNORED, made.target, made.ids)[1:]
        assert made.target[0] == IGNORED
        assert made.ids[0] == start and plain[-1] == end and list(plain).count(end) == 2
        second = int(np.flatnonzero(plain == end)[0]) + 2
        assert made.types.tolist() == [0] * second + [1] * (len(made.ids) - second)
        assert made.positions.tolist() == (np.flatnonzero(made.target[1:] != IGNORED) + 1).tolist()
        assert len(made.positions) == max(1, round(0.15 * len(made.ids)))
        labels.append(made.label)
    assert 0.3 < np.mean(labels) < 0.9  # 1: does not follow, which single sentences never do


def test_rows_are_a_function_of_seed_epoch_and_row(features):
    def rows(*draw):
        drawn = TASK.for_epoch(features, *draw)
        return [drawn.masked_row(row).ids.tolist() for row in range(len(drawn))]

    first = rows(1, 0)
    assert rows(1, 0) == first
    assert rows(1, 1) != first and rows(2, 0) != first
    backwards = TASK.for_epoch(features, 1, 0)
    assert [backwards.masked_row(row).ids.tolist() for row in reversed(range(len(first)))] == first[
        ::-1
    ]


def test_batches_are_the_rows(features):
    drawn = TASK.for_epoch(features, 1, 0)
    inputs, targets = drawn.batch([3, 0], 32)
    for place, row in enumerate((3, 0)):
        made, size = drawn.masked_row(row), int(drawn.lengths[row])
        assert inputs["token_ids"][place, :size].tolist() == made.ids.tolist()
        assert inputs["segment_ids"][place, :size].tolist() == made.types.tolist()
        assert inputs["padding_mask"][place].tolist() == [1] * size + [0] * (32 - size)
        tokens = targets["tokens"][place]
        assert tokens[:size].tolist() == made.target.tolist()
        assert (tokens[size:] == IGNORED).all()
        assert targets["next_sentence"][place] == made.label
        assert drawn.token_ids[row].tolist() == made.ids.tolist()
        assert drawn.targets[row].tolist() == made.target.tolist()


def test_rows_know_their_examples(tokenizer):
    empty = [{"text": ""}, *documents(3), {"text": " "}, *documents(2)]
    for task in (TASK, tasks.MaskedLM(max_length=32, packing=True)):
        rows = task.features(empty, tokenizer)
        assert set(rows.example) <= {1, 2, 3, 5, 6}
        assert rows.example[0] == 1 and (np.diff(rows.example) >= 0).all()


def test_the_digest_names_the_texts(tokenizer, features):
    assert TASK.features(documents(), tokenizer).digest == features.digest
    assert TASK.features(documents()[::-1], tokenizer).digest != features.digest


def expected_means(outputs, targets):
    """Both means by hand: over hidden tokens, over pairs."""
    scores = np.asarray(outputs["tokens"], np.float64)
    logs = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
    told = [
        -logs[row, place, token]
        for row, tokens in enumerate(targets["tokens"])
        for place, token in enumerate(tokens)
        if token != IGNORED
    ]
    pairs = np.asarray(outputs["next_sentence"], np.float64)
    pair_logs = pairs - np.log(np.exp(pairs).sum(-1, keepdims=True))
    labels = targets["next_sentence"]
    followed = -pair_logs[np.arange(len(labels)), labels]
    return np.mean(told), np.mean(followed)


def test_the_loss_is_the_sum_of_both_means(tiny, features):
    model = tiny(TASK)
    inputs, targets = TASK.for_epoch(features, 1, 0).batch(range(8))
    outputs = model({name: inputs[name] for name in model.input}, training=False)
    told, followed = expected_means(outputs, targets)
    loss = TASK.loss()
    parts = {name: float(part) for name, part in loss.parts(targets, outputs).items()}
    assert parts == pytest.approx({"tokens": told, "next_sentence": followed}, rel=EXACT)
    assert float(loss(targets, outputs)) == pytest.approx(told + followed, rel=EXACT)
    counts = {name: float(np.sum(count)) for name, count in loss.counts(targets).items()}
    assert counts == {"tokens": np.sum(targets["tokens"] != IGNORED), "next_sentence": 8}

    measured = {}
    for metric, *both in metrics.metrics_of_outputs(TASK.metrics(), targets, outputs):
        metric.update_state(*both)
        measured[metric.name] = float(metric.result())
    right = np.argmax(outputs["next_sentence"], -1) == targets["next_sentence"]
    assert measured["next_sentence_accuracy"] == pytest.approx(right.mean())
    assert measured["perplexity"] == pytest.approx(np.exp(told), rel=EXACT)
    assert set(measured) == {"masked_accuracy", "perplexity", "next_sentence_accuracy"}


@pytest.mark.parametrize("kind", ["pretraining", "masked_lm"])
def test_scores_at_the_hidden_places_give_the_same_loss_and_gradients(
    tokenizer, tiny, features, kind
):
    task = TASK if kind == "pretraining" else tasks.MaskedLM(max_length=32)
    rows = features if kind == "pretraining" else task.features(documents(), tokenizer)
    model = tiny(task, dropout=0.0, attention_dropout=0.0)
    at_places = task.training_model(model)
    assert {v.path for v in at_places.variables} == {v.path for v in model.variables}
    inputs, targets = task.for_epoch(rows, 1, 0).batch(range(8))
    found = []
    for each in (model, at_places):
        fed = {name: tf.constant(inputs[name]) for name in each.input}
        variables = [v.value for v in model.trainable_variables]
        with tf.GradientTape() as tape:
            outputs = each(fed, training=True)
            loss = task.loss()(targets, outputs)
        gradients = tape.gradient(loss, variables)
        results = []
        for metric, *both in metrics.metrics_of_outputs(task.metrics(), targets, outputs):
            metric.update_state(*both)
            results.append(float(metric.result()))
        found.append((loss, gradients, results))
    assert outputs["tokens"].shape == (8, inputs["positions"].shape[1], tokenizer.vocabulary_size)
    assert float(found[0][0]) == pytest.approx(float(found[1][0]), rel=EXACT)
    assert found[0][2] == pytest.approx(found[1][2], rel=EXACT)
    for first, second in zip(found[0][1], found[1][1], strict=True):
        first, second = tf.convert_to_tensor(first), tf.convert_to_tensor(second)
        np.testing.assert_allclose(first, second, atol=EXACT, rtol=1e-3)


def test_answers_fill_masks_and_judge_pairs(tokenizer, tiny):
    model = tiny(TASK)

    def answer(example):
        rows = TASK.features([example], tokenizer, targets=False)
        inputs, targets = rows.batch([0])
        assert targets is None
        outputs = model({name: inputs[name] for name in model.input}, training=False)
        each = {name: np.asarray(value)[0] for name, value in outputs.items()}
        return TASK.answers([each], rows)[0]

    first = answer({"text": "the [MASK] was good"})
    second = answer({"text": "ann lives", "text_pair": "in [MASK]"})
    assert set(first) == {"text", "masks"} and len(first["masks"]) == 1
    assert set(second) == {"text", "masks", "label", "scores"}
    assert second["label"] in ("is_next", "not_next")
    assert "[MASK]" not in first["text"]


def test_it_is_exported_as_a_masked_language_model():
    task = tasks.Pretraining(max_length=64, whole_word=True)
    assert task.export_task() == tasks.MaskedLM(max_length=64, whole_word=True)
    other = tasks.MaskedLM()
    assert other.export_task() is other


def test_options_without_meaning_are_refused():
    with pytest.raises(SettingError, match="train.label_smoothing has no meaning"):
        TASK.loss(label_smoothing=0.1)
    assert isinstance(TASK.loss(), keras.losses.Loss)
