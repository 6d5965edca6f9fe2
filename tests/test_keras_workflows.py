"""What a Keras user does: compile, fit, callbacks, frozen layers, strategies, `.keras` files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfllm
from tests.helpers import byte_models, translators
from tests.helpers.encoders import make

ROOT = Path(__file__).parent.parent
EXAMPLES = [
    {"text": "the film was good", "label": "good"},
    {"text": "the film was bad", "label": "bad"},
    {"text": "who built it", "label": "neither"},
    {"text": "it was the good lighthouse, the good film", "label": "good"},
] * 4
CLOSE = 2e-5  # float32 sums in another order, over a few steps


@pytest.fixture
def model():
    return tfllm.Model(make("classification"))


def in_a_fresh_process(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


# Data


def test_a_dataset_has_a_known_length_and_padded_batches(model):
    data = model.dataset(EXAMPLES, batch_size=3)
    assert isinstance(data, tf.data.Dataset)
    assert len(data) == 6
    batches = list(data)
    assert len(batches) == len(data)
    inputs, targets = batches[0]
    assert set(inputs) == set(model.keras.input)
    assert inputs["token_ids"].shape == inputs["padding_mask"].shape
    assert targets.numpy().tolist() == [1, 0, 2]
    assert len(model.dataset(EXAMPLES, batch_size=3, drop_remainder=True)) == 5
    assert len(model.dataset(EXAMPLES, limit=7, batch_size=3)) == 3


def test_a_dataset_that_is_not_shuffled_is_in_order(model):
    texts = [example["text"] for example in EXAMPLES[:7]]
    scores = model.keras.predict(model.dataset(texts, batch_size=2), verbose=0)
    answers = model.predict(texts)
    assert [model.task.labels[i] for i in scores.argmax(-1)] == [a["label"] for a in answers]


def test_every_epoch_of_a_shuffled_dataset_has_another_order(model):
    def epochs(seed):
        data = model.dataset(EXAMPLES, batch_size=3, shuffle=True, seed=seed)
        return [np.concatenate([y for _, y in data]).tolist() for _ in range(3)]

    first, second, third = epochs(0)
    assert first != second != third
    assert sorted(first) == sorted(second)
    assert epochs(0) == [first, second, third]
    assert epochs(1) != [first, second, third]


def test_examples_of_similar_length_share_a_batch(model):
    rows = [{"text": "the film " * n, "label": "good"} for n in range(1, 13)]

    def padding(shuffle):
        data = model.dataset(rows, batch_size=2, shuffle=shuffle)
        return sum(float(tf.reduce_sum(1 - x["padding_mask"])) for x, _ in data)

    rows = rows[::2] + rows[1::2][::-1]
    assert padding(True) <= padding(False)


def test_files_and_columns(model, tmp_path):
    file = tmp_path / "train.tsv"
    file.write_text("sentence\tclass\nthe film was good\t1\nthe film was bad\t0\n")
    columns = {"text": "sentence", "label": "class"}
    labels = {"0": "bad", "1": "good"}
    ((_, targets),) = model.dataset(file, columns=columns, labels=labels)
    assert targets.numpy().tolist() == [1, 0]
    rows = [{"sentence": "the film", "class": 1}]
    ((_, targets),) = model.dataset(rows, columns=columns, labels=labels)
    assert targets.numpy().tolist() == [1]
    metrics = model.evaluate(file, columns=columns, labels=labels)
    assert metrics["accuracy"] in (0, 0.5, 1)


# Compile and fit


def test_compile_and_fit_learn_the_examples(model):
    train = model.dataset(EXAMPLES, batch_size=4, shuffle=True)
    dev = model.dataset(EXAMPLES, batch_size=8)
    model.compile(learning_rate=1e-2, steps=15 * len(train))
    history = model.fit(train, validation_data=dev, epochs=15, verbose=0).history
    assert set(history) == {"loss", "accuracy", "val_loss", "val_accuracy"}
    assert history["val_accuracy"][-1] == 1
    assert model.evaluate(EXAMPLES)["accuracy"] == 1  # the runtime has the new weights
    assert float(model.keras.optimizer.learning_rate) < 1e-3  # it has fallen to the last step


def test_the_rate_rises_and_falls(model):
    model.compile(learning_rate=1.0, steps=100, warmup=10)
    rate = model.keras.optimizer._learning_rate
    assert [float(rate(step)) for step in (0, 5, 10, 55, 100)] == [0, 0.5, 1, 0.5, 0]
    model.compile(learning_rate=1.0)
    rate = model.keras.optimizer._learning_rate
    assert [float(rate(step)) for step in (0, 50, 100, 10_000)] == [0, 0.5, 1, 1]
    with pytest.raises(tfllm.errors.SettingError, match="Give steps"):
        model.compile(schedule="linear")


def test_weight_decay_is_of_matrices_alone(model):
    model.compile()
    model.keras.optimizer.build(model.keras.trainable_variables)
    decayed = [
        variable.path for variable in model.keras.trainable_variables
        if model.keras.optimizer._use_weight_decay(variable)
    ]  # fmt: skip
    assert decayed
    assert not [path for path in decayed if path.endswith(("bias", "gamma", "beta", "scale"))]


def test_own_optimizer_loss_and_metrics(model):
    train = model.dataset(EXAMPLES, batch_size=4)
    model.keras.compile(
        keras.optimizers.Adam(1e-3),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    history = model.keras.fit(train, epochs=2, verbose=0).history
    assert history["loss"][1] < history["loss"][0]
    model.compile(optimizer=keras.optimizers.SGD(0.1))
    assert isinstance(model.keras.optimizer, keras.optimizers.SGD)
    assert np.isfinite(model.fit(train, verbose=0).history["loss"]).all()


def test_a_custom_training_loop(model):
    optimizer, loss = keras.optimizers.Adam(1e-2), model.task.loss()
    losses = []
    for _ in range(5):
        for inputs, targets in model.dataset(EXAMPLES, batch_size=8):
            with tf.GradientTape() as tape:
                value = loss(targets, model.keras(inputs, training=True))
            variables = model.keras.trainable_variables
            optimizer.apply(tape.gradient(value, variables), variables)
            losses.append(float(value))
    assert losses[-1] < losses[0]


def test_weights_of_examples_and_classes(model):
    zeros = [0.0] * len(EXAMPLES)
    model.compile()
    data = model.dataset(EXAMPLES, sample_weight=zeros)
    assert len(data.element_spec) == 3
    assert model.trainable.evaluate(data, verbose=0)[0] == 0
    half = [float(example["label"] == "good") for example in EXAMPLES]
    _, weights = next(iter(model.dataset(EXAMPLES, batch_size=4, sample_weight=half)))[1:]
    assert weights.numpy().tolist() == half[:4]
    history = model.fit(model.dataset(EXAMPLES), class_weight={0: 0, 1: 0, 2: 0}, verbose=0)
    assert history.history["loss"] == [0]


def test_arrays_can_be_fitted_too(model):
    ((inputs, targets),) = model.dataset(EXAMPLES, batch_size=len(EXAMPLES))
    arrays = {name: value.numpy() for name, value in inputs.items()}
    model.compile(learning_rate=1e-3)
    history = model.fit(arrays, targets.numpy(), batch_size=4, epochs=2, verbose=0).history
    assert len(history["loss"]) == 2


# Callbacks


def test_callbacks_of_keras(model, tmp_path):
    train = model.dataset(EXAMPLES, batch_size=4, shuffle=True)
    dev = model.dataset(EXAMPLES, batch_size=8)
    model.compile(learning_rate=1e-2)
    history = model.fit(
        train,
        validation_data=dev,
        epochs=30,
        verbose=0,
        callbacks=[
            keras.callbacks.ModelCheckpoint(
                tmp_path / "best.keras", monitor="val_accuracy", mode="max", save_best_only=True
            ),
            keras.callbacks.TensorBoard(tmp_path / "logs"),
            keras.callbacks.EarlyStopping("val_loss", patience=1, restore_best_weights=True),
        ],
    ).history
    assert len(history["loss"]) <= 30
    assert list((tmp_path / "logs" / "train").glob("events*"))
    best = keras.models.load_model(tmp_path / "best.keras")
    measured = dict(zip(best.metrics_names, best.evaluate(dev, verbose=0), strict=False))
    assert measured["loss"] > 0
    accuracy = best.evaluate(dev, verbose=0, return_dict=True)["accuracy"]
    assert accuracy == pytest.approx(max(history["val_accuracy"]))


class Interrupt(keras.callbacks.Callback):
    """Ends a training as a lost machine does."""

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise KeyboardInterrupt


def test_backup_and_restore_continues_a_training(tmp_path):
    def train(folder, *more, epochs=4):
        model = tfllm.Model(
            make("classification", shape={"dropout": 0.0, "attention_dropout": 0.0})
        )
        model.compile(learning_rate=1e-2)
        backup = keras.callbacks.BackupAndRestore(folder)
        data = model.dataset(EXAMPLES, batch_size=4)  # the same batches in every epoch
        history = model.fit(data, epochs=epochs, verbose=0, callbacks=[backup, *more])
        return model, history

    unbroken, history = train(tmp_path / "one")
    assert len(history.history["loss"]) == 4
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "two", Interrupt())
    continued, history = train(tmp_path / "two")
    assert len(history.history["loss"]) == 2
    for before, after in zip(unbroken.keras.weights, continued.keras.weights, strict=True):
        np.testing.assert_allclose(after, before, atol=CLOSE)


# Layers


def test_frozen_layers_stay_as_they_are(model):
    head = [layer for layer in model.keras.layers if layer.name.startswith("classifier")]
    for layer in model.keras.layers:
        layer.trainable = layer in head
    assert 0 < len(model.keras.trainable_variables) <= 4
    before = {weight.path: weight.numpy() for weight in model.keras.weights}
    model.compile(learning_rate=1e-2, warmup=0)
    model.fit(model.dataset(EXAMPLES), epochs=2, verbose=0)
    trained = {weight.path for weight in model.keras.trainable_variables}
    for weight in model.keras.weights:
        same = np.array_equal(weight.numpy(), before[weight.path])
        assert same == (weight.path not in trained), weight.path


def test_layers_on_top(model, tmp_path):
    encoder = model.keras
    hidden = keras.layers.Dense(8, activation="relu")(encoder.output)
    deeper = keras.Model(encoder.input, keras.layers.Dense(1)(hidden))
    deeper.compile("adam", loss="mse")
    data = model.dataset(EXAMPLES, batch_size=4).map(lambda x, y: (x, tf.cast(y, tf.float32)))
    losses = deeper.fit(data, epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    deeper.save(tmp_path / "deeper.keras")
    again = keras.models.load_model(tmp_path / "deeper.keras")
    np.testing.assert_allclose(again.predict(data, verbose=0), deeper.predict(data, verbose=0))


# Strategies


@pytest.mark.slow
def test_strategy_scope_is_respected(tmp_path):
    """Two replicas in a fresh process learn what one device learns."""
    folder = tfllm.Model(
        make("classification", shape={"dropout": 0.0, "attention_dropout": 0.0})
    ).save(tmp_path / "model")
    code = f"""
import json
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import numpy as np
import tfllm

examples = {EXAMPLES!r}
def losses(strategy):
    with strategy.scope():
        model = tfllm.load({str(folder)!r})
        model.compile(learning_rate=1e-2, warmup=2)
    history = model.fit(model.dataset(examples, batch_size=4), epochs=2, verbose=0).history
    value = model.keras.trainable_variables[0].value
    return history["loss"] + history["accuracy"], type(value).__name__

one, _ = losses(tf.distribute.get_strategy())
two, kind = losses(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]))
print(json.dumps([one, two, kind]))
"""
    one, two, kind = in_a_fresh_process(code)
    assert kind == "MirroredVariable"
    assert two == pytest.approx(one, abs=CLOSE)


# Files


def test_a_keras_file_is_loaded_by_a_fresh_process(model, tmp_path):
    model.compile(learning_rate=1e-2, steps=20)
    data = model.dataset(EXAMPLES, batch_size=4)
    model.fit(data, epochs=1, verbose=0)
    model.keras.save(tmp_path / "x.keras")
    ((inputs, _),) = model.dataset(EXAMPLES, batch_size=len(EXAMPLES))
    arrays = {name: value.numpy().tolist() for name, value in inputs.items()}
    code = f"""
import json, keras, numpy as np
import tfllm.saving
model = keras.models.load_model({str(tmp_path / "x.keras")!r})
arrays = json.loads({json.dumps(arrays)!r})
outputs = model({{name: np.array(value, "int32") for name, value in arrays.items()}})
optimizer = model.optimizer
print(json.dumps(
    [outputs.numpy().tolist(), type(optimizer).__name__, int(optimizer.iterations)]
))
"""
    outputs, optimizer, iterations = in_a_fresh_process(code)
    np.testing.assert_allclose(outputs, model.keras(inputs), atol=CLOSE)
    assert (optimizer, iterations) == ("AdamW", 4)


# Tasks


def test_a_float16_model_goes_on_with_its_loss_scale(tmp_path):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = tfllm.Model(make("classification"))
    finally:
        keras.config.set_dtype_policy("float32")
    model.compile(1e-3, run_eagerly=True)
    model.fit(model.dataset(EXAMPLES, batch_size=8))
    model.keras.save(tmp_path / "model.keras")
    scaled = model.keras.optimizer
    again = keras.models.load_model(tmp_path / "model.keras").optimizer
    assert isinstance(again, keras.optimizers.LossScaleOptimizer)
    assert int(scaled.step_counter) == int(again.step_counter) == 2
    for before, after in zip(scaled.variables, again.variables, strict=True):
        np.testing.assert_array_equal(before, after)


def test_pairs_of_texts():
    model = tfllm.Model(make("embedding"))
    pairs = [{"text": "the film", "text_pair": "it was the film"},
             {"text": "who built it", "text_pair": "who built the lighthouse"}] * 4  # fmt: skip
    data = model.dataset(pairs, batch_size=4, shuffle=True)
    assert data.element_spec[0]["token_ids"].shape.as_list() == [None, 2, None]
    model.compile(learning_rate=1e-2, warmup=1)
    before = model.predict("the film")["embedding"]
    history = model.fit(data, epochs=2, verbose=0).history
    assert set(history) == {"loss", "accuracy"}
    assert model.predict("the film")["embedding"] != before  # layers are shared with model.keras


def test_masked_tokens_differ_from_epoch_to_epoch():
    model = tfllm.Model(make("masked_lm", max_length=32))
    texts = ["the film was good and who built it"] * 8

    def masked(data):
        return [np.concatenate([(y != -100).numpy().ravel() for _, y in data]).tolist()
                for _ in range(2)]  # fmt: skip

    first, second = masked(model.dataset(texts, shuffle=True))
    assert first != second
    first, second = masked(model.dataset(texts))  # to validate on the same ones
    assert first == second
    model.compile()
    assert np.isfinite(model.fit(model.dataset(texts, shuffle=True), verbose=0).history["loss"])


def test_language_models_and_translators_are_fitted():
    language = tfllm.Model(byte_models.checkpoint())
    before = language.generate("ab", max_new_tokens=8)
    language.compile(learning_rate=3e-2, warmup=0)
    data = language.dataset(["ab" * 40] * 8, batch_size=4, shuffle=True)
    losses = language.fit(data, epochs=12, verbose=0).history["loss"]
    assert losses[-1] < losses[0] / 2
    assert language.generate("ab", max_new_tokens=8) == "abababab" != before
    translator = tfllm.Model(translators.checkpoint())
    rows = [{"source": source, "target": source[:9]} for source in translators.SENTENCES[:4]]
    translator.compile(learning_rate=1e-3)
    assert np.isfinite(translator.fit(translator.dataset(rows), verbose=0).history["loss"]).all()
