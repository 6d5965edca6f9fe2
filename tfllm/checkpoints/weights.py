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

from tfllm.checkpoints.lazy_tensors import LazyTensors, aligned_empty, is_aligned
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


def tensor_shape(
    paths: list[str], rows: Mapping[str, TensorLayout], variables: Mapping[str, keras.Variable]
) -> tuple[int, ...]:
    """Return the shape of the complete tensor for the variables that are its parts."""
    shapes = [_part_shape(rows[path], tuple(variables[path].shape)) for path in paths]
    axis = rows[paths[0]].part_axis
    complete = list(shapes[0])
    if len(shapes) > 1:
        complete[axis] = sum(shape[axis] for shape in shapes)
    return tuple(complete)


def _by_tensor(rows: Mapping[str, TensorLayout]) -> dict[str, list[str]]:
    """The name of each tensor -> the variables that are its parts, in order."""
    names: dict[str, list[str]] = {}
    for path in sorted(rows, key=lambda path: rows[path].part):
        names.setdefault(rows[path].name, []).append(path)
    return names


def _split(
    tensor: np.ndarray,
    paths: list[str],
    rows: Mapping[str, TensorLayout],
    variables: Mapping[str, keras.Variable],
) -> dict[str, np.ndarray]:
    """The parts of a tensor by variable."""
    row = rows[paths[0]]
    if len(paths) == 1:
        return {paths[0]: tensor}
    sizes = [_part_shape(rows[path], tuple(variables[path].shape))[row.part_axis] for path in paths]
    ends = np.cumsum([size // row.groups for size in sizes])[:-1]
    parts = np.split(_grouped(tensor, row), ends, 1)
    return {path: _ungrouped(part, row) for path, part in zip(paths, parts, strict=True)}


def _fuse(parts: list[np.ndarray], row: TensorLayout) -> np.ndarray:
    """The tensor of several parts."""
    return _ungrouped(np.concatenate([_grouped(part, row) for part in parts], 1), row)


def _grouped(value: np.ndarray, row: TensorLayout) -> np.ndarray:
    """The outputs of a tensor or part as two leading axes: groups, and outputs of a group."""
    value = np.moveaxis(value, row.part_axis, 0)
    return value.reshape(row.groups, -1, *value.shape[1:])


def _ungrouped(value: np.ndarray, row: TensorLayout) -> np.ndarray:
    """The tensor or part of what `_grouped` gives."""
    return np.moveaxis(value.reshape(-1, *value.shape[2:]), 0, row.part_axis)


def _part_shape(row: TensorLayout, shape: tuple[int, ...]) -> tuple[int, ...]:
    if row.inputs < 0:
        return shape
    if row.inputs == 0:
        return (math.prod(shape),)
    return (math.prod(shape[row.inputs :]), math.prod(shape[: row.inputs]))


def to_variables(
    rows: Mapping[str, TensorLayout], variables: Mapping[str, keras.Variable], tensors: Tensors
) -> None:
    """Set variables to tensors, the largest first. Their shapes were checked before.

    Args:
        rows: Path of a variable -> its row of the weight map.
        variables: The variables by path, with or without a value.
        tensors: The tensors by name; of `LazyTensors` one at a time is in memory.
    """
    by_tensor = _by_tensor(rows)
    sizes = {
        name: sum(math.prod(variables[path].shape) for path in paths)
        for name, paths in by_tensor.items()
    }
    for name in sorted(by_tensor, key=lambda name: -sizes[name]):
        paths = by_tensor[name]
        mine = isinstance(tensors, LazyTensors) and len(paths) == 1
        for path, value in _split(tensors[name], paths, rows, variables).items():
            value = value.T if rows[path].inputs > 0 else value
            if not (mine and value.dtype == np.float32 and is_aligned(value)):
                buffer = aligned_empty(value.shape, np.float32)
                buffer[...] = value
                value = buffer
            _set(variables[path], value.reshape(variables[path].shape))


def _set(variable: keras.Variable, value: np.ndarray) -> None:
    """Set a variable to an array that nobody else holds: TensorFlow takes over its memory."""
    import keras

    from tfllm import keras_internals

    if keras.backend.backend() != "tensorflow":
        keras_internals.set_value(variable, value)
        return
    import tensorflow as tf

    keras_internals.set_value(variable, tf.experimental.dlpack.from_dlpack(value.__dlpack__()))


def to_tensors(
    rows: Mapping[str, TensorLayout], variables: Mapping[str, keras.Variable]
) -> dict[str, np.ndarray]:
    """Convert variables to tensors, float32."""
    tensors = {}
    for name, paths in _by_tensor(rows).items():
        parts = []
        for path in paths:
            value = array_of(variables[path])
            if rows[path].inputs > 0:
                value = value.reshape(_part_shape(rows[path], value.shape)[::-1]).T
            elif rows[path].inputs == 0:
                value = value.reshape(-1)
            parts.append(value)
        fused = _fuse(parts, rows[paths[0]]) if len(parts) > 1 else parts[0]
        tensors[name] = np.ascontiguousarray(fused)
    return tensors


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
    expected_names = _by_tensor(rows)
    missing = [name for name in expected_names if name not in shapes]
    known = set(known)
    leftover = [name for name in shapes if name not in expected_names and name not in known]
    wrong = []
    for name, paths in expected_names.items():
        expected = tensor_shape(paths, rows, variables)
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
