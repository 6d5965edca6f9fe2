"""What is told of a run beside its losses: use of the machine, waiting, memory, energy, samples."""

from __future__ import annotations

import logging
import resource
import sys
from pathlib import Path
from typing import Any

from tfllm.data.batching import Batch
from tfllm.tasks.base import Task
from tfllm.training.measuring import Validation
from tfllm.training.monitoring.energy import Meter
from tfllm.training.monitoring.logs import Log
from tfllm.training.monitoring.samples import markdown, samples
from tfllm.training.monitoring.utilization import matrix_rate, work
from tfllm.training.recipe import TrainSettings

GIGABYTE = 1e9


class Watch:
    """Counts over the steps since the last log line, and over the run."""

    def __init__(
        self,
        model: Any,
        precision: str,
        replicas: int,
        target_share: float,
        settings: TrainSettings,
    ):
        """`target_share`: the part of the tokens that a model with the input `positions` scores."""
        self.work = work(model, target_share)
        self.rate = matrix_rate(precision, bool(_gpus())) * (replicas if _gpus() else 1)
        self._meter = Meter(settings.carbon_intensity).start()
        self._flops = self._waited = 0.0
        self._whole_flops = self._whole_waited = self._whole_seconds = 0.0

    def add(self, batch: Batch, waited: float) -> None:
        """One step's batch, and the seconds that the step waited for it."""
        if self.work is not None:
            self._flops += self.work.of(batch.tokens, len(batch.rows))
        self._waited += float(waited)

    def values(self, seconds: float) -> dict[str, float]:
        """Of the `seconds` since the last call: mfu, input_wait (0 to 1), memory_gigabytes."""
        seconds = max(seconds, 1e-9)
        values = {"input_wait": self._waited / seconds, "memory_gigabytes": memory() / GIGABYTE}
        if self.work is not None:
            values = {"mfu": self._flops / seconds / self.rate, **values}
        self._whole_flops += self._flops
        self._whole_waited += self._waited
        self._whole_seconds += seconds
        self._flops = self._waited = 0.0
        return values

    def summary(self) -> dict[str, Any]:
        """For summary.json; ends the measurement of energy."""
        seconds = max(self._whole_seconds, 1e-9)
        return {
            "mfu": self._whole_flops / seconds / self.rate if self.work is not None else None,
            "matrix_gigaflops_per_second": self.rate / 1e9,
            "input_wait": self._whole_waited / seconds,
            "peak_memory_gigabytes": peak_memory() / GIGABYTE,
            "energy": self._meter.stop(),
        }


def target_share(task: Task) -> float:
    """The part of the tokens that a task's model scores where it is trained on some alone."""
    return getattr(task, "mask_probability", 1.0)


def write_samples(log: Log, step: int, validation: Validation, model: Any, count: int) -> None:
    """The model's answers to the first `count` validation examples, into the log's TensorBoard.

    A fault in showing them ends no run: it is told in their place.
    """
    if not count:
        return
    try:
        text = markdown(samples(validation, model, count))
    except Exception as error:
        logging.getLogger(__name__).warning("No sample predictions: %r", error)
        text = f"No sample predictions: {type(error).__name__}"
    log.text(step, "samples", text)


def memory() -> int:
    """Bytes in use: of the GPUs where there are some, else resident in this process."""
    if gpus := _gpus():
        return sum(_gpu_memory(gpu, "current") for gpu in gpus)
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return peak_memory()
    return pages * resource.getpagesize()


def peak_memory() -> int:
    """The most that was in use so far, in bytes."""
    if gpus := _gpus():
        return sum(_gpu_memory(gpu, "peak") for gpu in gpus)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _gpus() -> list[Any]:
    import tensorflow as tf

    return tf.config.list_logical_devices("GPU")


def _gpu_memory(gpu: Any, which: str) -> int:
    import tensorflow as tf

    return int(tf.config.experimental.get_memory_info(gpu.name.split("device:")[-1])[which])
