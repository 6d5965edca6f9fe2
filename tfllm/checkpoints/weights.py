"""A table of weights, applied in both directions: tensors to Keras variables and back.

Nothing is guessed: a variable without a tensor, a tensor without a use and a wrong shape are
errors that name the tensors.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from tfllm.errors import CheckpointError
from tfllm.models.weight_map import TensorLayout, TensorMap

SHOWN_NAMES = 5
LAYER_NUMBER = re.compile(r"_(\d+)/")

Tensors = Mapping[str, np.ndarray]


def variables_of(model: Any) -> dict[str, Any]:
    """The weights of a model by their path: what a checkpoint keeps."""
    return {variable.path: variable for variable in model.weights}


def rows_of(paths: Iterable[str], table: TensorMap) -> dict[str, TensorLayout]:
    """The rows of those variable paths that the table knows, with the layer's number put in.

    `inputs` is -1 where the tensor has the variable's own shape.
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
    """The shape of the tensor for a variable of `shape`, its other parts included."""
    whole = list(_part_shape(row, shape))
    whole[row.part_axis] *= row.parts
    return tuple(whole)


def _part_shape(row: TensorLayout, shape: tuple[int, ...]) -> tuple[int, ...]:
    if row.inputs < 0:
        return shape
    if row.inputs == 0:
        return (math.prod(shape),)
    return (math.prod(shape[row.inputs :]), math.prod(shape[: row.inputs]))


def to_variables(
    rows: Mapping[str, TensorLayout], variables: Mapping[str, Any], tensors: Tensors
) -> None:
    """Puts the tensors into the variables. Shapes were checked before."""
    for path, row in rows.items():
        value = tensors[row.name]
        if row.parts > 1:
            value = np.split(value, row.parts, row.part_axis)[row.part]
        value = value.astype(np.float32, copy=False)
        value = value.T if row.inputs > 0 else value
        variables[path].assign(value.reshape(variables[path].shape))


def to_tensors(
    rows: Mapping[str, TensorLayout], variables: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """The tensors that hold what the variables hold, float32."""
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
            np.concatenate([found[i] for i in sorted(found)], axes[name])
            if len(found) > 1
            else found[0]
        )
        for name, found in parts.items()
    }


def array_of(variable: Any) -> np.ndarray:
    """A variable's value, float32 whatever the backend keeps."""
    import keras

    return np.asarray(keras.ops.convert_to_numpy(variable), np.float32)


def check(
    rows: Mapping[str, TensorLayout],
    variables: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    known: Iterable[str],
    source: str,
) -> None:
    """Refuses gaps, leftovers and wrong shapes, all named in one CheckpointError.

    `shapes`: of the tensors that are there; `known`: names that may be there without a use.
    """
    wanted = {row.name: path for path, row in rows.items()}  # of several parts any one
    missing = [name for name in wanted if name not in shapes]
    known = set(known)
    leftover = [name for name in shapes if name not in wanted and name not in known]
    wrong = []
    for name, path in wanted.items():
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
    """Names for a message: the first few, and how many more."""
    names = list(names)
    more = len(names) - SHOWN_NAMES
    return ", ".join(names[:SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")


def _count(names: list[str], noun: str) -> str:
    return f"{len(names)} {noun}{'' if len(names) == 1 else 's'}"
