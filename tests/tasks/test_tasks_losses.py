"""Losses and metrics against their formulas in numpy and scikit-learn."""

import numpy as np
import pytest
from scipy.special import expit, log_softmax
from sklearn.metrics import log_loss

from tfllm import tasks
from tfllm.errors import DataError, SettingError

random = np.random.default_rng(0)
LABELS = ("a", "b", "c")


def measured(task, targets, outputs):
    result = {}
    for metric in task.metrics():
        for half in (slice(0, 2), slice(2, None)):  # two batches
            metric.update_state(targets[half], outputs[half])
        result[metric.name] = float(metric.result())
    return result


def test_single_label():
    task = tasks.Classification(labels=LABELS)
    outputs, targets = random.normal(size=(6, 3)).astype("float32"), np.array([0, 2, 1, 1, 0, 2])
    logs = log_softmax(outputs, axis=-1)
    wanted = log_loss(targets, np.exp(logs))
    assert float(task.loss()(targets, outputs)) == pytest.approx(wanted, abs=1e-6)
    weights = np.array([1.0, 2.0, 0.5])
    weighted = log_loss(targets, np.exp(logs), sample_weight=weights[targets])
    for given in ([1.0, 2.0, 0.5], {"b": 2.0, "c": 0.5}):
        loss = task.loss(class_weights=given)
        assert float(loss(targets, outputs)) == pytest.approx(weighted, abs=1e-6)
    smooth = -(0.9 * np.eye(3)[targets] + 0.1 / 3) * logs
    loss = task.loss(label_smoothing=0.1)(targets, outputs)
    assert float(loss) == pytest.approx(smooth.sum(axis=-1).mean(), abs=1e-6)
    accuracy = (outputs.argmax(axis=-1) == targets).mean()
    assert measured(task, targets, outputs)["accuracy"] == pytest.approx(accuracy)


def test_multi_label():
    task = tasks.Classification(labels=LABELS, problem="multi_label")
    outputs = random.normal(size=(5, 3)).astype("float32")
    targets = (random.random((5, 3)) > 0.5).astype("float32")
    each = -(targets * np.log(expit(outputs)) + (1 - targets) * np.log(expit(-outputs)))
    assert float(task.loss()(targets, outputs)) == pytest.approx(each.mean(), abs=1e-6)
    weights = np.array([1.0, 2.0, 0.5])
    loss = task.loss(class_weights=weights.tolist())(targets, outputs)
    wanted = (each * weights).sum() / (5 * weights.sum())
    assert float(loss) == pytest.approx(wanted, abs=1e-6)
    right = ((outputs > 0) == (targets > 0.5)).mean()
    assert measured(task, targets, outputs)["accuracy"] == pytest.approx(right)


def test_regression():
    task = tasks.Classification(problem="regression")
    outputs, targets = random.normal(size=(5, 1)).astype("float32"), random.normal(size=5)
    wanted = ((outputs[:, 0] - targets) ** 2).mean()
    assert float(task.loss()(targets, outputs)) == pytest.approx(wanted, abs=1e-6)
    found = measured(task, targets, outputs)
    assert found["mse"] == pytest.approx(wanted, abs=1e-6)
    assert found["mae"] == pytest.approx(np.abs(outputs[:, 0] - targets).mean(), abs=1e-6)


@pytest.mark.parametrize("kind", ["token_classification", "masked_lm"])
def test_padding_and_other_pieces_do_not_count(kind):
    task = tasks.build({"kind": kind, **({"labels": list(LABELS)} if "token" in kind else {})})
    outputs = random.normal(size=(4, 5, 3)).astype("float32")
    targets = random.integers(3, size=(4, 5))
    targets[:, 0] = targets[1, 2:] = targets[3] = -100
    seen = targets != -100
    logs = log_softmax(outputs, axis=-1)[seen]
    wanted = -logs[np.arange(len(logs)), targets[seen]].mean()
    assert float(task.loss()(targets, outputs)) == pytest.approx(wanted, abs=1e-6)
    wider = np.pad(outputs, ((0, 0), (0, 3), (0, 0)), constant_values=9)
    more = np.pad(targets, ((0, 0), (0, 3)), constant_values=-100)
    assert float(task.loss()(more, wider)) == pytest.approx(wanted, abs=1e-6)
    found = measured(task, targets, outputs)
    assert found["accuracy"] == pytest.approx((logs.argmax(-1) == targets[seen]).mean())
    if kind == "masked_lm":
        assert found["perplexity"] == pytest.approx(np.exp(wanted), rel=1e-5)
    nothing = np.full_like(targets, -100)
    assert float(task.loss()(nothing, outputs)) == 0.0


def test_spans():
    task = tasks.QuestionAnswering()
    outputs = random.normal(size=(4, 6, 2)).astype("float32")
    targets = np.array([[0, 0], [1, 3], [5, 5], [2, 4]])
    logs = log_softmax(outputs, axis=1)
    rows = np.arange(4)
    wanted = -(logs[rows, targets[:, 0], 0] + logs[rows, targets[:, 1], 1]).mean() / 2
    assert float(task.loss()(targets, outputs)) == pytest.approx(wanted, abs=1e-6)
    outputs[1, 1, 0] = outputs[1, 3, 1] = 9
    right = (outputs.argmax(axis=1) == targets).all(axis=-1).mean()
    assert measured(task, targets, outputs)["accuracy"] == pytest.approx(right) and right > 0


def test_in_batch_negatives():
    task = tasks.Embedding(scale=20.0)
    outputs = random.normal(size=(4, 2, 5)).astype("float32")
    unit = outputs / np.linalg.norm(outputs, axis=-1, keepdims=True)
    logs = log_softmax(20.0 * unit[:, 0] @ unit[:, 1].T, axis=-1)
    loss = task.loss()(np.zeros(4), outputs)
    assert float(loss) == pytest.approx(-np.diag(logs).mean(), abs=1e-5)
    metric = task.metrics()[0]
    metric.update_state(np.zeros(4), outputs)
    right = (logs.argmax(axis=-1) == np.arange(4)).mean()
    assert float(metric.result()) == pytest.approx(right)


@pytest.mark.parametrize(
    "settings, options",
    [
        ({"kind": "question_answering"}, {"label_smoothing": 0.1}),
        ({"kind": "embedding"}, {"class_weights": [1.0]}),
        ({"kind": "masked_lm"}, {"class_weights": {"a": 1.0}}),
        ({"kind": "classification", "problem": "regression"}, {"label_smoothing": 0.1}),
    ],
)
def test_options_without_meaning_are_refused(settings, options):
    with pytest.raises(SettingError, match=f"train.{next(iter(options))} has no meaning"):
        tasks.build(settings).loss(**options)


def test_wrong_class_weights():
    task = tasks.Classification(labels=LABELS)
    with pytest.raises(SettingError, match="3 labels"):
        task.loss(class_weights=[1.0])
    with pytest.raises(SettingError, match="'d', which is no label"):
        task.loss(class_weights={"d": 1.0})


def test_scored_pairs_are_pulled_to_their_cosine(tokenizer):
    task = tasks.build({"kind": "embedding", "score_range": [0, 5]})
    examples = [
        {"text": "a", "text_pair": "b", "label": "5"},
        {"text": "c", "text_pair": "d", "label": 2.5},
    ]
    features = task.features(examples, tokenizer)
    assert np.stack(features.targets).tolist() == [1.0, 1.0, 0.5, 0.5]
    _, targets = features.batch(range(4))
    assert targets.tolist() == [1.0, 0.5]
    vectors = np.array([[[3, 0], [2, 2]], [[0, 1], [5, 0]]], "float32")
    wanted = np.mean([(np.sqrt(0.5) - 1) ** 2, (0 - 0.5) ** 2])
    assert float(task.loss()(targets, vectors)) == pytest.approx(wanted)
    assert task.features([{"text": "a", "text_pair": "b"}], tokenizer).targets is None
    with pytest.raises(DataError, match="not a number"):
        task.features([{"text": "a", "text_pair": "b", "label": "much"}], tokenizer)
