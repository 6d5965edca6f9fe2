"""Label names and their places among the outputs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from tfllm.errors import DataError, SettingError
from tfllm.tasks.base import Example, where

SHOWN_LABELS = 20


def found(values: Iterable[Any]) -> tuple[str, ...]:
    """The different labels in a fixed order: as numbers where all are numbers, else as texts."""
    names = {str(value) for value in values}
    return tuple(sorted(names, key=float) if all(map(_is_number, names)) else sorted(names))


def index(label: Any, labels: Sequence[str], example: Example, what: str = "label") -> int:
    """The place of a label given by its name, or by its place where no name is a number.

    Raises DataError naming file and line, the label and the known ones.
    """
    name = str(label)
    if name in labels:
        return labels.index(name)
    if name.isdecimal() and int(name) < len(labels) and not any(map(_is_number, labels)):
        return int(name)
    shown = ", ".join(labels[:SHOWN_LABELS]) + (", ..." if len(labels) > SHOWN_LABELS else "")
    raise DataError(
        f"{where(example)}unknown {what} '{name}'. Known: {shown}. "
        "Correct the line, or add it to task.labels."
    )


def given(examples: Sequence[Example], field: str) -> bool:
    """Whether the examples have the field: all of them, or none. Raises DataError for a mix."""
    having = [example.get(field) is not None for example in examples]
    if not any(having):
        return False
    if not all(having):
        first = examples[having.index(False)]
        raise DataError(
            f"{where(first)}the field '{field}' is missing here, but other examples have it. "
            "Add it, or remove the line."
        )
    return True


def needed(labels: Sequence[str], what: str = "labels") -> int:
    """How many labels there are. Raises SettingError when none are known yet."""
    if not labels:
        raise SettingError(
            f"task.labels is empty. Name the {what}, or give training data that has them."
        )
    return len(labels)


def numbers(example: Example, size: int) -> np.ndarray:
    """The label as float32 [], or [size] where the task has several numbers."""
    try:
        value = np.asarray(example["label"], np.float32)
    except (TypeError, ValueError):
        value = np.asarray(np.nan)
    if value.shape != (() if size == 1 else (size,)) or not np.isfinite(value).all():
        raise DataError(
            f"{where(example)}the label {example['label']!r} is not "
            f"{'a number' if size == 1 else f'{size} numbers'}, which the task needs. "
            "Correct the line, or name the column that holds it under data.columns."
        )
    return value


def _is_number(name: str) -> bool:
    try:
        float(name)
    except ValueError:
        return False
    return True
