"""TensorFlow's profile of some steps of a run, for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf


class ProfileSteps(keras.callbacks.Callback):
    """Profiles some steps of a run into a folder.

    Args:
        first: The first step, counted from 1.
        last: The last step, included.
        folder: TensorBoard's directory.
        done: Steps done before a run was resumed.
    """

    def __init__(self, first: int, last: int, folder: Path, done: int = 0):
        super().__init__()
        self.first, self.last, self.folder = first, last, folder
        self._done = done
        self._is_on = False

    def on_train_batch_begin(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Start the profiler at the first step to profile."""
        # `batch` counts the steps of this fit; with several steps a call, those before the call.
        if not self._is_on and self.first <= self._done + batch + 1 <= self.last:
            tf.profiler.experimental.start(str(self.folder))
            self._is_on = True

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Stop the profiler after the last step to profile."""
        if self._is_on and self._done + batch + 1 >= self.last:
            self._stop()

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Stop the profiler."""
        self._stop()

    def _stop(self) -> None:
        if self._is_on:
            self._is_on = False
            tf.profiler.experimental.stop()
