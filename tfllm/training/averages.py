"""Exponential moving averages of the weights (`train.ema`), beside the weights themselves.

The averages are what is measured and saved as a checkpoint; training goes on with the weights. The
same values under every strategy: each device keeps the averages of its own copy.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf


def decay_at(momentum: float, step: Any) -> Any:
    """The decay of the step-th update (from 1): at first less than `momentum`.

    min(momentum, (1 + step) / (10 + step)), as tf.train.ExponentialMovingAverage: otherwise the
    average of a short run would be mostly its random start.
    """
    step = tf.cast(step, tf.float32)
    return tf.minimum(momentum, (1.0 + step) / (10.0 + step))


class Averages:
    """One average, float32, for every weight given; make them in the strategy's scope."""

    def __init__(self, weights: Sequence[keras.Variable], momentum: float):
        self.weights, self.momentum = list(weights), momentum
        self.values = [
            keras.Variable(
                keras.ops.convert_to_numpy(weight), trainable=False, name=f"average_{number}"
            )
            for number, weight in enumerate(self.weights)
        ]

    def update(self, step: Any) -> None:
        """average = decay * average + (1 - decay) * weight, after optimizer step `step` (from 1).

        To be called in a replica's context.
        """
        pairs = [
            (average.value, weight.value)
            for average, weight in zip(self.values, self.weights, strict=True)
        ]

        def move(average: Any, weight: Any, decay: Any) -> Any:
            return average.assign(decay * average + (1.0 - decay) * weight)

        def on_each_device(strategy: Any, decay: Any) -> None:
            for average, weight in pairs:
                strategy.extended.update(average, move, args=(weight, decay), group=False)

        decay = decay_at(self.momentum, step)
        tf.distribute.get_replica_context().merge_call(on_each_device, args=(decay,))

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the weights are the averages; after it they are, to the bit, what they were."""
        kept = [weight.numpy() for weight in self.weights]
        for weight, average in zip(self.weights, self.values, strict=True):
            weight.assign(average.numpy())
        try:
            yield
        finally:
            for weight, value in zip(self.weights, kept, strict=True):
                weight.assign(value)
