"""`task.loss()` and `task.metrics()` in Keras' own `fit`: weights, replicas, pairs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from tests.tasks import replica_runs
from tfllm import tasks
from tfllm.errors import SettingError

ROOT = Path(__file__).parents[2]
CLOSE = 2e-5  # float32 sums in another order, over a few steps
# Cases that differ in how replicas are put together: examples (by the project's own optimizer),
# tokens, the other rows of a batch.
QUICK = ("smooth", "tags", "negatives")
OTHERS = tuple(name for name in replica_runs.cases() if name not in QUICK)

random = np.random.default_rng(0)


def expected_values(name):
    """Each case's loss per target without weights, as Keras' own losses give it."""
    crossed = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, reduction="none", ignore_class=-100
    )
    return {
        "single_label": crossed,
        "tags": crossed,
        "masked_lm": crossed,
        "causal_lm": crossed,
        "seq2seq": crossed,
        "multi_label": keras.losses.BinaryCrossentropy(from_logits=True, reduction="none"),
    }[name]


@pytest.mark.parametrize("name", ["single_label", "tags", "masked_lm", "causal_lm", "seq2seq"])
@pytest.mark.parametrize("reduction", ["none", "sum", "sum_over_batch_size"])
def test_a_loss_is_reduced_as_keras_reduces_its_own(name, reduction):
    task, shape, size, targets, _ = replica_runs.cases()[name]
    outputs = random.normal(size=(*targets.shape, size)).astype("float32")
    weights = random.random(len(targets)).astype("float32")
    ours, theirs = task.loss(), expected_values(name)
    ours.reduction = theirs.reduction = reduction
    for sample_weight in (None, weights):
        column = sample_weight
        if sample_weight is not None and targets.ndim == 2:
            column = sample_weight[:, None]  # Keras does not spread them over tokens
        found = ours(targets, outputs, sample_weight)
        wanted = theirs(targets, outputs, column)
        np.testing.assert_allclose(found, wanted, rtol=CLOSE)


@pytest.mark.parametrize("name", replica_runs.cases())
def test_an_example_without_weight_has_no_part_in_loss_and_metrics(name):
    if name == "pretraining":
        pytest.skip("Keras calls its loss for each output: the case of tags")
    task, shape, size, targets, options = replica_runs.cases()[name]
    outputs = np.zeros((len(targets), *shape[:-1], size), "float32")
    outputs += random.normal(size=outputs.shape)
    weights = np.ones(len(targets), "float32")
    weights[0] = 0.0
    changed = outputs.copy()
    changed[0] += random.normal(size=outputs[0].shape)
    if name == "negatives":  # its second text is still another's negative
        changed[0, 1] = outputs[0, 1]
    loss = task.loss(**options)
    assert float(loss(targets, outputs, weights)) == float(loss(targets, changed, weights))
    assert float(loss(targets, outputs)) != float(loss(targets, changed))
    for metric in task.metrics():
        results = []
        for given in (outputs, changed):
            metric.reset_state()
            metric.update_state(targets, given, sample_weight=weights)
            results.append(float(metric.result()))
        assert results[0] == results[1]


def test_class_weight_of_fit_is_honoured():
    task, (width,), size, targets, _ = replica_runs.cases()["single_label"]
    x = random.normal(size=(len(targets), width)).astype("float32")

    def fitted(loss, **options):
        keras.utils.set_random_seed(1)
        inputs = keras.Input((width,))
        model = keras.Model(inputs, keras.layers.Dense(size)(inputs))
        model.compile(keras.optimizers.SGD(0.5), loss=loss)
        model.fit(x, targets, verbose=0, shuffle=False, **options)
        return [weight.numpy() for weight in model.weights]

    own = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    class_weight = {0: 1.0, 1: 4.0, 2: 0.0}
    for found, wanted in zip(
        fitted(task.loss(), class_weight=class_weight),
        fitted(own, class_weight=class_weight),
        strict=True,
    ):
        np.testing.assert_allclose(found, wanted, atol=CLOSE)


def assert_replicas_are_alike(names):
    done = subprocess.run(
        [sys.executable, "-m", "tests.tasks.replica_runs", *names],
        capture_output=True, text=True, cwd=ROOT, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found) == set(names)
    for name, case in found.items():
        assert case["apart"] < CLOSE, name
        assert set(case["one"]) == set(case["two"])
        for measure, values in case["one"].items():
            assert case["two"][measure] == pytest.approx(values, rel=CLOSE, abs=CLOSE), name


def test_two_replicas_learn_what_one_device_learns():
    assert_replicas_are_alike(QUICK)


@pytest.mark.slow
def test_two_replicas_learn_what_one_device_learns_for_every_task():
    assert_replicas_are_alike(OTHERS)


def test_shuffling_keeps_pairs(tokenizer, tiny):
    """The loss of an epoch of default `fit` at rate 0 is what it is in order, for any shuffle."""
    task = tasks.Embedding()
    examples = [
        {"text": a, "text_pair": b}
        for a, b in [("ann", "ann lee"), ("the film", "film"), ("paris", "in paris"), ("c", "d c")]
    ]
    features = task.features(examples, tokenizer)
    inputs, targets = features.batch(features.units.ravel())
    model = task.training_model(tiny(task, dropout=0.0, attention_dropout=0.0))
    model.compile(keras.optimizers.SGD(0.0), loss=task.loss(), metrics=task.metrics())
    in_order = model.evaluate(inputs, targets, verbose=0, batch_size=4)
    history = model.fit(inputs, targets, verbose=0, batch_size=4, epochs=3).history
    np.testing.assert_allclose(history["loss"], in_order[0], rtol=CLOSE)
    assert history["accuracy"] == pytest.approx([in_order[1]] * 3)
    again = model.fit(inputs, targets, verbose=0, batch_size=2, validation_split=0.5).history
    assert np.isfinite([*again["loss"], *again["val_loss"]]).all()


def test_single_texts_cannot_be_trained_as_pairs(tokenizer, tiny):
    task = tasks.Embedding()
    model = tiny(task)
    features = task.features([{"text": "a", "text_pair": "b"}] * 2, tokenizer)
    model.compile("sgd", loss=task.loss(), run_eagerly=True)
    with pytest.raises(
        SettingError, match=r"Train task.training_model\(model\), whose rows are pairs"
    ):
        model.fit(features.inputs(range(4)), np.zeros(4), verbose=0)
