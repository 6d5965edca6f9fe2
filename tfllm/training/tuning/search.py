"""`tune(...)`: claims trials, runs them, and passes their measurements to the pruner."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tfllm import config
from tfllm.errors import InputError, SettingError, TrainingFailed, did_you_mean
from tfllm.tasks.metric_directions import Direction
from tfllm.training import directory
from tfllm.training.recipe import Recipe
from tfllm.training.stopping import StopRequest, catch_stop_signals
from tfllm.training.tuning import report
from tfllm.training.tuning import study as studies
from tfllm.training.tuning.space import Space, recipe_values, with_values
from tfllm.training.tuning.study import Study
from tfllm.training.tuning.trials import TrialFiles, TrialProcess, slot_environment, trial_value
from tfllm.training.validation import direction as direction_of

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial, Trial

POLL_SECONDS = 0.2
# Failures in a row that end a search: something else than the suggested values is wrong.
FAILURES_AT_FIRST, FAILURES_AFTER_SUCCESS = 3, 6
WRONG_INPUT = 2  # exit status of `tfllm train`
VALIDATION = ("validation", "validation_share", "validation_tail")


@dataclass(frozen=True)
class TuningResult:
    """The result of a search."""

    folder: Path
    best: dict[str, Any] | None
    """The best trial, as in trials.json; None while none has a value."""
    first: dict[str, Any] | None
    """The trial of the recipe's own values, where the space contains them."""
    count: int
    """Trials that have ended."""
    signal: int | None = None
    """The signal that stopped the search before its end, or None."""


@dataclass
class Running:
    """A trial that is being trained."""

    trial: Trial
    files: TrialFiles
    lock: int
    process: TrialProcess
    values: dict[str, Any]
    started: float = field(default_factory=time.monotonic)
    pruned: bool = False
    reported: int = 0


def tune(
    recipe: Mapping[str, Any],
    space: Space,
    trials: int,
    folder: Path,
    processes: int = 1,
    notify: Callable[[str], None] = lambda text: None,
) -> TuningResult:
    """Train variants of a recipe and find the best one.

    A search that is in the directory already is continued; other processes may work on it too.

    Args:
        recipe: The recipe's plain data.
        space: The keys to tune and their values.
        trials: Trials in all, earlier ones included.
        folder: The directory of the search.
        processes: Trials that run at once.
        notify: Called with lines for people.

    Returns:
        The best trial, its value and its recipe.

    Raises:
        InputError: Before anything is written; or no trial succeeds, with the last one's message.
        TrainingFailed: No trial has a value.
    """
    settings = config.build(recipe, Recipe)
    measure, direction = measure_of(settings)
    own = recipe_values(settings, space)
    study = Study(
        studies.prepare_directory(folder),
        dict(recipe),
        space,
        measure,
        direction,
        settings.train.seed,
    )
    study.enqueue_recipe(own)
    search = _Search(study, dict(recipe), settings.evaluate.best is not None, processes, notify)
    with catch_stop_signals() as stop:
        try:
            search.run(trials, stop)
        except BaseException:
            search.interrupt()
            raise
    if stop.signal is not None:
        search.interrupt()
    with study.locked():
        report.write_tables(study, recipe)
        report.write_plots(study)
    if stop.signal is None and (search.keeps_failing or not study.completed_trials()):
        search.raise_failure()
    return _result(study, own, stop.signal)


def measure_of(recipe: Recipe) -> tuple[str, Direction]:
    """Return the metric that trials are compared by, and its direction.

    Raises:
        SettingError: There is no validation data, or the task has no such metric.
    """
    if all(getattr(recipe.data, name) is None for name in VALIDATION):
        raise SettingError(
            "The recipe measures nothing that trials could be compared by. Set data.validation, "
            "or data.validation_share to hold out a part of the training data."
        )
    name = recipe.evaluate.best or "loss"
    known = ("loss", *recipe.task.metric_names)
    if name not in known:  # trials are `tfllm train`, which has no measures of the user's own
        raise SettingError(f"evaluate.best: no measure '{name}'. {did_you_mean(name, known)}")
    return name, direction_of(recipe.evaluate)


def _result(study: Study, own: Mapping[str, Any] | None, signal: int | None) -> TuningResult:
    complete, finished = study.completed_trials(), study.finished_trials()
    first = [t for t in complete if own is not None and t.number == 0]
    return TuningResult(
        study.folder,
        report.trial_row(study, complete[0]) if complete else None,
        report.trial_row(study, first[0]) if first else None,
        len(finished),
        signal,
    )


class _Search:
    """This process' part of a search: its slots, and the trial that runs in each."""

    def __init__(
        self,
        study: Study,
        recipe: dict[str, Any],
        keeps_best: bool,
        processes: int,
        notify: Callable[[str], None],
    ):
        self.study, self.recipe, self.keeps_best, self.notify = study, recipe, keeps_best, notify
        self.slots: list[Running | None] = [None] * processes
        self.failures = 0
        self.wrong_input = True
        self.last_error = ""

    @property
    def keeps_failing(self) -> bool:
        """Whether so many trials have failed in a row that the search ends."""
        limit = FAILURES_AFTER_SUCCESS if self.study.completed_trials() else FAILURES_AT_FIRST
        return self.failures >= limit

    def run(self, trials: int, stop: StopRequest) -> None:
        """Run until `trials` trials have ended in all, or a signal arrives."""
        waited = False
        while stop.signal is None:
            for slot, running in enumerate(self.slots):
                if running is None and not self.keeps_failing:
                    self.slots[slot] = self._next(slot, trials)
            if not any(self.slots):
                if self.keeps_failing or not self.study.has_running_trials():
                    return
                # Other processes work on the last ones; one whose process ends is claimed here.
                if not waited:
                    self.notify("waiting for the last trials of other processes")
                waited = True
            for slot, running in enumerate(self.slots):
                if running is not None and self._poll(running):
                    self.slots[slot] = None
            time.sleep(POLL_SECONDS)

    def interrupt(self) -> None:
        """Ask running trials to save their state; they stay open, to be claimed again."""
        running = [each for each in self.slots if each is not None]
        for each in running:
            each.process.stop()
        for each in running:
            each.process.wait()
            os.close(each.lock)
        self.slots = [None] * len(self.slots)

    def raise_failure(self) -> None:
        """Raise the error of a search without a successful trial, or that keeps failing."""
        log = f"'{self.study.folder / studies.TRIALS}'"
        if not self.last_error:
            raise TrainingFailed(
                f"No trial has a value of {self.study.measure}. See the logs in {log}, "
                "and give more --trials."
            )
        kind: type[TrainingFailed | InputError] = (
            SettingError if self.wrong_input else TrainingFailed
        )
        what = "No trial has succeeded"
        if self.study.completed_trials():
            what = f"{self.failures} trials in a row have failed; earlier results are kept"
        raise kind(f"{what} (logs in {log}). The last one says: {self.last_error}")

    def _next(self, slot: int, trials: int) -> Running | None:
        while (claim := self.study.claim(trials)) is not None:
            trial, trial_files, lock = claim
            other = None if trial_files.run.exists() else self.study.find_duplicate(trial)
            if other is None:
                return self._start(trial, trial_files, lock, slot)
            self._copy_result(trial, other)
            os.close(lock)
        return None

    def _copy_result(self, trial: Trial, other: FrozenTrial) -> None:
        """End a trial with the result of another that had the same values, without training."""
        for number, measurement in other.intermediate_values.items():
            trial.report(measurement, number)
        trial.set_user_attr(report.REPEATS, other.number)
        with self.study.locked():
            value = other.value if other.state.name == "COMPLETE" else None
            self.study.optuna.tell(trial.number, values=value, state=other.state)
            report.write_tables(self.study, self.recipe)
        self.notify(
            f"trial {trial.number} has the values of trial {other.number}: not trained again"
        )

    def _start(self, trial: Trial, trial_files: TrialFiles, lock: int, slot: int) -> Running:
        values = {key: trial.params[key] for key in self.study.space}
        data = with_values(self.recipe, values)
        text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
        directory.write_text(trial_files.path(".yaml"), text)
        again = " again" if trial_files.run.exists() else ""
        self.notify(f"trial {trial.number} starts{again}: {_join(values)}")
        process = TrialProcess(trial_files, lock, slot_environment(slot, len(self.slots)))
        running = Running(trial, trial_files, lock, process, values)
        running.reported = max(self._frozen(trial).intermediate_values, default=-1) + 1
        return running

    def _frozen(self, trial: Trial) -> FrozenTrial:
        return self.study.optuna.get_trials(deepcopy=False)[trial.number]

    def _poll(self, running: Running) -> bool:
        """Report new measurements and stop a bad trial early; True where it has ended."""
        status = running.process.status  # before the measurements: these are then all
        measurements = running.files.measurements(self.study.measure)
        for number in range(running.reported, len(measurements)):
            running.reported = number + 1
            measurement = measurements[number]
            if measurement is None:
                continue
            running.trial.report(measurement, number)
            if status is None and not running.pruned and running.trial.should_prune():
                running.pruned = True
                running.process.stop()
        if status is None:
            return False
        self._end(running, status, measurements)
        return True

    def _end(self, running: Running, status: int, measurements: list[float | None]) -> None:
        """Record the result of a trial in the study and the report, and notify the user."""
        study, trial = self.study, running.trial
        value = trial_value(study.direction, measurements, self.keeps_best)
        if status == 0 and value is not None:
            self.failures = 0
            result: dict[str, Any] = {"values": value}
            text = f"{study.measure} {value:.4f}"
        elif running.pruned and status != 0:
            self.failures = 0
            result = {"state": "PRUNED"}
            text = f"pruned at {study.measure} {report.format_value(measurements[-1])}"
        else:
            error = self._error(running, status, bool(measurements))
            trial.set_user_attr("error", error)
            result = {"state": "FAIL"}
            text = f"failed: {error}"
            self.failures += 1
            self.last_error = error
            # A metric that is undefined on the validation data is an input to correct.
            undefined = status == 0 and bool(measurements)
            self.wrong_input = self.wrong_input and (undefined or status == WRONG_INPUT)
        self._finish_trial(running, result)
        seconds = time.monotonic() - running.started
        self.notify(f"trial {trial.number}  {text}  {seconds:.0f} s{self._best_text()}")
        os.close(running.lock)

    def _error(self, running: Running, status: int, has_measured: bool) -> str:
        if status == 0:
            measure = self.study.measure
            undefined = f"{measure} is undefined on the validation data (null in metrics.jsonl)"
            return undefined if has_measured else f"its run measured no {measure}"
        return running.files.last_log_line() or f"`tfllm train` ended with the status {status}"

    def _finish_trial(self, running: Running, result: dict[str, Any]) -> None:
        study, number = self.study, running.trial.number
        with study.locked():
            before = study.completed_trials()[:1]
            if "state" in result:
                import optuna

                result = {"state": optuna.trial.TrialState[result["state"]]}
            study.optuna.tell(number, **result)
            best = study.completed_trials()[:1]
            is_best = bool(best) and best[0].number == number
            running.files.remove_state(keep_checkpoint=is_best)
            if is_best and before:
                TrialFiles(running.files.folder, before[0].number).remove_state(
                    keep_checkpoint=False
                )
            report.write_tables(study, self.recipe)

    def _best_text(self) -> str:
        best = self.study.completed_trials()[:1]
        return f"  (best {best[0].value:.4f}, trial {best[0].number})" if best else ""


def _join(values: Mapping[str, Any]) -> str:
    return "  ".join(
        f"{key} {report.format_value(value) or 'null'}" for key, value in values.items()
    )
