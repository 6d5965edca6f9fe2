"""The Keras callback that keeps a run: guard, log, measure, save, stop, in this order."""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfllm.data.batching import Batch, Batches
from tfllm.errors import SettingError, TrainingFailed, did_you_mean
from tfllm.tasks import metric_directions
from tfllm.training import state
from tfllm.training.background import Writer
from tfllm.training.directory import STATE
from tfllm.training.epochs import Epochs
from tfllm.training.measuring import Measured, Validation, direction, is_better
from tfllm.training.model import INPUT_WAIT
from tfllm.training.monitoring.logs import Log
from tfllm.training.monitoring.progress import Bar
from tfllm.training.monitoring.watching import Watch, write_samples
from tfllm.training.recipe import EvaluateSettings, Recipe
from tfllm.training.state import Place
from tfllm.training.stopping import Stop

SHOWN_MEASURES = 5  # in a line for people; metrics.jsonl has all


@dataclass
class Keeper(keras.callbacks.Callback):
    """Keeps place and files of a run while `model.fit` goes.

    With several workers each has a keeper at the same place; the chief's alone writes files.
    """

    recipe: Recipe
    directory: Path
    place: Place
    batches: Batches
    total_steps: int
    log: Log | None
    """None: this process writes no files."""
    bar: Bar
    stop: Stop
    save_checkpoint: Callable[[], None]
    validation: Validation | None = None
    share: Callable[[bytes], bytes] = bytes
    """The bytes that the chief gives, for all workers."""
    name_rows: Callable[[Any], str] = str
    """The examples that rows of the training data came from, for people."""
    watch: Watch | None = None
    """Counts what is told of the run beside its losses."""
    epochs: Epochs | None = None
    """The caller's callbacks."""

    def __post_init__(self) -> None:
        super().__init__()
        self._plan: list[Batch] = self.batches.epoch(self.place.epoch)
        self._since = _Since(time.monotonic())
        self._started = time.monotonic() - self.place.seconds
        self._undefined: list[str] = []
        self._asked = False  # by a callback of the caller, to stop
        self.writer = Writer(self.directory / STATE, self.recipe.train.keep)

    def steps_ahead(self) -> int:
        """How many steps may be done at once: what is due after a step finds its very weights."""
        settings, step = self.recipe.train, self.place.step
        every = (settings.checkpoint_every, self.recipe.evaluate.every)
        return min(
            settings.steps_per_execution,
            self.total_steps - step,
            len(self._plan) - self.place.epoch_step,
            *(each - step % each for each in every if each),
        )

    def on_train_begin(self, logs: Any = None) -> None:
        if self.epochs is not None:
            self.epochs.begin(self.model, self.place.epoch, len(self._plan))

    def on_train_end(self, logs: Any = None) -> None:
        if self.epochs is not None:
            self.model.settle()
            if not self.stop.signal:  # then the epoch goes on when the run is resumed
                self.epochs.end_epoch()
            self.epochs.end()

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.writer.check()
        if self.epochs is not None:
            place = self.place
            self.epochs.begin_batch(place.epoch, place.epoch_step, len(self._plan))
        flag = getattr(self.model, "stop_flag", None)
        if flag is not None and self.stop.signal:
            flag.assign(1.0)

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        assert logs is not None
        rows = self.model.step_logs or {name: [value] for name, value in logs.items()}
        steps = {name: np.asarray(value) for name, value in rows.items()}
        done = self.place.epoch_step + len(steps["loss"])  # batches of this epoch
        for number in range(len(steps["loss"])):
            epoch, epoch_ended = self._step({name: steps[name][number] for name in steps})
        if steps.get("stop", np.zeros(1)).any() and not self.stop.signal:
            self.stop.signal = signal.SIGTERM  # another worker was asked to stop
        stopping = bool(steps["stop"].any()) if "stop" in steps else bool(self.stop.signal)
        last = self.place.step == self.total_steps
        self._settle_when_read(epoch_ended, last or stopping)
        if self.epochs is not None:
            self.epochs.end_batch(done - 1, logs, steps)
        if self._due(self.recipe.evaluate.every, epoch_ended, last):
            self._measure(epoch)
        if self.epochs is not None and self._callbacks_stop(self.epochs, epoch_ended, last):
            self.place.stopped_early = stopping = True
        if self._due(self.recipe.train.checkpoint_every, epoch_ended, last) or stopping:
            self._save_state()
        if stopping or last:
            self.model.stop_training = True

    def _callbacks_stop(self, epochs: Epochs, epoch_ended: bool, last: bool) -> bool:
        """Ends an epoch for the caller's callbacks; whether they ask to stop.

        Of several workers the chief's callbacks decide, where an epoch ends: all must stop alike.
        """
        if epoch_ended or last:
            self.model.settle()
            epochs.end_epoch()
        asked = self.model.stop_training and not self.place.stopped_early
        if getattr(self.model, "stop_flag", None) is not None:
            self._asked |= asked
            if asked:
                self.model.stop_training = False
            asked = epoch_ended and self.share(b"stop" if self._asked else b"") == b"stop"
        if asked:
            self.bar.say("a callback has set stop_training: stopping early")
        return asked

    def _settle_when_read(self, epoch_ended: bool, ending: bool) -> None:
        """Brings the variables up to date where something due now reads them."""
        every = (self.recipe.train.checkpoint_every, self.recipe.evaluate.every)
        if any(self._due(each, epoch_ended, ending) for each in every):
            self.model.settle()

    def _step(self, logs: dict[str, float]) -> tuple[float, bool]:
        """Counts one step; returns the epochs done, and whether one has ended."""
        place, current = self.place, self._plan[self.place.epoch_step]
        place.step += 1
        self._guard(logs, current)
        place.epoch_step += 1
        place.tokens += current.tokens
        place.slots += current.slots
        place.examples += current.examples
        place.seconds = time.monotonic() - self._started
        self._since.add(logs, current)
        if self.watch is not None:
            self.watch.add(current, logs.get(INPUT_WAIT, 0.0))
        self.bar.advance()
        epoch_ended = place.epoch_step == len(self._plan)
        epoch = place.epoch + place.epoch_step / len(self._plan)
        if epoch_ended:
            place.epoch, place.epoch_step = place.epoch + 1, 0
            self._plan = self.batches.epoch(place.epoch)
        last = place.step == self.total_steps
        if last or place.step % self.recipe.train.log_every == 0:
            self._write_line(epoch)
        return epoch, epoch_ended

    def _due(self, every: int | None, epoch_ended: bool, last: bool) -> bool:
        return last or (epoch_ended if every is None else self.place.step % every == 0)

    def _save_state(self) -> None:
        if self.log is not None:
            self.writer.save(self.model, self.place)

    def _guard(self, logs: dict[str, float], batch: Batch) -> None:
        """Ends the run before anything of a broken step is written."""
        checked = {"loss": logs["loss"]}
        if self.recipe.train.precision != "float16":  # there loss scaling skips such steps
            checked["gradient norm"] = logs["gradient_norm"]
        for name, value in checked.items():
            if not math.isfinite(value):
                self.writer.settle()
                newest = state.newest(self.directory / STATE)
                good = self.directory / "checkpoint"
                raise TrainingFailed(
                    f"The {name} is {value} at step {self.place.step}. "
                    f"Its batch: {self.name_rows(batch.rows)}. "
                    + (f"The last good state is '{newest}'" if newest else "No state was saved yet")
                    + (f", the last good checkpoint '{good}'. " if good.exists() else ". ")
                    + "Lower train.learning_rate or set train.precision: float32, and start again."
                )

    def _write_line(self, epoch: float) -> None:
        now = time.monotonic()
        values = self._since.values(now)
        if self.watch is not None:
            values |= self.watch.values(now - self._since.started)
        self.model.settle()
        schedule = self.model.optimizer
        values["learning_rate"] = float(schedule.learning_rate)
        self._write(values, epoch)
        self.bar.describe(values)
        self._since = _Since(time.monotonic())

    def _write(self, values: Mapping[str, float | None], epoch: float) -> None:
        if self.log is not None:
            self.log.write(self.place.step, epoch, values)

    def _measure(self, epoch: float) -> None:
        if self.validation is None:
            return
        started = time.monotonic()
        place, best = self.place, self.recipe.evaluate.best
        place.measured = self._measured(self.validation)
        self._write({f"validation_{name}": value for name, value in place.measured.items()}, epoch)
        self.bar.say(f"step {place.step}  validation  {shown(place.measured, best)}")
        self._say_undefined(place.measured)
        if self.epochs is not None:
            self.epochs.validated(place.measured)
        if best is not None:
            self._compare(best, place.measured.get(best))
        self._since.leave_out(time.monotonic() - started)

    def _say_undefined(self, measured: Measured) -> None:
        """Names the undefined measures once."""
        new = [name for name, value in measured.items() if value is None]
        new = [name for name in new if name not in self._undefined]
        self._undefined += new
        if new:
            self.bar.say(
                f"undefined on the validation data, null in metrics.jsonl: {', '.join(new)}"
            )

    def _compare(self, best: str, value: float | None) -> None:
        """Keeps the checkpoint of a better value; stops when there was none for long."""
        place, patience = self.place, self.recipe.evaluate.patience
        if is_better(direction(self.recipe.evaluate), value, place.best):
            place.best, place.best_step, place.since_best = value, place.step, 0
            if self.log is not None:
                with self.model.averaged():
                    self.save_checkpoint()
        elif value is not None:
            place.since_best += 1
            if patience and place.since_best >= patience:
                place.stopped_early = True
                self.bar.say(f"{best} has not improved {patience} times: stopping early")
                self.model.stop_training = True

    def _measured(self, validation: Validation) -> Measured:
        """The chief measures; the others wait for its numbers, so that all decide alike."""
        text = b""
        if self.log is not None:
            with self.model.averaged():
                text = json.dumps(validation(self.model)).encode()
                count = self.recipe.train.samples
                write_samples(self.log, self.place.step, validation, self.model, count)
        return json.loads(self.share(text))


def shown(measured: Measured, best: str | None = None) -> str:
    """The first few measures, and the one that counts, as a text."""
    names = list(measured)[:SHOWN_MEASURES]
    if best is not None and best not in names:
        names.append(best)
    return "  ".join(f"{name} {value_text(measured.get(name))}" for name in names)


def value_text(value: float | None) -> str:
    """A measurement with four digits."""
    return "undefined" if value is None else f"{value:.4f}"


def check_best(settings: EvaluateSettings, validation: Validation | None, model: Any) -> None:
    """Raises SettingError when `evaluate.best` names no measure of the task, or one without a
    direction: before training."""
    best = settings.best
    if best is None:
        return
    if validation is None:
        raise SettingError(
            "evaluate.best needs validation data. Set data.validation or data.validation_share."
        )
    known = validation.names(model)
    if best not in known and metric_directions.direction(best) and validation.measure is not None:
        known = list(validation(model))  # some depend on examples beyond the first few
    direction(settings, known)
    if best not in known:
        raise SettingError(f"evaluate.best: no measure '{best}'. {did_you_mean(best, known)}")


class _Since:
    """Sums since the last log line."""

    def __init__(self, now: float):
        self.started = now
        self.steps = self.tokens = self.slots = self.examples = 0
        self.loss = self.norm = 0.0

    def add(self, logs: dict[str, float], batch: Batch) -> None:
        self.steps += 1
        self.tokens += batch.tokens
        self.slots += batch.slots
        self.examples += batch.examples
        self.loss += float(logs["loss"])
        self.norm += float(logs["gradient_norm"])

    def leave_out(self, seconds: float) -> None:
        """Takes the time of measuring out of the training speed."""
        self.started += seconds

    def values(self, now: float) -> dict[str, float]:
        """Means over the steps: loss, gradient norm, speed, padding share."""
        seconds = max(now - self.started, 1e-9)
        return {
            "loss": self.loss / self.steps,
            "gradient_norm": self.norm / self.steps,
            "tokens_per_second": self.tokens / seconds,
            "examples_per_second": self.examples / seconds,
            "padding": 1 - self.tokens / self.slots,
        }
