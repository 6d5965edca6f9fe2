"""The study of a search: Optuna's SQLite file, which several processes share, and its claims.

A trial belongs to the process that holds the lock of its file. Locks end with their process, so a
trial whose process was killed can be claimed again.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import yaml

from tfllm import config
from tfllm.errors import MissingExtra, SettingError, StorageError
from tfllm.tasks.metric_directions import Direction
from tfllm.training import directory as files
from tfllm.training.tuning.space import Space, suggest_values
from tfllm.training.tuning.trials import TrialFiles

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial, Trial

DATABASE, RECIPE, SPACE, TRIALS, LOCK = "study.db", "recipe.yaml", "space.yaml", "trials", ".lock"
NAME = "tfllm"
WAITING_SECONDS = 60  # for another process that writes to the database

# Startup trials: sampled at random, and never pruned.
STARTUP_SHARE, MIN_STARTUP, MAX_STARTUP = 1 / 3, 4, 10


class Study:
    """A search in a directory, created or opened."""

    def __init__(
        self,
        folder: Path,
        recipe: dict[str, Any],
        space: Space,
        measure: str,
        direction: Direction,
        seed: int,
    ):
        self.folder, self.space, self.measure, self.seed = folder, space, measure, seed
        self.direction = direction
        optuna = _optuna()
        with self.locked():
            self._write_or_compare(RECIPE, recipe)
            self._write_or_compare(
                SPACE, {k: p.model_dump(exclude_none=True) for k, p in space.items()}
            )
            self.optuna = optuna.create_study(
                storage=optuna.storages.RDBStorage(
                    f"sqlite:///{(folder / DATABASE).resolve()}",
                    engine_kwargs={"connect_args": {"timeout": WAITING_SECONDS}},
                ),
                study_name=NAME,
                direction=direction,
                load_if_exists=True,
            )

    @property
    def maximize(self) -> bool:
        """Whether a high value is better."""
        return self.direction == "maximize"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Inside, no other process claims, creates or reports trials."""
        with (self.folder / LOCK).open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _write_or_compare(self, name: str, data: dict[str, Any]) -> None:
        """Write what is searched, or compare it with what was. Raises SettingError."""
        path = self.folder / name
        data = yaml.safe_load(yaml.safe_dump(data))  # tuples become lists
        if not path.exists():
            text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
            files.write_text(path, text)
            return
        before, _ = config.read_yaml(path)
        if before != data:
            keys = sorted(k for k in {*before, *data} if before.get(k) != data.get(k))
            raise SettingError(
                f"The search in '{self.folder}' has another {path.stem} (it differs in "
                f"{', '.join(keys)}). Give another --output, or what it was started with."
            )

    def enqueue_recipe(self, own: dict[str, Any] | None) -> None:
        """Make the recipe's own values the first trial of a new study."""
        with self.locked():
            if own is not None and not self.optuna.get_trials(deepcopy=False):
                self.optuna.enqueue_trial(own)

    def claim(self, trials: int) -> tuple[Trial, TrialFiles, int] | None:
        """Claim the next trial: itself, its files and its lock; None after the last of `trials`.

        One whose process has ended without a result comes first.
        """
        optuna = _optuna()
        states = optuna.trial.TrialState
        with self.locked():
            known = self.optuna.get_trials(deepcopy=False)
            started = [trial for trial in known if trial.state != states.WAITING]
            for trial in started:
                if trial.state == states.RUNNING:
                    lock = self._lock(trial.number)
                    if lock is not None:
                        return self._claimed(optuna.trial.Trial(self.optuna, trial._trial_id), lock)
            if len(started) >= trials:
                return None
            self._prepare(optuna, len(started), trials)
            trial = self.optuna.ask()
            lock = self._lock(trial.number)
            assert lock is not None, "a new trial is not locked"
            return self._claimed(trial, lock)

    def _prepare(self, optuna: ModuleType, number: int, trials: int) -> None:
        """Seed the sampler by (seed, trial), so that a resumed search repeats nothing."""
        startup = int(min(MAX_STARTUP, max(MIN_STARTUP, trials * STARTUP_SHARE)))
        self.optuna.sampler = optuna.samplers.TPESampler(
            seed=(self.seed * 1_000_003 + number) % 2**32,
            n_startup_trials=startup,
            constant_liar=True,
        )
        self.optuna.pruner = optuna.pruners.MedianPruner(n_startup_trials=startup)

    def _claimed(self, trial: Trial, lock: int) -> tuple[Trial, TrialFiles, int]:
        suggest_values(trial, self.space)
        return trial, TrialFiles(self.folder / TRIALS, trial.number), lock

    def _lock(self, number: int) -> int | None:
        """Lock a trial and return the open file; None where another process has the lock."""
        path = TrialFiles(self.folder / TRIALS, number).path(".lock")
        path.parent.mkdir(exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return None
        return descriptor

    def find_duplicate(self, trial: Trial) -> FrozenTrial | None:
        """Find a trial with the same values and a result, or None."""
        for other in self.finished_trials():
            known = other.state.name in ("COMPLETE", "PRUNED")
            if known and other.number != trial.number and other.params == trial.params:
                return other
        return None

    def finished_trials(self) -> list[FrozenTrial]:
        """List the trials that have ended, in their order."""
        return [t for t in self.optuna.get_trials(deepcopy=False) if t.state.is_finished()]

    def has_running_trials(self) -> bool:
        """Return whether a trial has started and not ended, here or elsewhere."""
        trials = self.optuna.get_trials(deepcopy=False)
        return any(trial.state.name == "RUNNING" for trial in trials)

    def completed_trials(self) -> list[FrozenTrial]:
        """List the trials that have a value, the best first."""
        done = [trial for trial in self.finished_trials() if trial.state.name == "COMPLETE"]
        sign = -1.0 if self.maximize else 1.0
        return sorted(done, key=lambda trial: (sign * trial.values[0], trial.number))


def prepare_directory(path: Path) -> Path:
    """Create the directory of a study, or check that one is in it.

    Raises:
        StorageError: It is a file, has other files, or cannot be created.
    """
    if path.exists() and not path.is_dir():
        raise StorageError(f"'{path}' is a file. Give another --output.")
    if path.is_dir() and any(path.iterdir()) and not (path / DATABASE).exists():
        if not (path / LOCK).exists():  # another process may be making it now
            raise StorageError(
                f"'{path}' is not empty and holds no search ({DATABASE}). Give another --output."
            )
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"Cannot create '{path}': {error.strerror}.") from None
    return path


def _optuna() -> ModuleType:
    try:
        import optuna
    except ImportError:
        raise MissingExtra("optuna", "tune") from None
    optuna.logging.set_verbosity(logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna
