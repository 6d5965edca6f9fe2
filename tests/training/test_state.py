"""A state is written whole or not at all, and brings back every variable."""

import json
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.training.test_model import compiled, trained
from tfllm.errors import CheckpointError, StorageError
from tfllm.training import state
from tfllm.training.recipe import TrainSettings
from tfllm.training.state import StateWriter, TrainingProgress

SETTINGS = TrainSettings(learning_rate=0.01, warmup=0)


def test_a_restored_model_goes_on_bit_by_bit(tmp_path):
    """Dropout's seeds and the optimizer's moments are part of the state."""
    straight = compiled(SETTINGS, dropout=0.3)
    trained(straight, steps=4)
    expected, history = trained(straight, steps=3)

    stopped = compiled(SETTINGS, dropout=0.3)
    trained(stopped, steps=4)
    state.save(tmp_path, stopped, TrainingProgress(step=4))
    keras.utils.set_random_seed(99)
    resumed = compiled(SETTINGS, dropout=0.3)
    state.restore(state.newest_state(tmp_path), resumed)
    got, again = trained(resumed, steps=3)
    assert all(np.array_equal(a, b) for a, b in zip(expected, got, strict=True))
    assert history == again


@pytest.mark.parametrize("keep", [1, 2])
def test_only_the_newest_states_are_kept(tmp_path, keep):
    model = compiled(SETTINGS)
    for step in (3, 5, 10):
        state.save(tmp_path, model, TrainingProgress(step=step, epoch_step=step), keep)
    names = ["step-00000010", "step-00000005"][:keep]
    assert sorted((path.name for path in tmp_path.iterdir()), reverse=True) == names
    assert [path.name for path in state.complete_states(tmp_path)] == names
    assert state.read_progress(state.newest_state(tmp_path)).epoch_step == 10


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), "safetensors"])
def test_a_full_disk_leaves_the_state_before(tmp_path, monkeypatch, error):
    from safetensors import SafetensorError

    model = compiled(SETTINGS)
    state.save(tmp_path, model, TrainingProgress(step=5))
    if error == "safetensors":
        error = SafetensorError("I/O error: No space left on device (os error 28)")

    def full(arrays, path):
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr("safetensors.numpy.save_file", full)
    with pytest.raises(StorageError, match="step-00000005 is intact.*resume=True"):
        state.save(tmp_path, model, TrainingProgress(step=10))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000005"]
    state.restore(state.newest_state(tmp_path), model)


def test_a_half_written_state_is_not_taken(tmp_path):
    (tmp_path / "step-00000007").mkdir()
    (tmp_path / ".step-00000009.tmp").mkdir()
    assert state.newest_state(tmp_path) is None


@pytest.mark.parametrize("name", [state.VARIABLES, state.PROGRESS, state.CHECKSUMS])
def test_a_damaged_state_falls_back_to_the_one_before(tmp_path, caplog, name):
    model = compiled(SETTINGS)
    before = state.save(tmp_path, model, TrainingProgress(step=5))
    path = state.save(tmp_path, model, TrainingProgress(step=10)) / name
    data = bytearray(path.read_bytes())
    data[-10] ^= 1  # one bit
    path.write_bytes(data)
    assert state.newest_undamaged(tmp_path) == before
    assert "step-00000010" in caplog.text and "resuming from step-00000005" in caplog.text
    assert (tmp_path / "damaged-step-00000010").is_dir()
    (before / state.VARIABLES).unlink()
    with pytest.raises(CheckpointError, match="No state .* is undamaged"):
        state.newest_undamaged(tmp_path)


def test_a_killed_write_is_cleared_away(tmp_path):
    (tmp_path / ".step-00000009.tmp").mkdir()
    (tmp_path / ".step-00000009.tmp" / state.VARIABLES).write_bytes(b"half")
    state.save(tmp_path, compiled(SETTINGS), TrainingProgress(step=5))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000005"]


def test_a_state_is_written_in_the_background_from_copies(tmp_path, monkeypatch):
    """The step after it may change the variables; one state is written after the other."""
    go, real = threading.Event(), state.write

    def slow(*arguments):
        assert go.wait(60)
        return real(*arguments)

    monkeypatch.setattr(state, "write", slow)
    model, progress = compiled(SETTINGS), TrainingProgress(step=5)
    kept = state.snapshot(model)
    writer = StateWriter(tmp_path)
    writer.save(model, progress)
    trained(model, steps=1)
    progress.step = 6
    assert state.newest_state(tmp_path) is None
    go.set()
    writer.save(model, progress)
    writer.wait()
    five = state.complete_states(tmp_path)[1]
    assert state.read_progress(five).step == 5
    state.restore(five, model)
    assert all(np.array_equal(kept[name], value) for name, value in state.snapshot(model).items())


def test_an_error_in_the_background_is_raised_once_by_the_next_step(tmp_path):
    (tmp_path / "file").write_text("no directory")
    writer = StateWriter(tmp_path / "file")
    writer.save(compiled(SETTINGS), TrainingProgress(step=5))
    writer.join()
    with pytest.raises(StorageError, match="Cannot write the state of step 5"):
        writer.check()
    writer.check()
    writer.wait()


def test_faults_of_a_state(tmp_path):
    model = compiled(SETTINGS)
    path = state.save(tmp_path, model, TrainingProgress(step=5))
    inputs = keras.Input((3,))
    other = keras.Model(inputs, keras.layers.Dense(2, name="other")(inputs))
    other.compile("adam", "mse")
    with pytest.raises(CheckpointError, match="another model"):
        state.restore(path, other)
    (path / state.VARIABLES).write_bytes(b"junk")
    with pytest.raises(CheckpointError, match="cannot be read"):
        state.restore(path, model)
    (path / state.PROGRESS).write_text(json.dumps({"what": 1}))
    with pytest.raises(CheckpointError, match="not readable"):
        state.read_progress(path)


def test_seeds_are_among_the_variables():
    names = list(state.variables(compiled(SETTINGS, dropout=0.1)))
    assert any("seed" in name for name in names)
    assert tf.executing_eagerly()
