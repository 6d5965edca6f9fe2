"""A Keras callback that measures the steps after the warm-up, by the clock and by CPU time."""

from __future__ import annotations

import time

import keras


class Clock(keras.callbacks.Callback):
    """Starts after the warm-up steps, stops with the last step (not with the last checkpoint)."""

    def __init__(self, warm_up_steps: int):
        super().__init__()
        self.warm_up_steps, self.losses = warm_up_steps, []
        self.start = self.end = (0.0, 0.0)

    def on_train_batch_begin(self, batch, logs=None):
        if batch == self.warm_up_steps:
            self.start = (time.perf_counter(), time.process_time())

    def on_train_batch_end(self, batch, logs=None):
        self.losses.append(float(logs["loss"]))
        self.end = (time.perf_counter(), time.process_time())

    def seconds(self) -> list[float]:
        """Of the clock, and of all threads of the process."""
        return [end - start for start, end in zip(self.start, self.end, strict=True)]
