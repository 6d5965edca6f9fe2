"""TensorFlow's profile of some steps of a run, for TensorBoard's profile tab."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras


class Profile(keras.callbacks.Callback):
    """Profiles from step `first` to step `last` of the run, counted from 1, into `folder`.

    `done`: steps that were done before (of a run that is resumed).
    """

    def __init__(self, first: int, last: int, folder: Path, done: int = 0):
        super().__init__()
        self.first, self.last, self.folder = first, last, folder
        self._done = done
        self._on = False

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        # `batch` counts the steps of this fit; with several steps a call, those before the call.
        if not self._on and self.first <= self._done + batch + 1 <= self.last:
            import tensorflow as tf

            tf.profiler.experimental.start(str(self.folder))
            self._on = True

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self._on and self._done + batch + 1 >= self.last:
            self._stop()

    def on_train_end(self, logs: Any = None) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._on:
            import tensorflow as tf

            self._on = False
            tf.profiler.experimental.stop()
