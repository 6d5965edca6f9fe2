"""Tensors that are read when they are asked for, so that weights are in memory once.

A checkpoint's tensors go into variables one after another; only the one under way is held twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

ALIGNMENT = 64  # bytes: where a buffer begins that TensorFlow can take over without a copy


@dataclass(frozen=True)
class LazyTensors(Mapping[str, np.ndarray]):
    """Tensors by name. Every access reads anew; the array belongs to whoever asked for it."""

    shapes: Mapping[str, tuple[int, ...]]
    """Name -> shape."""
    dtypes: Mapping[str, str]
    """Name -> NumPy's name of the dtype, such as `bfloat16`."""
    read: Callable[[str], np.ndarray]
    """Reads a tensor by its name into a new array."""

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.shapes:
            raise KeyError(name)
        return self.read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def __contains__(self, name: object) -> bool:
        return name in self.shapes

    def renamed(self, names: Mapping[str, str]) -> LazyTensors:
        """Return the tensors of `names` (old name -> new) under their new names."""
        old = {new: name for name, new in names.items()}
        return LazyTensors(
            {new: self.shapes[name] for new, name in old.items()},
            {new: self.dtypes[name] for new, name in old.items()},
            lambda new: self.read(old[new]),
        )


def in_memory(tensors: Mapping[str, np.ndarray]) -> LazyTensors:
    """Return arrays as tensors that are copied at each access."""
    return LazyTensors(
        {name: tensor.shape for name, tensor in tensors.items()},
        {name: tensor.dtype.name for name, tensor in tensors.items()},
        lambda name: np.array(tensors[name]),
    )


def joined(parts: list[LazyTensors]) -> LazyTensors:
    """Return the tensors of several files; of two of the same name, the later file's."""
    part_of = {name: part for part in parts for name in part}
    return LazyTensors(
        {name: part.shapes[name] for name, part in part_of.items()},
        {name: part.dtypes[name] for name, part in part_of.items()},
        lambda name: part_of[name].read(name),
    )


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype | type) -> np.ndarray:
    """Return a new array, not filled, that begins at a multiple of `ALIGNMENT`."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    buffer = np.empty(size + ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % ALIGNMENT
    return buffer[start : start + size].view(dtype).reshape(shape)


def is_aligned(array: np.ndarray) -> bool:
    """Return whether TensorFlow can take over an array's buffer without a copy."""
    whole = array.flags.c_contiguous and array.flags.writeable
    return whole and array.ctypes.data % ALIGNMENT == 0
