"""What losses and metrics need to know of the other replicas under `tf.distribute`.

Elsewhere (one device, Keras on JAX, outside a step) there is one replica, which has everything.
"""

from __future__ import annotations

from typing import Any

import keras

from tfllm.layers.types import Tensor


def all_reduce_sum(value: Tensor) -> Tensor:
    """Return the sum of a scalar over all replicas."""
    context = _context()
    return value if context is None else context.all_reduce("SUM", value)


def all_gather_rows(rows: Tensor) -> tuple[Tensor, Tensor | int]:
    """Gather the rows of all replicas. Gradients go back to the replica that a row came from.

    Args:
        rows: This replica's rows [B, D].

    Returns:
        The rows of all replicas, one after another, and the index of this replica's first one.
    """
    context = _context()
    if context is None:
        return rows, 0
    import tensorflow as tf

    sizes = context.all_gather(tf.shape(rows)[:1], axis=0)
    before = tf.reduce_sum(sizes[: context.replica_id_in_sync_group])
    return context.all_gather(rows, axis=0), before


def _context() -> Any:
    """The context of this replica where there are others, or None."""
    if keras.backend.backend() != "tensorflow":
        return None
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    return None if context is None or context.num_replicas_in_sync == 1 else context
