"""Batches to a `tf.data.Dataset` that `model.fit` reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np

from tfllm.data.batching import Batches


class Rows(Protocol):
    """Anything that pads rows into a batch: `tfllm.tasks.base.Features`."""

    def batch(
        self, rows: np.ndarray, length: int | None = None
    ) -> tuple[dict[str, np.ndarray], np.ndarray | None]: ...


def dataset(
    features: Callable[[int], Rows],
    batches: Batches,
    inputs: list[str],
    epoch: int = 0,
    step: int = 0,
) -> Any:
    """(inputs {name: int32 [B, T]}, targets [B, ...]) without end, from a step of an epoch on.

    `features(epoch)` gives the rows of an epoch, `inputs` names what the model asks for. B and T
    differ from batch to batch.
    """
    import tensorflow as tf

    def generate() -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
        now, first = epoch, step
        while True:
            rows = features(now)
            for batch in batches.epoch(now)[first:]:
                arrays, targets = rows.batch(batch.rows, batch.length)
                assert targets is not None, "training rows have targets"
                yield {name: arrays[name] for name in inputs}, targets
            now, first = now + 1, 0

    def targets_of(length: int) -> np.ndarray:
        _, targets = features(epoch).batch(batches.units[0], length)
        assert targets is not None, "training rows have targets"
        return targets

    short, long = targets_of(8), targets_of(16)
    shape = [None if a != b else a for a, b in zip(short.shape, long.shape, strict=True)]
    signature = (
        {name: tf.TensorSpec((None, None), tf.int32) for name in inputs},
        tf.TensorSpec((None, *shape[1:]), tf.as_dtype(short.dtype)),
    )
    return tf.data.Dataset.from_generator(generate, output_signature=signature).prefetch(4)
