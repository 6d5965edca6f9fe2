"""The private parts of Keras that training builds on are as they were when it was written.

A failure here names a part that the installed Keras has changed: look at `tfllm/keras_internals.py`
and `adamw.py`, run the slow tests of test_strategies.py, and only then widen `KERAS`.
"""

import configparser
import inspect
from pathlib import Path

import keras
import pytest
import tensorflow as tf
from packaging.version import Version

from tests.training.strategy_runs import ROOT
from tfllm import keras_internals

# Part -> the names of its arguments.
SIGNATURES = {
    "keras.Model._maybe_symbolic_build": ["self", "iterator", "data_batch"],
    "keras.Model.make_train_function": ["self", "force"],
    "keras.Model._flatten_layers": ["self", "include_self", "recursive"],
    "keras.random.SeedGenerator.next": ["self", "ordered"],
    "keras.optimizers.Optimizer._all_reduce_sum_gradients": ["self", "grads_and_vars"],
    "keras.optimizers.Optimizer._get_variable_index": ["self", "variable"],
    "keras.optimizers.AdamW.update_step": ["self", "gradient", "variable", "learning_rate"],
}


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


def test_fit_calls_the_hooks(monkeypatch):
    """Keras' `fit` asks for the build and the function here, and calls the function with steps."""
    called = []

    class Model(keras_internals.ReplicatedModel):
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
    assert keras_internals.fold_replica_into_dropout(model) == 2 + 2 * 3
