"""Keras on JAX over several devices of one process: `keras.distribution`, which only works there.

The arrays of a step are whole batches and whole weights; JAX divides them over the devices, so that
the sums of a step are over the whole batch. Several processes have not been tried.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import tree

from tfllm.errors import MissingExtra, SettingError

BATCH, MODEL = "batch", "model"

# Layers whose matrix is split by outputs (heads, inner width), and those that take these as inputs
# and are split by them (Shoeybi et al. 2019, section 3).
BY_OUTPUTS = ("query", "key", "value", "up", "gate")
BY_INPUTS = ("attention_output", "down")
BY_ROWS = ("token_embedding",)


@dataclass(frozen=True)
class JaxStrategy:
    """The part of the `tf.distribute` interface that a run needs, over a `keras.distribution`."""

    distribution: Any
    """None: one device."""
    num_replicas_in_sync: int = 1
    """One process feeds whole batches."""

    @property
    def parts(self) -> int:
        """How many equal parts a batch is divided into."""
        if self.distribution is None:
            return 1
        mesh = self.distribution.device_mesh
        return mesh.shape[mesh.axis_names.index(BATCH)]

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        """Divide variables created, and steps run, inside the block over the devices."""
        before = keras.distribution.distribution()
        keras.distribution.set_distribution(self.distribution)
        try:
            yield
        finally:
            keras.distribution.set_distribution(before)


def choose(name: str, model_devices: int | None) -> JaxStrategy:
    """Choose the devices of `train.strategy` on JAX.

    Args:
        name: auto, one, data_parallel or model_parallel.
        model_devices: With model_parallel, the devices that share one copy of the model.

    Raises:
        SettingError: The strategy is TensorFlow's, or the devices cannot be divided so.
        MissingExtra: JAX is not installed.
    """
    try:
        import jax  # noqa: F401
    except ImportError:
        raise MissingExtra("jax", "jax") from None
    devices = keras.distribution.list_devices()
    if name == "one" or (name == "auto" and len(devices) < 2):
        return JaxStrategy(None)
    if name in ("auto", "data_parallel"):
        mesh = keras.distribution.DeviceMesh((len(devices),), [BATCH], devices)
        return JaxStrategy(keras.distribution.DataParallel(device_mesh=mesh))
    if name != "model_parallel":
        raise SettingError(
            f"train.strategy: {name} is TensorFlow's, but KERAS_BACKEND is jax. "
            "Use one of: auto, one, data_parallel, model_parallel."
        )
    share = model_devices or len(devices)
    if len(devices) % share:
        raise SettingError(
            f"train.model_devices: {share} does not divide the {len(devices)} devices of this "
            "machine. Use a number that does."
        )
    mesh = keras.distribution.DeviceMesh((len(devices) // share, share), [BATCH, MODEL], devices)
    return JaxStrategy(
        ModelParallelByName(layout_map=keras.distribution.LayoutMap(mesh), batch_dim_name=BATCH)
    )


class ModelParallelByName(keras.distribution.ModelParallel):
    """Model parallelism by the names of layers; what does not divide evenly is replicated."""

    def get_variable_layout(self, variable: Any) -> Any:
        """Return which axis of a variable is sharded over the devices of one model."""
        share = self.device_mesh.shape[1]
        axes = sharded_axes(variable.path, tuple(variable.shape), share)
        return keras.distribution.TensorLayout(axes, self.device_mesh)


def sharded_axes(path: str, shape: tuple[int, ...], share: int) -> list[str | None]:
    """Name the mesh axis of each axis of a weight: "model" where it is split, else None.

    Args:
        path: The variable's path.
        shape: Its shape.
        share: Number of devices that share one copy of the model.
    """
    layer, name = ([""] + path.split("/"))[-2:]
    axis = None
    if layer in BY_OUTPUTS:
        axis = 0 if name == "bias" else 1
    elif layer in (*BY_INPUTS, *BY_ROWS) and name in ("kernel", "embeddings"):
        axis = 0
    axes: list[str | None] = [None] * len(shape)
    if axis is not None and axis < len(shape) and shape[axis] % share == 0:
        axes[axis] = MODEL
    return axes


def pad_batches(elements: Iterator[tuple[Any, Any]], parts: int) -> Iterator[tuple[Any, Any, Any]]:
    """Pad batches so that their rows divide by the number of devices.

    Args:
        elements: (inputs, targets) of each batch.
        parts: What the number of rows must divide by.

    Yields:
        Inputs, targets, and a uint8 array whose shape, which a compiled step knows, is (rows, rows
        without padding). Padding rows must not count in the loss.
    """
    for x, y in elements:
        rows = len(tree.flatten(y)[0])
        padding = -rows % parts

        def pad(array: np.ndarray) -> np.ndarray:
            return np.concatenate([array, np.repeat(array[:1], padding, axis=0)])  # noqa: B023

        x, y = tree.map_structure(pad, (x, y))
        yield x, y, np.zeros((rows + padding, rows), np.uint8)
