"""Label names and their indices among the outputs."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Annotated, Any, cast

import numpy as np
from pydantic import AfterValidator

from tfllm.data.label_numbers import as_number
from tfllm.errors import DataError, SettingError
from tfllm.tasks.features import Example, where

SHOWN_LABELS = 20


def check_distinct(labels: tuple[str, ...]) -> tuple[str, ...]:
    """Return the labels. Raises ValueError where two of them are one, by name or by value."""
    known: dict[Any, str] = {}
    for label in labels:
        value = as_number(label)
        key = label if value is None else value
        if key in known:
            raise ValueError(
                f"'{known[key]}' and '{label}' are the same label; name each label once"
            )
        known[key] = label
    return labels


Labels = Annotated[tuple[str, ...], AfterValidator(check_distinct)]


def collect_labels(labelled: Iterable[tuple[Example, Any]]) -> tuple[str, ...]:
    """Return the different labels in a fixed order: by value where all are numbers, else by name.

    Args:
        labelled: Pairs of an example and a label of it.

    Numbers of one value, such as `1` and `1.0`, are one label, under its shortest name.
    Raises DataError, naming file and line, for an empty label and for a missing number (NaN).
    """
    first: dict[str, Example] = {}
    for example, label in labelled:
        first.setdefault(_label_text(label, example), example)
    values = {name: as_number(name) for name in first}
    missing = [name for name in first if name.lower() == "nan"]
    if missing and all(values[name] is not None for name in first if name not in missing):
        raise _missing_label(first[missing[0]], missing[0])
    if not all(value is not None for value in values.values()):
        return tuple(sorted(first))
    shortest: dict[Decimal, str] = {}
    for name in sorted(first, key=lambda name: (len(name), name), reverse=True):
        shortest[cast(Decimal, values[name])] = name
    return tuple(shortest[value] for value in sorted(shortest))


def label_index(label: Any, labels: Sequence[str], example: Example, what: str = "label") -> int:
    """Return the index of a label given by its name, or by its index where no name is a number.

    Numbers are compared by value: `1.0` is the label named `1`.

    Args:
        label: The name or index.
        labels: The known names.
        example: The example that it is of, which errors name.
        what: What errors call it.

    Raises:
        DataError: There is no such label; it names file and line, and the known ones.
    """
    name = str(label)
    if name in labels:
        return labels.index(name)
    index = _index_of_number(name, tuple(labels))
    if index is not None:
        return index
    known = ", ".join(labels[:SHOWN_LABELS]) + (", ..." if len(labels) > SHOWN_LABELS else "")
    raise DataError(
        f"{where(example)}unknown {what} '{name}'. Known: {known}. "
        "Correct the line, or add it to task.labels."
    )


def label_indices(label: Any, labels: Sequence[str], example: Example) -> set[int]:
    """Return the indices of the labels that an example has.

    Args:
        label: One label or a list of them. Where the task has one label alone, 0 and 1 say
            whether the example has it.
        labels: The known names.
        example: The example, which errors name.

    Raises:
        DataError: There is no such label.
    """
    if len(labels) == 1 and not isinstance(label, list | tuple) and str(label) not in labels:
        yes = as_number(int(label) if isinstance(label, bool) else label)
        if yes not in (0, 1):
            raise DataError(
                f"{where(example)}the label is {label!r}, and the task has '{labels[0]}' alone: "
                "give 1 or 0, for yes or no, or a list of labels. For numbers set task.problem: "
                "regression."
            )
        return {0} if yes == 1 else set()
    listed = label if isinstance(label, list | tuple) else [label]
    return {label_index(one, labels, example) for one in listed}


def label_name(label: Any, labels: Sequence[str]) -> str:
    """Return the name of a label that may be given by its index.

    Args:
        label: The name or index; an unknown one is returned as text.
        labels: The known names.
    """
    name = str(label)
    index = None if name in labels else _index_of_number(name, tuple(labels))
    return name if index is None else labels[index]


def are_numbers(labels: Sequence[str]) -> bool:
    """Return whether every label is written as a number, so that none has a name."""
    return bool(labels) and all(as_number(label) is not None for label in labels)


def have_field(examples: Sequence[Example], field: str) -> bool:
    """Return whether the examples have a field.

    Args:
        examples: The examples.
        field: The field's name.

    Raises:
        DataError: Some have it and some lack it; the message names the first that lacks it.
    """
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


def count_labels(labels: Sequence[str], what: str = "labels") -> int:
    """Return the number of labels.

    Args:
        labels: The names.
        what: What errors call them.

    Raises:
        SettingError: There are none.
    """
    if not labels:
        raise SettingError(
            f"task.labels is empty. Name the {what}, or give training data that has them."
        )
    return len(labels)


def numeric_label(example: Example, size: int) -> np.ndarray:
    """Return the label of a regression example: float32 [], or [size] of several numbers.

    Args:
        example: The example.
        size: How many numbers the task predicts.

    Raises:
        DataError: It is no such number; the message names file and line.
    """
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


def _label_text(label: Any, example: Example) -> str:
    """The label as text. Raises DataError where there is none."""
    name = str(label)
    if not name.strip() or (isinstance(label, float) and label != label):
        raise _missing_label(example, name)
    return name


def _missing_label(example: Example, name: str) -> DataError:
    text = f"'{name}'" if name.strip() else "empty"
    return DataError(
        f"{where(example)}the label is {text}, so the example has none. Give it a label, or "
        "remove the line."
    )


@functools.lru_cache(maxsize=64)
def _by_value(labels: tuple[str, ...]) -> dict[Decimal, int]:
    """The index of every label that is a number, by its value."""
    values = [(as_number(label), index) for index, label in enumerate(labels)]
    return {value: index for value, index in reversed(values) if value is not None}


def _index_of_number(name: str, labels: tuple[str, ...]) -> int | None:
    """The index of the label with this value, or the index itself where no label is a number."""
    value = as_number(name)
    if value is None:
        return None
    if by_value := _by_value(labels):
        return by_value.get(value)
    return int(value) if value == int(value) and 0 <= value < len(labels) else None
