"""Blocks that are computed again give the gradients of those that are kept, dropout included."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.helpers import recipes
from tfllm.checkpoints import store
from tfllm.keras_internals import all_layers
from tfllm.models import bert, gpt2
from tfllm.tasks import CausalLM, Classification
from tfllm.training.acceleration import kernels, precision, rematerialization
from tfllm.training.run import train

# Parts of the largest gradient: the same formulas, whose sums TensorFlow may reorder.
SAME = 1e-6
# The same in bfloat16, whose numbers have 8 bits.
SAME_BFLOAT16 = 2e-2
# Weights after two steps of AdamW, which makes steps of the same size of the smallest gradients.
STEPS = 1e-4

SHAPE = {"vocabulary_size": 30, "num_layers": 2, "num_heads": 2, "hidden_dim": 16}


def encoder():
    config = bert.Config(
        **SHAPE, max_sequence_length=16, dropout=0.3, attention_dropout=0.3, initializer_range=0.3
    )
    return Classification(labels=("a", "b", "c")).model(bert.backbone(config), config)


def decoder():
    config = gpt2.Config(
        **SHAPE, max_sequence_length=16, dropout=0.3, attention_dropout=0.3, initializer_range=0.3
    )
    return CausalLM().model(gpt2.backbone(config), config)


MODELS = {"encoder": encoder, "decoder": decoder}


def built(name, kind="float32"):
    keras.utils.set_random_seed(3)
    with precision.policy(kind):
        return MODELS[name]()


def inputs(model):
    ids = np.random.default_rng(0).integers(5, 30, (4, 9), dtype=np.int32)
    mask = np.ones_like(ids)
    mask[0, 6:] = 0
    given = {"token_ids": ids, "segment_ids": np.zeros_like(ids), "padding_mask": mask}
    return {name: tf.constant(given[name]) for name in model.input}


def gradients(model, graph=True):
    x = inputs(model)

    def step():
        with tf.GradientTape() as tape:
            output = model(x, training=True)
            total = tf.reduce_sum(output * tf.random.stateless_normal(output.shape, seed=[1, 2]))
        return total, tape.gradient(total, [v.value for v in model.trainable_variables])

    total, found = (tf.function(step) if graph else step)()
    return float(total), [tf.convert_to_tensor(g).numpy() for g in found]


def compared(name, kind="float32", tolerance=SAME, graph=True, prepare=lambda model: None):
    plain, again = built(name, kind), built(name, kind)
    prepare(plain)
    prepare(again)
    assert rematerialization.install(again) == 2
    one, expected = gradients(plain, graph)
    two, found = gradients(again, graph)
    np.testing.assert_allclose(one, two, rtol=tolerance)
    assert len(expected) == len(found)
    largest = max(np.abs(a).max() for a in expected)
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_allclose(a / largest, b / largest, atol=tolerance, rtol=0)
    # The seeds moved on once, not once for each pass.
    seeds = [
        [v.numpy() for v in m.non_trainable_variables if "seed" in v.path] for m in (plain, again)
    ]
    assert len(seeds[0]) > 4
    np.testing.assert_array_equal(seeds[0], seeds[1])


@pytest.mark.parametrize("name", MODELS)
def test_gradients_with_dropout_are_the_same(name):
    compared(name)


def test_and_in_bfloat16_with_fused_kernels():
    compared("encoder", "bfloat16", SAME_BFLOAT16, prepare=kernels.install)


def test_and_eagerly():
    compared("encoder", graph=False)


def test_other_seeds_give_other_gradients():
    """What keras.remat gets wrong is visible in these models: the comparison can fail."""
    one, two = built("encoder"), built("encoder")
    for variable in two.non_trainable_variables:
        if "seed" in variable.path:
            variable.assign(variable + 1)
    pairs = zip(gradients(one)[1], gradients(two)[1], strict=True)
    assert max(np.abs(a - b).max() for a, b in pairs) > 0.1


def test_the_graph_computes_each_block_twice():
    def products(model):
        x = inputs(model)

        @tf.function
        def step():
            with tf.GradientTape() as tape:
                total = tf.reduce_sum(model(x, training=True))
            return tape.gradient(total, [v.value for v in model.trainable_variables])

        operations = step.get_concrete_function().graph.get_operations()
        return sum(operation.type == "Softmax" for operation in operations)

    plain, again = built("encoder"), built("encoder")
    rematerialization.install(again)
    assert products(again) == 2 * products(plain)


def test_prediction_is_untouched_and_it_can_be_removed():
    model = built("decoder")
    before = model(inputs(model)).numpy()
    rematerialization.install(model)
    np.testing.assert_array_equal(model(inputs(model)), before)
    rematerialization.remove(model)
    assert all("call" not in layer.__dict__ for layer in all_layers(model))


def test_a_recipe_asks_for_it(tmp_path):
    recipes.write_data(tmp_path / "data", train=40, validation=0)
    weights = []
    for name, on in (("plain", False), ("again", True)):
        recipe = recipes.recipe(
            tmp_path / "data",
            data={"validation": None},
            train={"epochs": 1, "rematerialize": on, "strategy": "one"},
        )
        train(recipe, tmp_path / name, progress=False)
        loaded = store.load(tmp_path / name / "checkpoint")
        weights.append([weight.numpy() for weight in loaded.model.weights])
    for one, two in zip(*weights, strict=True):
        np.testing.assert_allclose(one, two, atol=STEPS)
