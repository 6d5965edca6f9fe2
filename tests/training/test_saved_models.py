"""`.keras` files of compiled models: loaded in a fresh process, they are what was saved."""

import copy
import importlib
import inspect
import os
import pickle
import pkgutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import tfllm
from tests.training import saved_runs
from tfllm import saving

ROOT = Path(__file__).parents[2]
# float32 sums in another order, over two steps of Adam at a rate of 0.01
CLOSE = 1e-5
QUICK = ("classification", "pretraining", "pairs mean", "llama qwen3", "t5")
# Keras writes the sum of a kernel and its adapter, so that a file has no adapters to go on with.
MERGED = tuple(name for name in saved_runs.cases() if "lora" in name)
OTHERS = tuple(name for name in saved_runs.cases() if name not in QUICK)


def load_in_a_fresh_process(folder):
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.saved_runs", str(folder)],
        capture_output=True, text=True, cwd=ROOT, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def assert_equal(folder, name, what):
    one = saved_runs.kept(folder / f"{name}.{what}.npz")
    two = saved_runs.kept(folder / f"{name}.loaded.{what}.npz")
    assert len(one) == len(two), (name, what)
    for before, after in zip(one, two, strict=True):
        np.testing.assert_allclose(after, before, atol=CLOSE, err_msg=f"{name} {what}")


def assert_kept(names, folder):
    for name in names:
        saved_runs.write(name, folder)
    load_in_a_fresh_process(folder)
    for name in names:
        assert_equal(folder, name, "outputs")
        if name not in MERGED:
            assert_equal(folder, name, "steps")  # the optimizer's state, schedule, loss and all


def test_a_fresh_process_goes_on_with_a_saved_model(tmp_path):
    assert_kept(QUICK, tmp_path)


@pytest.mark.slow
def test_a_fresh_process_goes_on_with_a_saved_model_of_every_family_and_task(tmp_path):
    assert_kept(OTHERS, tmp_path)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "clone_model": keras.models.clone_model,
    "json": lambda model: keras.models.model_from_json(model.to_json()),
}


@pytest.mark.parametrize("name", ["masked lm", "llama qwen3"])
def test_copies_of_a_compiled_model(name):
    """Of models with tied embeddings, which stay one variable."""
    model = saved_runs.built(name)
    x, y = saved_runs.batch(model, name)
    wanted = saved_runs.outputs_of(model, x)
    for way, made in COPIES.items():
        other = made(model)
        if way in ("clone_model", "json"):
            other.set_weights(model.get_weights())
        assert [w.path for w in other.weights] == [w.path for w in model.weights], way
        for before, after in zip(wanted, saved_runs.outputs_of(other, x), strict=True):
            np.testing.assert_array_equal(after, before)
        if way in ("deepcopy", "pickle"):
            assert other.loss.get_config() == model.loss.get_config()
            assert other.optimizer.get_config() == model.optimizer.get_config()
            assert np.isfinite(other.evaluate(x, y, verbose=0)).all()


def keras_objects():
    """Every class of the package that Keras would have to know again."""
    kinds = (
        keras.layers.Layer, keras.losses.Loss, keras.metrics.Metric, keras.optimizers.Optimizer,
        keras.optimizers.schedules.LearningRateSchedule,
    )  # fmt: skip
    for found in pkgutil.walk_packages(tfllm.__path__, "tfllm."):
        if found.name.split(".")[1] in ("layers", "models", "tasks", "training"):
            try:
                module = importlib.import_module(found.name)
            except ImportError:  # an extra that is not installed
                continue
            for _, each in inspect.getmembers(module, inspect.isclass):
                if each.__module__ == found.name and issubclass(each, kinds):
                    yield each


# What others derive from: no model holds one.
ABSTRACT = ("TaskLoss", "TokenMean", "ReplicatedModel")


def test_all_objects_of_keras_are_registered_and_imported():
    known = {module.__name__ for module in saving.MODULES}
    classes = [each for each in keras_objects() if each.__name__ not in ABSTRACT]
    assert len(classes) > 25
    for each in classes:
        assert keras.saving.get_registered_name(each) == f"tfllm>{each.__name__}"
        assert each.__module__ in known
