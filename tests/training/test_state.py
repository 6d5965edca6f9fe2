"""A state is written whole or not at all, and brings back every variable."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.training.test_model import compiled, trained
from tfllm.errors import CheckpointError, StorageError
from tfllm.training import state
from tfllm.training.recipe import TrainSettings
from tfllm.training.state import Place

SETTINGS = TrainSettings(learning_rate=0.01, warmup=0)


def test_a_restored_model_goes_on_bit_by_bit(tmp_path):
    """Dropout's seeds and the optimizer's moments are part of the state."""
    straight = compiled(SETTINGS, dropout=0.3)
    trained(straight, steps=4)
    expected, history = trained(straight, steps=3)

    stopped = compiled(SETTINGS, dropout=0.3)
    trained(stopped, steps=4)
    state.save(tmp_path, stopped, Place(step=4))
    keras.utils.set_random_seed(99)
    resumed = compiled(SETTINGS, dropout=0.3)
    state.restore(state.newest(tmp_path), resumed)
    got, again = trained(resumed, steps=3)
    assert all(np.array_equal(a, b) for a, b in zip(expected, got, strict=True))
    assert history == again


def test_only_the_newest_state_is_kept(tmp_path):
    model = compiled(SETTINGS)
    for step in (5, 10):
        state.save(tmp_path, model, Place(step=step, epoch_step=step))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000010"]
    assert state.read_place(state.newest(tmp_path)).epoch_step == 10


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), "safetensors"])
def test_a_full_disk_leaves_the_state_before(tmp_path, monkeypatch, error):
    from safetensors import SafetensorError

    model = compiled(SETTINGS)
    state.save(tmp_path, model, Place(step=5))
    if error == "safetensors":
        error = SafetensorError("I/O error: No space left on device (os error 28)")

    def full(arrays, path):
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr("safetensors.numpy.save_file", full)
    with pytest.raises(StorageError, match="step-00000005 is whole.*--resume"):
        state.save(tmp_path, model, Place(step=10))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000005"]
    state.restore(state.newest(tmp_path), model)


def test_a_half_written_state_is_not_taken(tmp_path):
    (tmp_path / "step-00000007").mkdir()
    (tmp_path / ".step-00000009.tmp").mkdir()
    assert state.newest(tmp_path) is None


def test_faults_of_a_state(tmp_path):
    model = compiled(SETTINGS)
    path = state.save(tmp_path, model, Place(step=5))
    inputs = keras.Input((3,))
    other = keras.Model(inputs, keras.layers.Dense(2, name="other")(inputs))
    other.compile("adam", "mse")
    with pytest.raises(CheckpointError, match="another model"):
        state.restore(path, other)
    (path / state.VARIABLES).write_bytes(b"junk")
    with pytest.raises(CheckpointError, match="cannot be read"):
        state.restore(path, model)
    (path / state.PLACE).write_text(json.dumps({"what": 1}))
    with pytest.raises(CheckpointError, match="not readable"):
        state.read_place(path)


def test_seeds_are_among_the_variables():
    names = list(state.variables(compiled(SETTINGS, dropout=0.1)))
    assert any("seed" in name for name in names)
    assert tf.executing_eagerly()
