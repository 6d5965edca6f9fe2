"""One optimizer step: against Keras' own, against one large batch, over two devices."""

import json
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfllm.models import gpt2
from tfllm.tasks import CausalLM, losses
from tfllm.training import optimizers
from tfllm.training.model import TrainingModel
from tfllm.training.optimizers import AdamW, is_decayed
from tfllm.training.recipe import TrainSettings

ROOT = Path(__file__).parents[2]


def net(dropout=0.0):
    keras.utils.set_random_seed(5)
    ids = keras.Input((None,), dtype="int32", name="token_ids")
    x = keras.layers.Embedding(20, 8, name="token_embedding")(ids)
    x = keras.layers.Dense(8, activation="tanh", name="up")(x)
    x = keras.layers.LayerNormalization(name="norm")(x)
    x = keras.layers.Dropout(dropout)(x)
    x = keras.layers.GlobalAveragePooling1D()(x)
    return keras.Model({"token_ids": ids}, keras.layers.Dense(3, name="classifier")(x))


def compiled(settings, steps=10, dropout=0.0, loss=None):
    plain = net(dropout)
    model = TrainingModel(plain.input, plain.output)
    model.micro_batches, model.clip_norm = settings.accumulate, settings.clip_norm
    model.compile(
        optimizer=optimizers.build_optimizer(settings, steps, model.trainable_variables),
        loss=loss or keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
        auto_scale_loss=False,
    )
    return model


def batch(size=12):
    generator = np.random.default_rng(0)
    # Ids repeat inside a batch: where Keras' Adam goes wrong on sparse gradients.
    ids = generator.integers(0, 6, size=(size, 5), dtype=np.int32)
    return {"token_ids": ids}, generator.integers(0, 3, size=size, dtype=np.int32)


def trained(model, steps=4, size=12):
    dataset = tf.data.Dataset.from_tensors(batch(size)).repeat()
    history = model.fit(dataset, epochs=1, steps_per_epoch=steps, shuffle=False, verbose=0)
    return [w.numpy() for w in model.trainable_weights], history.history


def reference(steps, learning_rates, clip=None, weight_decay=0.1, epsilon=1e-8):
    """AdamW by its formula in float64-free numpy over dense gradients (Kingma's epsilon hat)."""
    model = net()
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    x, y = batch()
    m = [np.zeros(w.shape) for w in model.trainable_weights]
    v = [np.zeros(w.shape) for w in model.trainable_weights]
    for step in range(steps):
        with tf.GradientTape() as tape:
            loss = loss_of(y, model(x, training=True))
        gradients = tape.gradient(loss, [w.value for w in model.trainable_weights])
        gradients = [tf.convert_to_tensor(g).numpy() for g in gradients]
        norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in gradients))
        for i, weight in enumerate(model.trainable_weights):
            g = gradients[i] * (min(1.0, clip / norm) if clip else 1.0)
            m[i] = 0.9 * m[i] + 0.1 * g
            v[i] = 0.999 * v[i] + 0.001 * g**2
            rate = learning_rates[step] * np.sqrt(1 - 0.999 ** (step + 1)) / (1 - 0.9 ** (step + 1))
            value = weight.numpy()
            if is_decayed(weight):
                value = value * (1 - learning_rates[step] * weight_decay)
            weight.assign(value - rate * m[i] / (np.sqrt(v[i]) + epsilon))
    return [w.numpy() for w in model.trainable_weights]


def close(one, two, tolerance=2e-6):
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance)


def test_the_step_is_adamw_with_dense_gradients():
    settings = TrainSettings(
        learning_rate=0.01, schedule="constant", warmup=0, weight_decay=0.1, clip_norm=None
    )
    weights, history = trained(compiled(settings))
    close(weights, reference(4, [0.01] * 4))
    assert set(history) == {"loss", "gradient_norm"}


def test_keras_own_fit_makes_the_same_step_with_this_optimizer():
    model = net()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(AdamW(0.01, weight_decay=0.1, epsilon=1e-8, decay_vectors=False), loss=loss)
    weights, _ = trained(model)
    close(weights, reference(4, [0.01] * 4))


def test_the_optimizer_is_keras_own_where_the_fused_update_does_not_go():
    for options, dtype in (({"amsgrad": True}, "float32"), ({}, "bfloat16")):
        found = []
        for kind in (AdamW, keras.optimizers.AdamW):
            variable = keras.Variable(np.linspace(-1, 1, 6).reshape(2, 3), dtype=dtype)
            optimizer = kind(0.1, **options)
            for step in range(3):
                optimizer.apply([keras.ops.cast(variable.value * (step - 1.0), dtype)], [variable])
            found.append(np.asarray(keras.ops.cast(variable, "float32")))
        np.testing.assert_array_equal(*found)


def test_clipping_is_by_the_global_norm():
    settings = TrainSettings(
        learning_rate=0.01, schedule="constant", warmup=0, weight_decay=0.1, clip_norm=0.05
    )
    weights, _ = trained(compiled(settings))
    close(weights, reference(4, [0.01] * 4, clip=0.05))


@pytest.mark.parametrize("size", [12, 10])
def test_micro_batches_give_the_same_step(size):
    settings = TrainSettings(learning_rate=0.01, warmup=0)
    whole, one = trained(compiled(settings), size=size)
    parts, two = trained(compiled(settings.model_copy(update={"accumulate": 4})), size=size)
    close(whole, parts, 2e-5)
    np.testing.assert_allclose(one["loss"], two["loss"], rtol=1e-5)
    np.testing.assert_allclose(one["gradient_norm"], two["gradient_norm"], rtol=1e-4)


def test_micro_batches_of_unlike_class_weights_give_the_same_step():
    loss = losses.CrossEntropy(class_weights=[1.0, 5.0, 0.25])
    settings = TrainSettings(learning_rate=0.01, warmup=0)
    whole, one = trained(compiled(settings, loss=loss))
    parts, two = trained(compiled(settings.model_copy(update={"accumulate": 3}), loss=loss))
    close(whole, parts, 2e-5)
    np.testing.assert_allclose(one["loss"], two["loss"], rtol=1e-5)


def test_tied_embeddings_get_the_gradients_of_both_uses():
    """Reading ids and scoring them: the dense gradient against a difference of losses."""
    config = gpt2.Config(
        vocabulary_size=9, num_layers=1, num_heads=2, hidden_dim=8, max_sequence_length=6,
        dropout=0.0, embedding_dropout=0.0, attention_dropout=0.0, initializer_range=0.5,
    )  # fmt: skip
    keras.utils.set_random_seed(2)
    plain = CausalLM().model(gpt2.backbone(config), config)
    model = TrainingModel(plain.input, plain.output)
    settings = TrainSettings()
    model.compile(
        optimizer=optimizers.build_optimizer(settings, 10, model.trainable_variables),
        loss=CausalLM().loss(),
        auto_scale_loss=False,
    )
    ids = tf.constant([[1, 2, 1, 2, 3], [4, 4, 1, 0, 0]])
    x = {"token_ids": ids[:, :-1], "padding_mask": tf.constant([[1, 1, 1, 1], [1, 1, 1, 0]])}
    y = tf.where(x["padding_mask"] > 0, ids[:, 1:], -100)
    _, gradients = model._gradients(x, y)
    index = [w.path for w in model.trainable_weights].index("token_embedding/embeddings")
    weight, gradient = model.trainable_weights[index], gradients[index]
    assert isinstance(gradient, tf.Tensor) and gradient.shape == (9, 8)
    direction = tf.random.stateless_normal(gradient.shape, seed=[1, 2])
    losses_at = []
    for sign in (1, -1):
        weight.assign_add(sign * 1e-2 * direction)
        losses_at.append(float(model.loss(y, model(x))))
        weight.assign_add(-sign * 1e-2 * direction)
    slope = (losses_at[0] - losses_at[1]) / 2e-2
    assert slope == pytest.approx(float(tf.reduce_sum(gradient * direction)), rel=0.01)


def test_float16_scales_the_loss():
    settings = TrainSettings(learning_rate=0.01, warmup=0, precision="float16")
    weights, history = trained(compiled(settings))
    expected, plain = trained(compiled(settings.model_copy(update={"precision": "float32"})))
    close(weights, expected, 1e-4)
    np.testing.assert_allclose(history["gradient_norm"], plain["gradient_norm"], rtol=1e-3)


def test_what_carries_no_decay():
    decayed = {w.path for w in net().weights if is_decayed(w)}
    assert decayed == {"token_embedding/embeddings", "up/kernel", "classifier/kernel"}


def test_schedules():
    def rates(kind, steps=(0, 1, 2, 5, 8)):
        schedule = optimizers.Schedule(1.0, kind, warmup=2, steps=8)
        return [round(float(schedule(step)), 4) for step in steps]

    assert rates("linear") == [0.0, 0.5, 1.0, 0.5, 0.0]
    assert rates("cosine") == [0.0, 0.5, 1.0, 0.5, 0.0]
    ending = optimizers.Schedule(1.0, "cosine", warmup=2, steps=8, final=0.1)
    assert [round(float(ending(step)), 4) for step in (1, 2, 5, 8, 9)] == [0.5, 1.0, 0.55, 0.1, 0.1]
    assert rates("constant") == [0.0, 0.5, 1.0, 1.0, 1.0]
    # transformers' get_inverse_sqrt_schedule: the root of warmup / step.
    assert rates("inverse_sqrt") == [0.0, 0.5, 1.0, 0.6325, 0.5]
    cold = optimizers.Schedule(1.0, "inverse_sqrt", warmup=0, steps=8)
    assert [round(float(cold(step)), 4) for step in (0, 30_000)] == [1.0, 0.5]
    assert optimizers.warmup_steps(0.1, 95) == 10
    assert optimizers.warmup_steps(100, 1000) == 100
    assert optimizers.warmup_steps(0.0, 10) == 0


@pytest.fixture(scope="module")
def mirrored():
    """What became of each claim of mirrored_steps.py: "" or a traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.mirrored_steps"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "claim", ["whole_batches", "micro_batches", "ignored_targets", "dropout_masks"]
)
def test_two_devices_give_the_same_step(mirrored, claim):
    assert mirrored[claim] == "", mirrored[claim]


def test_all_claims_about_two_devices_are_known(mirrored):
    assert len(mirrored) == 4
