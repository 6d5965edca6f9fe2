"""The callbacks of a caller of `train`, called by the run's epochs.

A run is one epoch of `model.fit`, because its epochs have unlike numbers of batches and may be
resumed in their midst. Here callbacks hear of the run's own: `on_epoch_begin` and `on_epoch_end` of
each, with its number and `val_` logs where the validation data were measured in it, batches
numbered within the epoch, and `stop_training` heeded. After `--resume` the numbers go on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np


class Epochs:
    """Keras callbacks of a run: what to call, and the logs of the epoch so far."""

    def __init__(self, callbacks: Sequence[keras.callbacks.Callback], epochs: int | None):
        """`epochs`: how many there will be, for the callbacks' `params`; None: not known."""
        self.callbacks, self.epochs = list(callbacks), epochs
        self._called: Any = None
        self._open: int | None = None  # the epoch that has begun and not ended
        self._sums: dict[str, list[float]] = {}
        self._measured: dict[str, float] = {}

    def begin(self, model: Any, epoch: int, steps: int) -> None:
        """Before the first step, in `epoch` of `steps` batches."""
        self._called = keras.callbacks.CallbackList(
            self.callbacks, model=model, epochs=self.epochs, steps=steps, verbose=0
        )
        self._called.on_train_begin()
        self._begin_epoch(epoch, steps)

    def begin_batch(self, epoch: int, batch: int, steps: int) -> None:
        """Before a batch of an epoch of `steps` batches."""
        if self._open is None:
            self._begin_epoch(epoch, steps)
        self._called.on_train_batch_begin(batch)

    def end_batch(self, batch: int, logs: Mapping[str, Any], all_steps: Mapping[str, Any]) -> None:
        """After a batch, or the last of several; `all_steps`: the logs of each, [steps]."""
        for name in logs:
            self._sums.setdefault(name, []).extend(np.ravel(all_steps[name]).tolist())
        self._called.on_train_batch_end(batch, dict(logs))

    def validated(self, measured: Mapping[str, float | None]) -> None:
        """After the validation data were measured; undefined measures are NaN."""
        logs = {name: math.nan if value is None else value for name, value in measured.items()}
        self._measured = {f"val_{name}": value for name, value in logs.items()}
        self._called.on_test_begin()
        self._called.on_test_end(logs)

    def end_epoch(self) -> None:
        """After the last step of an epoch, or of a run that ends in its midst."""
        if self._open is None:
            return
        epoch, self._open = self._open, None
        means = {name: float(np.mean(values)) for name, values in self._sums.items()}
        self._called.on_epoch_end(epoch, {**means, **self._measured})

    def end(self) -> None:
        """After the last step of all."""
        self._called.on_train_end()

    def _begin_epoch(self, epoch: int, steps: int) -> None:
        self._open, self._sums, self._measured = epoch, {}, {}
        for callback in self.callbacks:
            callback.params["steps"] = steps
        self._called.on_epoch_begin(epoch)
