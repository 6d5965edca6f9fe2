"""`tune(...)`: claims trials, runs them, hands their measurements to the pruner, until enough."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tfllm import config
from tfllm.errors import InputError, SettingError, TrainingFailed, did_you_mean
from tfllm.tasks.metric_directions import Direction
from tfllm.training import directory as files
from tfllm.training.measuring import direction as direction_of
from tfllm.training.recipe import Recipe
from tfllm.training.stopping import Stop, signals
from tfllm.training.tuning import report
from tfllm.training.tuning import study as studies
from tfllm.training.tuning.space import Space, own_values, with_values
from tfllm.training.tuning.study import Study
from tfllm.training.tuning.trials import Place, Process, share, value_of

SECONDS_BETWEEN_LOOKS = 0.2
# Failures in a row that end a search: something else than the chosen values is wrong.
FAILURES_OF_ALL, FAILURES_AFTER_SUCCESS = 3, 6
WRONG_INPUT = 2  # exit status of `tfllm train`
VALIDATION = ("validation", "validation_share", "validation_tail")


@dataclass(frozen=True)
class Tuned:
    """What a search came to."""

    folder: Path
    best: dict[str, Any] | None
    """The best trial, as in trials.json; None while none has a value."""
    first: dict[str, Any] | None
    """The trial of the recipe as it is, where the space holds it."""
    count: int
    """Trials that have come to an end."""
    signal: int | None = None
    """The signal that stopped the search before its end, or None."""


@dataclass
class Running:
    """A trial that is being trained."""

    trial: Any
    place: Place
    lock: int
    process: Process
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
    say: Callable[[str], None] = lambda text: None,
) -> Tuned:
    """Trains up to `trials` variants of a recipe's plain data in all, `processes` at once.

    A search that is there goes on; another process may work on it too. Raises InputError before
    anything is written; when no trial succeeds, with the last one's message.
    """
    settings = config.build(recipe, Recipe)
    measure, direction = measure_of(settings)
    own = own_values(settings, space)
    study = Study(
        studies.folder(folder), dict(recipe), space, measure, direction, settings.train.seed
    )
    study.begin(own)
    search = _Search(study, dict(recipe), settings.evaluate.best is not None, processes, say)
    with signals() as stop:
        try:
            search.run(trials, stop)
        except BaseException:
            search.leave()
            raise
    if stop.signal is not None:
        search.leave()
    with study.locked():
        report.write(study, recipe)
        report.plots(study)
    if stop.signal is None and (search.hopeless or not study.complete()):
        search.give_up()
    return _tuned(study, own, stop.signal)


def measure_of(recipe: Recipe) -> tuple[str, Direction]:
    """The measure that trials are compared by, and its direction.

    Raises SettingError without validation data, and for a measure that the task does not have.
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


def _tuned(study: Study, own: Mapping[str, Any] | None, signal: int | None) -> Tuned:
    complete, finished = study.complete(), study.finished()
    first = [t for t in complete if own is not None and t.number == 0]
    return Tuned(
        study.folder,
        report.row(study, complete[0]) if complete else None,
        report.row(study, first[0]) if first else None,
        len(finished),
        signal,
    )


class _Search:
    """This process' part of a search: its slots and what runs in them."""

    def __init__(
        self,
        study: Study,
        recipe: dict[str, Any],
        keeps_best: bool,
        processes: int,
        say: Callable[[str], None],
    ):
        self.study, self.recipe, self.keeps_best, self.say = study, recipe, keeps_best, say
        self.slots: list[Running | None] = [None] * processes
        self.failures = 0
        self.wrong_input = True
        self.last_error = ""

    @property
    def hopeless(self) -> bool:
        """Whether so many trials have failed in a row that more of them would, too."""
        most = FAILURES_AFTER_SUCCESS if self.study.complete() else FAILURES_OF_ALL
        return self.failures >= most

    def run(self, trials: int, stop: Stop) -> None:
        """Until `trials` trials have ended in all, or a signal comes."""
        waited = False
        while stop.signal is None:
            for slot, running in enumerate(self.slots):
                if running is None and not self.hopeless:
                    self.slots[slot] = self._next(slot, trials)
            if not any(self.slots):
                if self.hopeless or not self.study.running():
                    return
                # Others work on the last ones; should one of them be lost, we take it up.
                if not waited:
                    self.say("waiting for the last trials of other processes")
                waited = True
            for slot, running in enumerate(self.slots):
                if running is not None and self._look(running):
                    self.slots[slot] = None
            time.sleep(SECONDS_BETWEEN_LOOKS)

    def leave(self) -> None:
        """Asks what runs to save its state; the trials stay open, to be taken up again."""
        running = [each for each in self.slots if each is not None]
        for each in running:
            each.process.stop()
        for each in running:
            each.process.wait()
            os.close(each.lock)
        self.slots = [None] * len(self.slots)

    def give_up(self) -> None:
        """Raises for a search without one good trial, or that would go on failing."""
        log = f"'{self.study.folder / studies.TRIALS}'"
        if not self.last_error:
            raise TrainingFailed(
                f"No trial has come to a value of {self.study.measure}. See the logs in {log}, "
                "and give more --trials."
            )
        kind: type[TrainingFailed | InputError] = (
            SettingError if self.wrong_input else TrainingFailed
        )
        what = "No trial has succeeded"
        if self.study.complete():
            what = f"{self.failures} trials in a row have failed; what was found before is kept"
        raise kind(f"{what} (logs in {log}). The last one says: {self.last_error}")

    def _next(self, slot: int, trials: int) -> Running | None:
        while (claimed := self.study.claim(trials)) is not None:
            trial, place, lock = claimed
            twin = None if place.run.exists() else self.study.twin(trial)
            if twin is None:
                return self._started(trial, place, lock, slot)
            self._repeat(trial, twin)
            os.close(lock)
        return None

    def _repeat(self, trial: Any, twin: Any) -> None:
        """Ends a trial as another one has ended that had the same values: it is not trained."""
        for number, value in twin.intermediate_values.items():
            trial.report(value, number)
        trial.set_user_attr(report.REPEATS, twin.number)
        with self.study.locked():
            value = twin.value if twin.state.name == "COMPLETE" else None
            self.study.optuna.tell(trial.number, values=value, state=twin.state)
            report.write(self.study, self.recipe)
        self.say(f"trial {trial.number} has the values of trial {twin.number}: not trained again")

    def _started(self, trial: Any, place: Place, lock: int, slot: int) -> Running:
        values = {key: trial.params[key] for key in self.study.space}
        data = with_values(self.recipe, values)
        text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
        files.write_text(place.path(".yaml"), text)
        again = " again" if place.run.exists() else ""
        self.say(f"trial {trial.number} starts{again}: {_listed(values)}")
        process = Process(place, lock, share(slot, len(self.slots)))
        running = Running(trial, place, lock, process, values)
        running.reported = max(self._frozen(trial).intermediate_values, default=-1) + 1
        return running

    def _frozen(self, trial: Any) -> Any:
        return self.study.optuna.get_trials(deepcopy=False)[trial.number]

    def _look(self, running: Running) -> bool:
        """Hands on new measurements, ends a bad trial early; True where it has come to an end."""
        status = running.process.status  # before the measurements: these are then all
        measurements = running.place.measurements(self.study.measure)
        for number in range(running.reported, len(measurements)):
            running.reported = number + 1
            if measurements[number] is None:
                continue
            running.trial.report(measurements[number], number)
            if status is None and not running.pruned and running.trial.should_prune():
                running.pruned = True
                running.process.stop()
        if status is None:
            return False
        self._end(running, status, measurements)
        return True

    def _end(self, running: Running, status: int, measurements: list[float | None]) -> None:
        """Tells the study, the user and the report."""
        study, trial = self.study, running.trial
        value = value_of(study.direction, measurements, self.keeps_best)
        if status == 0 and value is not None:
            self.failures = 0
            told: dict[str, Any] = {"values": value}
            text = f"{study.measure} {value:.4f}"
        elif running.pruned and status != 0:
            self.failures = 0
            told = {"state": "PRUNED"}
            text = f"ended early at {study.measure} {report.shown(measurements[-1])}"
        else:
            error = self._error(running, status, bool(measurements))
            trial.set_user_attr("error", error)
            told = {"state": "FAIL"}
            text = f"failed: {error}"
            self.failures += 1
            self.last_error = error
            # A measure that the validation data leaves undefined is put right there.
            undefined = status == 0 and bool(measurements)
            self.wrong_input = self.wrong_input and (undefined or status == WRONG_INPUT)
        self._tell(running, told)
        seconds = time.monotonic() - running.started
        self.say(f"trial {trial.number}  {text}  {seconds:.0f} s{self._best_text()}")
        os.close(running.lock)

    def _error(self, running: Running, status: int, has_measured: bool) -> str:
        if status == 0:
            measure = self.study.measure
            undefined = f"{measure} is undefined on the validation data (null in metrics.jsonl)"
            return undefined if has_measured else f"its run measured no {measure}"
        return running.place.last_words() or f"`tfllm train` ended with the status {status}"

    def _tell(self, running: Running, told: dict[str, Any]) -> None:
        study, number = self.study, running.trial.number
        with study.locked():
            before = study.complete()[:1]
            if "state" in told:
                import optuna

                told = {"state": optuna.trial.TrialState[told["state"]]}
            study.optuna.tell(number, **told)
            best = study.complete()[:1]
            is_best = bool(best) and best[0].number == number
            running.place.tidy(keep_checkpoint=is_best)
            if is_best and before:
                Place(running.place.folder, before[0].number).tidy(keep_checkpoint=False)
            report.write(study, self.recipe)

    def _best_text(self) -> str:
        best = self.study.complete()[:1]
        return f"  (best {best[0].value:.4f}, trial {best[0].number})" if best else ""


def _listed(values: Mapping[str, Any]) -> str:
    return "  ".join(f"{key} {report.shown(value) or 'null'}" for key, value in values.items())
