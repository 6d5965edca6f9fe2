"""The callbacks of a caller of `train` hear of the run's epochs, as those of Keras' `fit`."""

import csv
import os
import signal

import keras
import numpy as np
import pytest

from tests.helpers import recipes
from tfllm.training.run import train


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return recipes.write_data(tmp_path_factory.mktemp("data"))


class Recorder(keras.callbacks.Callback):
    """Keeps what it is told; `act` at batch `at` of an epoch."""

    def __init__(self, at=None, act=None):
        super().__init__()
        self.events, self.at, self.act = [], at, act

    def on_train_begin(self, logs=None):
        self.events.append(("train begin", dict(self.params), self.model.count_params() > 0))

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch
        self.events.append(("begin", epoch, self.params["steps"]))

    def on_train_batch_end(self, batch, logs=None):
        self.events.append(("batch", batch, float(logs["loss"])))
        if (self.epoch, batch) == self.at:
            self.act(self)

    def on_test_end(self, logs=None):
        self.events.append(("test", None, logs))

    def on_epoch_end(self, epoch, logs=None):
        self.events.append(("end", epoch, logs))

    def on_train_end(self, logs=None):
        self.events.append(("train end", None, None))

    def of(self, *kinds):
        return [event[:2] for event in self.events if event[0] in kinds]


def interrupt(_):
    os.kill(os.getpid(), signal.SIGINT)


def stop_training(callback):
    callback.model.stop_training = True


def test_epochs_and_logs_are_those_of_the_run_also_when_it_is_resumed(folder, tmp_path):
    recorder = Recorder((1, 1), interrupt)
    best = str(tmp_path / "best.keras")
    keeping = keras.callbacks.ModelCheckpoint(best, monitor="val_loss", save_best_only=True)
    written = keras.callbacks.CSVLogger(str(tmp_path / "log.csv"))
    callbacks = [recorder, keeping, written]
    recipe = recipes.recipe(folder)  # two epochs of seven steps
    stopped = train(recipe, tmp_path / "run", progress=False, callbacks=callbacks)
    assert stopped.signal == signal.SIGINT
    assert recorder.events[0] == ("train begin", {"epochs": 2, "steps": 7, "verbose": 0}, True)
    first = [("begin", 0), *(("batch", number) for number in range(7)), ("end", 0)]
    told = recorder.of("begin", "batch", "end")
    assert told[:10] == [*first, ("begin", 1)]
    assert told[10:] in ([("batch", 0), ("batch", 1)], [("batch", n) for n in range(3)])
    assert recorder.events[-1][0] == "train end"  # and no end of the epoch, which is not done
    losses = [value for kind, _, value in recorder.events if kind == "batch"]
    ended = next(logs for kind, _, logs in recorder.events if kind == "end")
    assert ended["loss"] == pytest.approx(np.mean(losses[:7]), rel=1e-6)
    tested = next(logs for kind, _, logs in recorder.events if kind == "test")
    assert {f"val_{name}": value for name, value in tested.items()}.items() <= ended.items()
    with open(tmp_path / "log.csv") as lines:
        assert [line["epoch"] for line in csv.DictReader(lines)] == ["0"]

    loaded = keras.models.load_model(best)
    again = Recorder()
    done = train(recipe, tmp_path / "run", resume=True, progress=False, callbacks=[again])
    batches = 7 - (len(told) - 10)
    rest = [("batch", number) for number in range(7 - batches, 7)]
    assert again.of("begin", "batch", "end") == [("begin", 1), *rest, ("end", 1)]
    assert done.summary["steps"] == 14
    inputs = {name: np.ones((1, 4), "int32") for name in loaded.input}
    assert np.isfinite(loaded.predict(inputs, verbose=0)).all()


@pytest.mark.parametrize("at, steps", [((0, 2), 3), (None, 14)])
def test_a_callback_stops_the_run(folder, tmp_path, at, steps):
    recorder = Recorder(at, stop_training)
    callbacks = [recorder]
    if at is None:  # no later epoch is that much better than the first
        early = keras.callbacks.EarlyStopping(monitor="val_loss", min_delta=1e3, patience=1)
        callbacks.append(early)
    recipe = recipes.recipe(folder, train={"epochs": 4})
    run = train(recipe, tmp_path / "run", progress=False, callbacks=callbacks)
    assert run.signal is None and run.summary["steps"] == steps
    epochs = range(-(-steps // 7))
    assert recorder.of("begin", "end") == [(k, n) for n in epochs for k in ("begin", "end")]
    assert (tmp_path / "run" / "checkpoint").is_dir()
    again = train(recipe, tmp_path / "run", resume=True, progress=False)
    assert again.summary["steps"] == steps
