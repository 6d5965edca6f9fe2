"""A Keras callback that measures the steps after the warm-up, by the clock and by CPU time."""

from __future__ import annotations

import time

import keras


class Clock(keras.callbacks.Callback):
    """Starts after the warm-up steps, stops where the last step begins: a run ends with its state
    written, which is no part of a step."""

    def __init__(self, warm_up_steps: int):
        super().__init__()
        self.warm_up_steps, self.losses = warm_up_steps, []
        self.begun = 0
        self.start = self.end = (0.0, 0.0)

    def on_train_batch_begin(self, batch, logs=None):
        self.begun += 1
        self.end = (time.perf_counter(), time.process_time())
        if self.begun == self.warm_up_steps + 1:
            self.start = self.end

    def on_train_batch_end(self, batch, logs=None):
        self.losses.append(float(logs["loss"]))

    def seconds(self) -> list[float]:
        """Of the clock, and of all threads of the process."""
        return [end - start for start, end in zip(self.start, self.end, strict=True)]
