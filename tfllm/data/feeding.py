"""Batches to a `tf.data.Dataset` that `model.fit` reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np

from tfllm.data.batching import Batch


class Rows(Protocol):
    """Anything that pads rows into a batch: `tfllm.tasks.base.Features`."""

    def batch(
        self, rows: np.ndarray, length: int | None = None
    ) -> tuple[dict[str, np.ndarray], np.ndarray | None]: ...


def dataset(features: Rows, inputs: list[str], batches: Callable[[], Iterator[Batch]]) -> Any:
    """(inputs {name: int32 [B, T]}, targets [B, ...]) of the batches that `batches()` yields.

    `inputs` names what the model asks for. B and T differ from batch to batch.
    """
    import tensorflow as tf

    def generate() -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
        for batch in batches():
            arrays, targets = features.batch(batch.rows, batch.length)
            assert targets is not None, "training rows have targets"
            yield {name: arrays[name] for name in inputs}, targets

    _, targets = features.batch(np.arange(1))
    assert targets is not None, "training rows have targets"
    signature = (
        {name: tf.TensorSpec((None, None), tf.int32) for name in inputs},
        tf.TensorSpec(_target_shape(targets, features), tf.as_dtype(targets.dtype)),
    )
    result = tf.data.Dataset.from_generator(generate, output_signature=signature)
    return result.prefetch(4)


def _target_shape(targets: np.ndarray, features: Rows) -> tuple[int | None, ...]:
    """[None, ...] with None where the size follows the batch's length."""
    per_token = getattr(features, "per_token", False)
    return (None, None) if per_token else (None, *targets.shape[1:])
