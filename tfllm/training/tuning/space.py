"""The search space of `tfllm tune`, a YAML file: dotted recipe keys and their values.

train.learning_rate: {low: 1e-5, high: 1e-3, log: true}
train.batch_size: {choices: [16, 32, 64]}
model.num_layers: {low: 2, high: 6, step: 2}     # whole numbers, as both ends are
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from tfllm import config
from tfllm.config import Settings
from tfllm.errors import SettingError, did_you_mean
from tfllm.models import FAMILIES
from tfllm.training.recipe import ModelSettings, Recipe

if TYPE_CHECKING:
    from optuna.trial import Trial

Number = int | float
Scalar = bool | int | float | str | None

# Keys that decide what is compared: trials with different values of them are not comparable.
FIXED = (
    "name", "evaluate.best", "data.validation", "data.validation_share", "data.validation_tail",
    "data.format", "data.columns",
)  # fmt: skip


class Range(Settings):
    """A range of numbers from `low` to `high`, both included; integers where both are integers."""

    low: Number
    """The smallest value."""
    high: Number
    """The largest value."""
    log: bool = False
    """Sample the logarithm uniformly."""
    step: Number | None = Field(default=None, gt=0)
    """Sample only low, low + step, low + 2 step, ..."""

    @model_validator(mode="after")
    def _in_order(self) -> Range:
        if self.low >= self.high:
            raise ValueError(f"low ({self.low}) is not below high ({self.high})")
        if self.log and self.low <= 0:
            raise ValueError(f"log needs a low above 0, not {self.low}")
        if self.log and self.step is not None:
            raise ValueError("give either log or step")
        if self.is_whole and isinstance(self.step, float):
            raise ValueError(f"step ({self.step}) is no whole number, but low and high are")
        return self

    @property
    def is_whole(self) -> bool:
        """Whether the range is of integers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def suggest(self, trial: Trial, key: str) -> Number:
        """Suggest a value with an `optuna.Trial`; the trial's own where it has one."""
        if self.is_whole:
            step = 1 if self.step is None else int(self.step)
            return trial.suggest_int(key, int(self.low), int(self.high), step=step, log=self.log)
        return trial.suggest_float(
            key, float(self.low), float(self.high), step=self.step, log=self.log
        )

    def sample_values(self) -> list[Any]:
        """Return the values with which the recipe is validated."""
        return [self.low, self.high] if self.is_whole else [float(self.low), float(self.high)]

    def contains(self, value: Any) -> bool:
        """Return whether the value can be suggested."""
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            return False
        if not self.low <= value <= self.high or (self.is_whole and not isinstance(value, int)):
            return False
        steps = (value - self.low) / self.step if self.step else 0
        return abs(steps - round(steps)) < 1e-9


class Choices(Settings):
    """One of several values without an order."""

    choices: tuple[Scalar, ...] = Field(min_length=2)
    """The values, two or more."""

    def suggest(self, trial: Trial, key: str) -> Scalar:
        """Suggest a value with an `optuna.Trial`; the trial's own where it has one."""
        return trial.suggest_categorical(key, list(self.choices))

    def sample_values(self) -> list[Any]:
        """Return the values with which the recipe is validated."""
        return list(self.choices)

    def contains(self, value: Any) -> bool:
        """Return whether the value can be suggested."""
        return any(value == choice and type(value) is type(choice) for choice in self.choices)


Parameter = Range | Choices
Space = dict[str, Parameter]


def read_space(path: str | Path, recipe: Mapping[str, Any]) -> Space:
    """Read the space of a YAML file and check it against a recipe.

    Every bound and every choice must give a valid recipe.

    Args:
        path: The file.
        recipe: The recipe's plain data.

    Raises:
        SettingError: One does not; it names the file's line.
    """
    data, lines = config.read_yaml(path)
    space: Space = {}
    for keys, value in _parameters(data):
        key = ".".join(keys)
        line = next((lines[keys[:n]] for n in range(len(keys), 0, -1) if keys[:n] in lines), None)
        source = f"{path}:{line}" if line else str(path)
        if key in space:
            raise SettingError(f"{source}: '{key}' appears twice. Keep one.")
        space[key] = _parameter(key, value, source)
        _check(key, space[key], recipe, source)
    if not space:
        raise SettingError(f"{path}: no key to tune, such as train.learning_rate.")
    return space


def _parameters(data: Mapping[str, Any], above: tuple[str, ...] = ()) -> Any:
    """(path in the file, value) of every parameter; mappings may be nested as in a recipe."""
    for name, value in data.items():
        keys = (*above, str(name))
        if isinstance(value, Mapping) and not {"low", "high", "choices"} & set(value):
            yield from _parameters(value, keys)
        else:
            yield keys, value


def _parameter(key: str, value: Any, source: str) -> Parameter:
    if not isinstance(value, Mapping):
        raise SettingError(
            f"{source}: {key} is {value!r}. Write {{low: …, high: …}} or {{choices: […]}}."
        )
    source = f"{source}: {key}"
    if "choices" in value:
        return config.build(value, Choices, source)
    return config.build(value, Range, source)


def _check(key: str, parameter: Parameter, recipe: Mapping[str, Any], source: str) -> None:
    for fixed in FIXED:
        if key == fixed or key.startswith(f"{fixed}."):
            raise SettingError(
                f"{source}: {key} decides what trials are compared by, so it cannot be tuned."
            )
    for value in parameter.sample_values():
        built = config.build(with_values(recipe, {key: value}), Recipe, source=source)
        if built.model.family in FAMILIES:
            known = _shape(built.model)
            for name in built.model.shape:
                if name not in known:
                    near = did_you_mean(name, known)
                    raise SettingError(f"{source}: unknown key 'model.{name}'. {near}")


def _shape(model: ModelSettings) -> dict[str, Any]:
    """The fields of the family's Config: the recipe's, and the defaults of all others."""
    shape = FAMILIES[str(model.family)].Config()
    names = [field.name for field in dataclasses.fields(shape)]
    return {name: model.shape.get(name, getattr(shape, name)) for name in names}


def with_values(recipe: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe's plain data with the values at their dotted keys."""
    data = dict(recipe)
    for key, value in values.items():
        data = config.set_value(data, tuple(key.split(".")), value, f"{key}={value}")
    return data


def suggest_values(trial: Trial, space: Space) -> dict[str, Any]:
    """Suggest the values of an `optuna.Trial`, by key."""
    return {key: parameter.suggest(trial, key) for key, parameter in space.items()}


def recipe_values(recipe: Recipe, space: Space) -> dict[str, Any] | None:
    """Return the recipe's own value of every key; None where one is outside of the space."""
    values = {}
    for key, parameter in space.items():
        value: Any = recipe
        for part in key.split("."):
            value = getattr(value, part, None)
        if key.startswith("model.") and recipe.model.family is not None:
            value = _shape(recipe.model).get(key.removeprefix("model."))
        if not parameter.contains(value):
            return None
        values[key] = value
    return values
