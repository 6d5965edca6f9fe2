"""A weight map applied in both directions: tensors to Keras variables and back.

Nothing is guessed: a missing tensor, an unknown tensor and a wrong shape are errors that name the
tensors.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from tfllm.errors import CheckpointError
from tfllm.models.weight_map import TensorLayout, TensorMap

if TYPE_CHECKING:
    import keras

SHOWN_NAMES = 5
LAYER_NUMBER = re.compile(r"_(\d+)/")

Tensors = Mapping[str, np.ndarray]


def variables_of(model: keras.Model) -> dict[str, keras.Variable]:
    """Return the weights of a model by their path: what a checkpoint saves."""
    return {variable.path: variable for variable in model.weights}


def rows_of(paths: Iterable[str], table: TensorMap) -> dict[str, TensorLayout]:
    """Return the rows of a weight map for variables, with the number of the layer in the names.

    Args:
        paths: Paths of variables; those that the table lacks have no row.
        table: A part of a weight map.

    Returns:
        Path -> row; `inputs` is -1 where the tensor has the shape of the variable.
    """
    rows = {}
    for path in paths:
        number = LAYER_NUMBER.search(path)
        row = table.get(LAYER_NUMBER.sub("_{i}/", path, count=1))
        if row is None:
            continue
        row = row if isinstance(row, TensorLayout) else TensorLayout(row, inputs=-1)
        name = row.name.replace("{i}", number.group(1) if number else "")
        rows[path] = dataclasses.replace(row, name=name)
    return rows


def tensor_shape(row: TensorLayout, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of the complete tensor for a variable of `shape`."""
    complete = list(_part_shape(row, shape))
    complete[row.part_axis] *= row.parts
    return tuple(complete)


def _part_shape(row: TensorLayout, shape: tuple[int, ...]) -> tuple[int, ...]:
    if row.inputs < 0:
        return shape
    if row.inputs == 0:
        return (math.prod(shape),)
    return (math.prod(shape[row.inputs :]), math.prod(shape[: row.inputs]))


def to_variables(
    rows: Mapping[str, TensorLayout], variables: Mapping[str, keras.Variable], tensors: Tensors
) -> None:
    """Assign tensors to variables. Their shapes were checked before."""
    for path, row in rows.items():
        value = tensors[row.name]
        if row.parts > 1:
            value = np.split(value, row.parts, row.part_axis)[row.part]
        value = value.astype(np.float32, copy=False)
        value = value.T if row.inputs > 0 else value
        variables[path].assign(value.reshape(variables[path].shape))


def to_tensors(
    rows: Mapping[str, TensorLayout], variables: Mapping[str, keras.Variable]
) -> dict[str, np.ndarray]:
    """Convert variables to tensors, float32."""
    parts: dict[str, dict[int, np.ndarray]] = {}
    axes = {}
    for path, row in rows.items():
        value = array_of(variables[path])
        if row.inputs > 0:
            value = value.reshape(_part_shape(row, value.shape)[::-1]).T
        elif row.inputs == 0:
            value = value.reshape(-1)
        parts.setdefault(row.name, {})[row.part] = value
        axes[row.name] = row.part_axis
    return {
        name: np.ascontiguousarray(
            np.concatenate([by_part[i] for i in sorted(by_part)], axes[name])
            if len(by_part) > 1
            else by_part[0]
        )
        for name, by_part in parts.items()
    }


def array_of(variable: keras.Variable) -> np.ndarray:
    """Return the value of a variable as float32, whatever its dtype."""
    import keras

    return np.asarray(keras.ops.convert_to_numpy(variable), np.float32)


def check(
    rows: Mapping[str, TensorLayout],
    variables: Mapping[str, keras.Variable],
    shapes: Mapping[str, tuple[int, ...]],
    known: Iterable[str],
    source: str,
) -> None:
    """Check that tensors fit variables.

    Args:
        rows: Path of a variable -> its row of the weight map.
        variables: The variables by path.
        shapes: The shapes of the tensors in the file, by name.
        known: Names of tensors that may be in the file without a variable.
        source: The file, for messages.

    Raises:
        CheckpointError: Names all missing and unknown tensors and those of the wrong shape.
    """
    expected_names = {row.name: path for path, row in rows.items()}  # any one of several parts
    missing = [name for name in expected_names if name not in shapes]
    known = set(known)
    leftover = [name for name in shapes if name not in expected_names and name not in known]
    wrong = []
    for name, path in expected_names.items():
        expected = tensor_shape(rows[path], tuple(variables[path].shape))
        if name in shapes and tuple(shapes[name]) != expected:
            wrong.append(f"{name} is {list(shapes[name])} and should be {list(expected)}")
    problems = [
        f"{_count(names, 'tensor')} {what}: {listed(names)}"
        for names, what in (
            (missing, "missing"),
            (wrong, "of the wrong shape"),
            (leftover, "without a place in the model"),
        )
        if names
    ]
    if problems:
        raise CheckpointError(
            f"{source}: {'; '.join(problems)}. The file and its configuration do not belong "
            "together; copy both from the same checkpoint again."
        )


def listed(names: Iterable[str]) -> str:
    """Return names for a message: the first few, and how many more there are."""
    names = list(names)
    more = len(names) - SHOWN_NAMES
    return ", ".join(names[:SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")


def _count(names: list[str], noun: str) -> str:
    return f"{len(names)} {noun}{'' if len(names) == 1 else 's'}"
