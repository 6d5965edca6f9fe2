"""The private parts of Keras that tfllm touches are as they were when it was written.

A failure here names a part that the installed Keras has changed: look at `tfllm/keras_internals.py`
and run the slow tests of test_strategies.py, and only then widen `KERAS`.
"""

import ast
import configparser
import functools
import importlib
import inspect
import re
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from packaging.version import Version

from tests.training.strategy_runs import ROOT
from tfllm import keras_internals
from tfllm.training.model import ReplicatedModel, fold_replica_into_dropout

# Part -> the names of its arguments.
SIGNATURES = {
    "keras.Model._maybe_symbolic_build": ["self", "iterator", "data_batch"],
    "keras.Model.make_train_function": ["self", "force"],
    "keras.Model._flatten_layers": ["self", "include_self", "recursive"],
    "keras.Layer._untrack_variable": ["self", "variable"],
    "keras.layers.MultiHeadAttention._compute_attention": [
        "self", "query", "key", "value", "attention_mask", "training", "return_attention_scores",
        "use_causal_mask",
    ],
    "keras.random.SeedGenerator.next": ["self", "ordered"],
    "keras.StatelessScope.__init__": [
        "self", "state_mapping", "collect_losses", "initialize_variables",
    ],
    "keras.Variable._initialize": ["self", "value"],
    "keras.Variable._deferred_initialize": ["self"],
    "keras.Variable._convert_to_tensor": ["self", "value", "dtype"],
    "keras.optimizers.Optimizer._all_reduce_sum_gradients": ["self", "grads_and_vars"],
    "keras.optimizers.Optimizer._get_variable_index": ["self", "variable"],
    "keras.optimizers.AdamW.update_step": ["self", "gradient", "variable", "learning_rate"],
}  # fmt: skip


@pytest.mark.parametrize("part", SIGNATURES)
def test_a_private_part_of_keras_has_not_changed(part):
    found = keras
    for name in part.split(".")[1:]:
        found = getattr(found, name, None)
        assert found is not None, f"Keras {keras.__version__} has no {part} any more"
    assert list(inspect.signature(found).parameters) == SIGNATURES[part]


def test_the_installed_keras_is_in_the_tested_range():
    first, below = map(Version, keras_internals.KERAS)
    assert first <= Version(keras.__version__) < below
    setup = configparser.ConfigParser()
    setup.read(Path(ROOT) / "setup.cfg")
    wanted = f"keras>={keras_internals.KERAS[0]},<{keras_internals.KERAS[1]}"
    assert wanted in setup["options"]["install_requires"].split()


def small_model():
    inputs = keras.Input((4, 8))
    attention = keras.layers.MultiHeadAttention(2, 4, dropout=0.5, name="attention")
    dense = keras.layers.Dense(8, name="dense")
    dropout = keras.layers.Dropout(0.5, name="dropout")
    return keras.Model(inputs, dropout(dense(attention(inputs, inputs))))


def test_layers_of_every_depth_and_their_seeds():
    model = small_model()
    layers = keras_internals.all_layers(model)
    names = {layer.name for layer in layers}
    assert {model.name, "attention", "query", "value", "dense", "dropout"} <= names
    assert len({id(layer) for layer in layers}) == len(layers)
    inner = keras_internals.all_layers(model.get_layer("attention"), include_self=False)
    assert "attention" not in {layer.name for layer in inner}
    generators = keras_internals.seed_generators(model)
    assert len(generators) == 2
    first = generators[0]
    keras_internals.override_next(first, lambda ordered=True: "own")
    with keras_internals.fixed_seeds(generators, ["a", "b"]):
        assert [generator.next() for generator in generators] == ["a", "b"]
    assert first.next() == "own"
    assert np.shape(generators[1].next()) == (2,)


def test_a_call_is_replaced_and_restored():
    model = small_model()
    dense, x = model.get_layer("dense"), np.ones((1, 4, 8), "float32")
    before = model(x).numpy()
    keras_internals.override_call(dense, lambda inputs, training=None: inputs * 0)
    assert not model(x).numpy().any()
    keras_internals.restore_call(dense)
    keras_internals.restore_call(dense)
    np.testing.assert_array_equal(model(x).numpy(), before)


def test_variables_behind_weights():
    dense = keras.layers.Dense(3)
    dense.build((None, 2))
    inner = keras_internals.backend_variable(dense.kernel)
    assert isinstance(inner, tf.Variable)
    module = tf.Module()
    module.weights = [inner]
    assert module.variables == (inner,)
    dense.enable_lora(1)
    stored = keras_internals.stored_matrix(dense, "kernel")
    assert isinstance(stored, keras.Variable) and not isinstance(dense.kernel, keras.Variable)
    embedding = keras.layers.Embedding(3, 2)
    embedding.build()
    assert keras_internals.stored_matrix(embedding, "embeddings") is embedding.embeddings
    assert keras_internals.stored_matrix(keras.layers.Dropout(0.1), "kernel") is None


def test_a_kernel_is_released():
    dense = keras.layers.Dense(3)
    dense.build((None, 2))
    keras_internals.release_kernel(dense)
    assert [variable.path for variable in dense.variables] == [dense.bias.path]
    assert keras_internals.stored_matrix(dense, "kernel") is None


def test_options_of_symbolic_calls():
    inputs = keras.Input((4,), dtype="int32")
    embedding = keras.layers.ReversibleEmbedding(5, 2)
    keras.Model(inputs, embedding(embedding(inputs), reverse=True))
    reversed_calls = [options.get("reverse") for options in keras_internals.call_options(embedding)]
    assert sorted(map(bool, reversed_calls)) == [False, True]


def test_the_direction_of_a_metric_is_known_to_early_stopping():
    inputs = keras.Input((1,))
    model = keras.Model(inputs, keras.layers.Dense(1)(inputs))
    metric = keras.metrics.MeanMetricWrapper(lambda y, outputs: outputs, name="own")
    keras_internals.set_direction(metric, "up")
    model.compile("sgd", "mse", metrics=[metric])
    stopping = keras.callbacks.EarlyStopping(monitor="val_own")
    x = np.ones((2, 1), "float32")
    model.fit(x, x, validation_data=(x, x), epochs=1, verbose=0, callbacks=[stopping])
    assert stopping.monitor_op is np.greater or stopping.monitor_op is keras.ops.greater


def test_attention_is_computed_by_the_subclass():
    """With Keras' own formula in `attend`, the layer is Keras' own layer, dropout included."""

    class Same(keras_internals.MultiHeadAttentionBase):
        def attend(self, query, key, value, attention_mask, training):
            scores = keras.ops.einsum("bsnh,btnh->bnts", key, query)
            weights = self.drop_weights(keras.ops.softmax(scores), training)
            return keras.ops.einsum("bnts,bsnh->btnh", weights, value), weights

    x = keras.random.normal((2, 4, 8), seed=1)
    layers = [kind(2, 4, dropout=0.5, seed=3) for kind in (Same, keras.layers.MultiHeadAttention)]
    for layer in layers:
        layer(x, x)
    layers[1].set_weights(layers[0].get_weights())
    for training in (False, True):
        own, reference = (layer(x, x, training=training) for layer in layers)
        np.testing.assert_allclose(own, reference, atol=1e-6)


def test_moments_of_adamw():
    optimizer = keras_internals.AdamWBase(beta_1=0.9, beta_2=0.99)
    variables = [keras.Variable([1.0]), keras.Variable([2.0])]
    optimizer.build(variables)
    optimizer.gradients_reduced = True
    optimizer.apply([keras.ops.array([1.0]), keras.ops.array([10.0])], variables)
    mean, mean_square = optimizer.moments(variables[1])
    np.testing.assert_allclose([mean.numpy(), mean_square.numpy()], [[1.0], [1.0]], rtol=1e-5)


def test_fit_calls_the_hooks():
    """Keras' `fit` asks for the build and the function here, and calls the function with steps."""
    called = []

    class Model(ReplicatedModel):
        def train_step(self, data):
            return {"loss": tf.reduce_sum(data[0]), "gradient_norm": 1.0}

        def _maybe_symbolic_build(self, *arguments, **options):
            called.append("build")

        def make_train_function(self, force=False):
            called.append("function")
            super().make_train_function(force)

    inputs = keras.Input((2,))
    model = Model(inputs, keras.layers.Dense(1)(inputs))
    model.compile("adam", "mse")
    steps = iter([1, 3, 2])
    model.steps_per_call = lambda: next(steps)
    numbers = tf.data.Dataset.range(100).map(lambda n: (tf.cast(n, tf.float32), 0))
    seen = []
    watch = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: seen.append(
            (model.step_logs["loss"].numpy().tolist(), float(logs["loss"]))
        )
    )
    model.fit(numbers, steps_per_epoch=3, verbose=0, callbacks=[watch], shuffle=False)
    assert set(called) == {"build", "function"}
    assert seen == [([0.0], 0.0), ([1.0, 2.0, 3.0], 3.0), ([4.0, 5.0], 5.0)]


def test_every_dropout_of_a_model_is_found():
    from tfllm.models import bert
    from tfllm.tasks import Classification

    config = bert.Config(
        vocabulary_size=9, num_layers=2, num_heads=2, hidden_dim=8, max_sequence_length=8
    )
    model = Classification(labels=("a", "b")).model(bert.backbone(config), config)
    # Embedding and head; in both layers attention weights, attention and feed-forward.
    assert fold_replica_into_dropout(model) == 2 + 2 * 3


PACKAGE = Path(keras_internals.__file__).parent
# Public methods of Keras that stand for private parts where an instance gets another one.
PATCHED = {"call", "next"}
# What carries the same name elsewhere: named tuples, the process, codecarbon's trackers.
NOT_KERAS = {"_replace", "_asdict", "_fields", "_make", "_exit", "_hardware", "_mode"}


@functools.cache
def private_names_of_keras() -> frozenset[str]:
    """Every private method and attribute that Keras' sources define."""
    names = set()
    for path in (Path(keras.__file__).parent / "src").rglob("*.py"):
        if not path.name.endswith("_test.py"):
            names |= set(re.findall(r"(?:def |self\.)(_[a-z]\w*)", path.read_text()))
    return frozenset(names)


def foreign_touches(source: str):
    """(line, attribute) of every private part of Keras that a module reads or sets."""
    tree = ast.parse(source)
    private = private_names_of_keras() - NOT_KERAS
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    if "keras" not in source:  # then `self` is no object of Keras
        own |= {node.attr for node in ast.walk(tree) if is_own(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if is_own(node):
                own.add(node.attr)
            elif node.attr in PATCHED:
                yield node.lineno, node.attr
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            own.add(node.target.id)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr"):
            name = ast.unparse(node.args[1]).lstrip("f").strip("'")
            if name.startswith("_{") or name in private:
                yield node.lineno, name
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in private and node.attr not in own:
            yield node.lineno, node.attr


def is_own(node) -> bool:
    """Whether a node is an attribute of `self`."""
    return isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("self", "cls")


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_no_other_file_touches_a_private_part_of_keras(path):
    if path.name == "keras_internals.py":
        return
    touches = [f"{path}:{line} {name}" for line, name in foreign_touches(path.read_text())]
    assert touches == []


@pytest.mark.parametrize(
    "line",
    [
        "model._flatten_layers()",
        "weight._value",
        "layer._kernel = None",
        "layer.call = other",
        "generator.next = other",
        "getattr(layer, f'_{name}')",
        "getattr(layer, '_kernel', None)",
    ],
)
def test_a_touch_is_found(line):
    assert list(foreign_touches(line))


def overridden(cls) -> set[str]:
    """The private parts of Keras that a class defines anew."""
    bases = [base for base in cls.__mro__ if base.__module__.startswith("keras")]
    return {
        name
        for name in vars(cls)
        if re.match("_[a-z]", name) and any(name in vars(base) for base in bases)
    }


@pytest.mark.parametrize("package", ["layers", "models", "tasks", "training"])
def test_no_other_class_overrides_a_private_part_of_keras(package):
    for path in sorted((PACKAGE / package).rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        module = importlib.import_module(name.removesuffix(".__init__"))
        for cls in vars(module).values():
            if inspect.isclass(cls) and cls.__module__ == module.__name__:
                assert not overridden(cls), cls


def test_an_override_is_found():
    assert overridden(keras_internals.BuiltModel) == {"_maybe_symbolic_build"}


def test_keras_internals_imports_keras_alone():
    tree = ast.parse((PACKAGE / "keras_internals.py").read_text())
    modules = {
        node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert not {name for name in modules if name.startswith(("tensorflow", "tfllm"))}


def test_variables_without_values():
    """They take none until they are given one; others that Keras lists are left to it."""
    with keras_internals.deferred_values() as new:
        layer = keras.layers.Dense(3)
        layer.build((None, 2))
        assert not new
    assert [variable.path for variable in new] == [layer.kernel.path, layer.bias.path]
    with keras.StatelessScope():
        other = keras.Variable("ones", shape=(2,))
    np.testing.assert_array_equal(other, [1, 1])
    keras_internals.set_value(layer.kernel, np.full((2, 3), 4, np.float64))
    keras_internals.initialize(new)
    np.testing.assert_array_equal(layer.kernel, np.full((2, 3), 4))
    np.testing.assert_array_equal(layer.bias, [0, 0, 0])
    keras_internals.set_value(layer.kernel, np.full((2, 3), 5, np.float32))
    np.testing.assert_array_equal(layer(np.ones((1, 2))), [[10, 10, 10]])


def test_a_failure_leaves_no_variable_behind():
    with pytest.raises(ZeroDivisionError), keras_internals.deferred_values():
        keras.layers.Dense(3).build((None, 2))
        raise ZeroDivisionError
    with keras.StatelessScope():
        other = keras.Variable("ones", shape=(2,))
    np.testing.assert_array_equal(other, [1, 1])
