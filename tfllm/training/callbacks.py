"""The Keras callback of a run: checks, logs, measures, saves and stops, in this order.

Also the callbacks of a caller of `train`. A run is one epoch of `model.fit`, because its own epochs
have different numbers of batches and may be resumed in the middle; `CallerCallbacks` calls the
caller's callbacks by the run's epochs.
"""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfllm.data.batching import Batch, Batches
from tfllm.errors import SettingError, TrainingFailed, did_you_mean
from tfllm.tasks import metric_directions
from tfllm.training import state
from tfllm.training.directory import CHECKPOINT, STATE
from tfllm.training.model import INPUT_WAIT
from tfllm.training.monitoring.logs import RunLog
from tfllm.training.monitoring.progress import ProgressBar
from tfllm.training.monitoring.resources import ResourceMonitor
from tfllm.training.monitoring.samples import write_samples
from tfllm.training.recipe import EvaluateSettings, Recipe
from tfllm.training.state import StateWriter, TrainingProgress
from tfllm.training.stopping import StopRequest
from tfllm.training.validation import Metrics, Validation, direction, is_better

SHOWN_METRICS = 5  # in a line for people; metrics.jsonl has all


class CallerCallbacks:
    """Keras callbacks given to `train`, and the logs of the run's current epoch.

    They get `on_epoch_begin` and `on_epoch_end` of each epoch of the run, with its number, and with
    `val_` logs where the validation data was measured in it; batches are numbered within the epoch,
    and `stop_training` ends the run. After `--resume` the numbers continue.
    """

    def __init__(self, callbacks: Sequence[keras.callbacks.Callback], epochs: int | None):
        """`epochs`: how many there will be, for the callbacks' `params`; None: not known."""
        self.callbacks, self.epochs = list(callbacks), epochs
        self._list: Any = None
        self._open: int | None = None  # the epoch that has begun and not ended
        self._values: dict[str, list[float]] = {}
        self._validation_logs: dict[str, float] = {}

    def begin(self, model: keras.Model, epoch: int, steps: int) -> None:
        """Begin before the first step.

        Args:
            model: The trained model.
            epoch: The epoch, from 0, that training begins or resumes in.
            steps: Batches of an epoch.
        """
        self._list = keras.callbacks.CallbackList(
            self.callbacks, model=model, epochs=self.epochs, steps=steps, verbose=0
        )
        self._list.on_train_begin()
        self._begin_epoch(epoch, steps)

    def begin_batch(self, epoch: int, batch: int, steps: int) -> None:
        """Begin a batch, and its epoch if it is the first.

        Args:
            epoch: The epoch, from 0.
            batch: The batch of the epoch, from 0.
            steps: Batches of an epoch.
        """
        if self._open is None:
            self._begin_epoch(epoch, steps)
        self._list.on_train_batch_begin(batch)

    def end_batch(self, batch: int, logs: Mapping[str, Any], all_steps: Mapping[str, Any]) -> None:
        """End a batch, or several that one call computed.

        Args:
            batch: The last batch of the epoch, from 0.
            logs: Its logs.
            all_steps: The logs of each batch: [steps] by name.
        """
        for name in logs:
            self._values.setdefault(name, []).extend(np.ravel(all_steps[name]).tolist())
        self._list.on_train_batch_end(batch, dict(logs))

    def end_validation(self, metrics: Metrics) -> None:
        """Pass on the metrics of the validation data; undefined ones are NaN."""
        logs = {name: math.nan if value is None else value for name, value in metrics.items()}
        self._validation_logs = {f"val_{name}": value for name, value in logs.items()}
        self._list.on_test_begin()
        self._list.on_test_end(logs)

    def end_epoch(self) -> None:
        """End an epoch after its last step, or where a run ends in its midst."""
        if self._open is None:
            return
        epoch, self._open = self._open, None
        means = {name: float(np.mean(values)) for name, values in self._values.items()}
        self._list.on_epoch_end(epoch, {**means, **self._validation_logs})

    def end(self) -> None:
        """End after the last step of the run."""
        self._list.on_train_end()

    def _begin_epoch(self, epoch: int, steps: int) -> None:
        self._open, self._values, self._validation_logs = epoch, {}, {}
        for callback in self.callbacks:
            callback.params["steps"] = steps
        self._list.on_epoch_begin(epoch)


@dataclass(frozen=True)
class RunContext:
    """What the callback of a run works with. `progress` and the parts of it change, this does not.

    With several workers each has a context with the same progress; the chief alone has a log.
    """

    recipe: Recipe
    directory: Path
    progress: TrainingProgress
    batches: Batches
    total_steps: int
    log: RunLog | None
    """None: this process writes no files."""
    bar: ProgressBar
    stop: StopRequest
    monitor: ResourceMonitor
    save_checkpoint: Callable[[], None]
    broadcast: Callable[[bytes], bytes]
    """Returns the chief's bytes on every worker."""
    describe_rows: Callable[[np.ndarray], str]
    """Names the examples that rows of the training data came from, for people."""
    validation: Validation | None = None
    caller: CallerCallbacks | None = None


class RunCallback(keras.callbacks.Callback):
    """Keeps the progress and the files of a run up to date while `model.fit` runs."""

    def __init__(self, run: RunContext):
        super().__init__()
        self.run, self.progress = run, run.progress
        self.writer = StateWriter(run.directory / STATE, run.recipe.train.keep)
        self._epoch_batches: list[Batch] = run.batches.epoch(self.progress.epoch)
        self._window = LogWindow(time.monotonic())
        self._started = time.monotonic() - self.progress.seconds
        self._reported_undefined: list[str] = []
        self._caller_asks_to_stop = False

    def steps_ahead(self) -> int:
        """Count the steps that may run at once: what is due after a step finds its very weights."""
        recipe, step = self.run.recipe, self.progress.step
        intervals = (recipe.train.checkpoint_every, recipe.evaluate.every)
        return min(
            recipe.train.steps_per_execution,
            self.run.total_steps - step,
            len(self._epoch_batches) - self.progress.epoch_step,
            *(interval - step % interval for interval in intervals if interval),
        )

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Begin the caller's callbacks."""
        if self.run.caller is not None:
            self.run.caller.begin(self.model, self.progress.epoch, len(self._epoch_batches))

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """End the caller's callbacks."""
        if self.run.caller is not None:
            self.model.settle()
            if not self.run.stop.signal:  # then the epoch continues when the run is resumed
                self.run.caller.end_epoch()
            self.run.caller.end()

    def on_train_batch_begin(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Prepare the next step."""
        self.writer.check()
        progress = self.progress
        if self.run.caller is not None:
            steps = len(self._epoch_batches)
            self.run.caller.begin_batch(progress.epoch, progress.epoch_step, steps)
        flag = getattr(self.model, "stop_flag", None)
        if flag is not None and self.run.stop.signal:
            flag.assign(1.0)

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Log the steps, validate and save state where they are due, and stop where asked."""
        assert logs is not None
        run, progress, recipe = self.run, self.progress, self.run.recipe
        step_logs = self.model.step_logs or {name: [value] for name, value in logs.items()}
        steps = {name: np.asarray(values) for name, values in step_logs.items()}
        last_batch = progress.epoch_step + len(steps["loss"]) - 1  # of this epoch
        for index in range(len(steps["loss"])):
            epoch, epoch_ended = self._count_step({name: steps[name][index] for name in steps})
        if steps.get("stop", np.zeros(1)).any() and not run.stop.signal:
            run.stop.signal = signal.SIGTERM  # another worker was asked to stop
        stopping = bool(steps["stop"].any()) if "stop" in steps else bool(run.stop.signal)
        last = progress.step == run.total_steps
        self._settle_if_due(epoch_ended, last or stopping)
        if run.caller is not None:
            run.caller.end_batch(last_batch, logs, steps)
        if self._is_due(recipe.evaluate.every, epoch_ended, last):
            self._validate(epoch)
        if run.caller is not None and self._ask_caller(run.caller, epoch_ended, last):
            progress.stopped_early = stopping = True
        if self._is_due(recipe.train.checkpoint_every, epoch_ended, last) or stopping:
            self._save_state()
        if stopping or last:
            self.model.stop_training = True

    def _ask_caller(self, caller: CallerCallbacks, epoch_ended: bool, last: bool) -> bool:
        """End an epoch for the caller's callbacks; return whether they ask to stop.

        Of several workers the chief's callbacks decide, where an epoch ends: all must stop alike.
        """
        if epoch_ended or last:
            self.model.settle()
            caller.end_epoch()
        asks = self.model.stop_training and not self.progress.stopped_early
        if getattr(self.model, "stop_flag", None) is not None:
            self._caller_asks_to_stop |= asks
            if asks:
                self.model.stop_training = False
            message = b"stop" if self._caller_asks_to_stop else b""
            asks = epoch_ended and self.run.broadcast(message) == b"stop"
        if asks:
            self.run.bar.print("a callback has set stop_training: stopping early")
        return asks

    def _settle_if_due(self, epoch_ended: bool, ending: bool) -> None:
        """Bring the variables up to date where something due now reads them."""
        intervals = (self.run.recipe.train.checkpoint_every, self.run.recipe.evaluate.every)
        if any(self._is_due(interval, epoch_ended, ending) for interval in intervals):
            self.model.settle()

    def _count_step(self, logs: dict[str, float]) -> tuple[float, bool]:
        """Count one step; return the epochs done, and whether one has ended."""
        progress = self.progress
        batch = self._epoch_batches[progress.epoch_step]
        progress.step += 1
        self._check_finite(logs, batch)
        progress.epoch_step += 1
        progress.tokens += batch.tokens
        progress.slots += batch.slots
        progress.examples += batch.examples
        progress.seconds = time.monotonic() - self._started
        self._window.add(logs, batch)
        self.run.monitor.add(batch, logs.get(INPUT_WAIT, 0.0))
        self.run.bar.advance()
        epoch_ended = progress.epoch_step == len(self._epoch_batches)
        epoch = progress.epoch + progress.epoch_step / len(self._epoch_batches)
        if epoch_ended:
            progress.epoch, progress.epoch_step = progress.epoch + 1, 0
            self._epoch_batches = self.run.batches.epoch(progress.epoch)
        last = progress.step == self.run.total_steps
        if last or progress.step % self.run.recipe.train.log_every == 0:
            self._write_log_line(epoch)
        return epoch, epoch_ended

    def _is_due(self, interval: int | None, epoch_ended: bool, last: bool) -> bool:
        return last or (epoch_ended if interval is None else self.progress.step % interval == 0)

    def _save_state(self) -> None:
        if self.run.log is not None:
            self.writer.save(self.model, self.progress)

    def _check_finite(self, logs: dict[str, float], batch: Batch) -> None:
        """End the run before anything of a broken step is written. Raises TrainingFailed."""
        values = {"loss": logs["loss"]}
        if self.run.recipe.train.precision != "float16":  # there loss scaling skips such steps
            values["gradient norm"] = logs["gradient_norm"]
        for name, value in values.items():
            if not math.isfinite(value):
                self.writer.join()
                newest = state.newest_state(self.run.directory / STATE)
                checkpoint = self.run.directory / CHECKPOINT
                raise TrainingFailed(
                    f"The {name} is {value} at step {self.progress.step}. "
                    f"Its batch: {self.run.describe_rows(batch.rows)}. "
                    + (f"The last good state is '{newest}'" if newest else "No state was saved yet")
                    + (
                        f", the last good checkpoint '{checkpoint}'. "
                        if checkpoint.exists()
                        else ". "
                    )
                    + "Lower train.learning_rate or set train.precision: float32, and start again."
                )

    def _write_log_line(self, epoch: float) -> None:
        now = time.monotonic()
        values = self._window.values(now) | self.run.monitor.values(now - self._window.started)
        self.model.settle()
        values["learning_rate"] = float(self.model.optimizer.learning_rate)
        self._log(values, epoch)
        self.run.bar.describe(values)
        self._window = LogWindow(time.monotonic())

    def _log(self, values: Mapping[str, float | None], epoch: float) -> None:
        if self.run.log is not None:
            self.run.log.write(self.progress.step, epoch, values)

    def _validate(self, epoch: float) -> None:
        """Measure the validation data, log the metrics and compare `evaluate.best`."""
        validation, progress = self.run.validation, self.progress
        if validation is None:
            return
        started = time.monotonic()
        best = self.run.recipe.evaluate.best
        metrics = progress.metrics = self._measure(validation)
        self._log({f"validation_{name}": value for name, value in metrics.items()}, epoch)
        self.run.bar.print(f"step {progress.step}  validation  {format_metrics(metrics, best)}")
        self._report_undefined(metrics)
        if self.run.caller is not None:
            self.run.caller.end_validation(metrics)
        if best is not None:
            self._compare(best, metrics.get(best))
        self._window.exclude(time.monotonic() - started)

    def _report_undefined(self, metrics: Metrics) -> None:
        """Name the undefined metrics, each once in a run."""
        names = [name for name, value in metrics.items() if value is None]
        names = [name for name in names if name not in self._reported_undefined]
        self._reported_undefined += names
        if names:
            self.run.bar.print(
                f"undefined on the validation data, null in metrics.jsonl: {', '.join(names)}"
            )

    def _compare(self, best: str, value: float | None) -> None:
        """Save the checkpoint of a better value; stop where patience has run out."""
        progress, settings = self.progress, self.run.recipe.evaluate
        if is_better(direction(settings), value, progress.best):
            progress.best, progress.best_step = value, progress.step
            progress.measurements_since_best = 0
            if self.run.log is not None:
                with self.model.averaged():
                    self.run.save_checkpoint()
        elif value is not None:
            progress.measurements_since_best += 1
            if settings.patience and progress.measurements_since_best >= settings.patience:
                progress.stopped_early = True
                self.run.bar.print(
                    f"{best} has not improved {settings.patience} times: stopping early"
                )
                self.model.stop_training = True

    def _measure(self, validation: Validation) -> Metrics:
        """Measure on the chief; the others wait for its numbers, so that all decide alike."""
        text = b""
        if self.run.log is not None:
            with self.model.averaged():
                text = json.dumps(validation(self.model)).encode()
                count = self.run.recipe.train.samples
                write_samples(self.run.log, self.progress.step, validation, self.model, count)
        return json.loads(self.run.broadcast(text))


def format_metrics(metrics: Metrics, best: str | None = None) -> str:
    """Format the first few metrics, and `best`, as one line of text.

    Args:
        metrics: Values by name.
        best: The metric of `evaluate.best`.
    """
    names = list(metrics)[:SHOWN_METRICS]
    if best is not None and best not in names:
        names.append(best)
    return "  ".join(f"{name} {format_metric(metrics.get(name))}" for name in names)


def format_metric(value: float | None) -> str:
    """Return a metric with four digits after the point."""
    return "undefined" if value is None else f"{value:.4f}"


def check_best(
    settings: EvaluateSettings, validation: Validation | None, model: keras.Model
) -> None:
    """Check `evaluate.best` before training.

    Args:
        settings: `evaluate` of the recipe.
        validation: The validation data, or None.
        model: The compiled model.

    Raises:
        SettingError: It names no metric of the task, or one without a direction.
    """
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


class LogWindow:
    """Sums over the steps since the last log line."""

    def __init__(self, now: float):
        self.started = now
        self.steps = self.tokens = self.slots = self.examples = 0
        self.loss = self.norm = 0.0

    def add(self, logs: Mapping[str, float], batch: Batch) -> None:
        """Add one step: its logs (loss, gradient_norm) and its batch."""
        self.steps += 1
        self.tokens += batch.tokens
        self.slots += batch.slots
        self.examples += batch.examples
        self.loss += float(logs["loss"])
        self.norm += float(logs["gradient_norm"])

    def exclude(self, seconds: float) -> None:
        """Leave the time of validation out of the training speed."""
        self.started += seconds

    def values(self, now: float) -> dict[str, float]:
        """Return the means over the steps: loss, gradient norm, speed, share of padding.

        Args:
            now: The time of `time.monotonic`, in seconds.
        """
        seconds = max(now - self.started, 1e-9)
        return {
            "loss": self.loss / self.steps,
            "gradient_norm": self.norm / self.steps,
            "tokens_per_second": self.tokens / seconds,
            "examples_per_second": self.examples / seconds,
            "padding": 1 - self.tokens / self.slots,
        }
