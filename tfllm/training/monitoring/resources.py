"""The resources that a run uses: FLOPs, time waiting for input, memory, energy."""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from tfllm.data.batching import Batch
from tfllm.tasks.base import Task
from tfllm.training.monitoring.energy import EnergyMeter
from tfllm.training.monitoring.utilization import matrix_rate, step_flops
from tfllm.training.recipe import TrainSettings

GIGABYTE = 1e9


class ResourceMonitor:
    """Sums over the steps since the last log line, and over the run."""

    def __init__(
        self,
        model: keras.Model,
        precision: str,
        replicas: int,
        target_share: float,
        settings: TrainSettings,
    ):
        """`target_share`: the share of tokens that a model with the input `positions` scores."""
        self.step_flops = step_flops(model, target_share)
        self.rate = matrix_rate(precision, bool(_gpus())) * (replicas if _gpus() else 1)
        self._meter = EnergyMeter(settings.carbon_intensity).start()
        self._flops = self._waited = 0.0
        self._total_flops = self._total_waited = self._total_seconds = 0.0

    def add(self, batch: Batch, waited: float) -> None:
        """Add one step.

        Args:
            batch: Its batch.
            waited: Seconds that it waited for the batch.
        """
        if self.step_flops is not None:
            self._flops += self.step_flops.of_batch(batch.tokens, len(batch.rows))
        self._waited += float(waited)

    def values(self, seconds: float) -> dict[str, float]:
        """Compute mfu, input_wait (0 to 1) and memory_gigabytes over the last `seconds`."""
        seconds = max(seconds, 1e-9)
        values = {"input_wait": self._waited / seconds, "memory_gigabytes": memory() / GIGABYTE}
        if self.step_flops is not None:
            values = {"mfu": self._flops / seconds / self.rate, **values}
        self._total_flops += self._flops
        self._total_waited += self._waited
        self._total_seconds += seconds
        self._flops = self._waited = 0.0
        return values

    def summary(self) -> dict[str, Any]:
        """Stop measuring energy and return the values for summary.json."""
        seconds = max(self._total_seconds, 1e-9)
        return {
            "mfu": self._total_flops / seconds / self.rate if self.step_flops is not None else None,
            "matrix_gigaflops_per_second": self.rate / 1e9,
            "input_wait": self._total_waited / seconds,
            "peak_memory_gigabytes": peak_memory() / GIGABYTE,
            "energy": self._meter.stop(),
        }


def target_share(task: Task) -> float:
    """Return the share of tokens that a task's model scores."""
    return getattr(task, "mask_probability", 1.0)


def memory() -> int:
    """Return the bytes in use: of the GPUs if there are any, else resident in this process."""
    if gpus := _gpus():
        return sum(_gpu_memory(gpu, "current") for gpu in gpus)
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return peak_memory()
    return pages * resource.getpagesize()


def peak_memory() -> int:
    """Return the most bytes in use so far."""
    if gpus := _gpus():
        return sum(_gpu_memory(gpu, "peak") for gpu in gpus)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _gpus() -> list[Any]:
    return tf.config.list_logical_devices("GPU")


def _gpu_memory(gpu: Any, which: str) -> int:
    return int(tf.config.experimental.get_memory_info(gpu.name.split("device:")[-1])[which])
