"""The devices that a run computes on (`train.strategy`), and this process's part of them.

TPU follows TensorFlow's documented interface and has not been run: no such machine was at hand.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfllm.errors import SettingError, TrainingFailed, did_you_mean
from tfllm.training.backend import JAX_STRATEGIES
from tfllm.training.distribution import cluster as clusters
from tfllm.training.distribution import jax_devices, rendezvous
from tfllm.training.distribution.cluster import Cluster

log = logging.getLogger(__name__)

STRATEGIES = ("auto", "one", "mirrored", "multi_worker", "tpu")

WORKER_TIMEOUT = 1800.0  # seconds: clusters may start their machines one after the other

TPU_ADDRESS = "TPU_NAME"  # the variable that names a TPU elsewhere

# Workers send one another blocks of int32 of these sizes: short messages, variables.
WORD, SMALL, LARGE = 4, 2**10, 2**20


@dataclass(frozen=True)
class Devices:
    """The devices of a run, of all workers, as a `tf.distribute` strategy."""

    strategy: tf.distribute.Strategy | jax_devices.JaxStrategy
    cluster: Cluster | None = None
    """The workers; None for a run of one process."""

    @property
    def replicas(self) -> int:
        """Copies of the model, over all workers; each takes its part of every batch."""
        return self.strategy.num_replicas_in_sync

    @property
    def own_replicas(self) -> range:
        """The numbers of the replicas that this process feeds."""
        own = self.replicas // (len(self.cluster) if self.cluster else 1)
        first = own * (self.cluster.index if self.cluster else 0)
        return range(first, first + own)

    @property
    def is_chief(self) -> bool:
        """Whether this process writes the run directory."""
        return self.cluster is None or self.cluster.is_chief

    def fit_scope(self) -> contextlib.AbstractContextManager[None]:
        """Return the context that `fit` must run in."""
        on_jax = isinstance(self.strategy, jax_devices.JaxStrategy)
        return self.strategy.scope() if on_jax else contextlib.nullcontext()

    def distribute(self, dataset: Any) -> Any:
        """Turn a dataset of `tfllm.data.feeding` into what `fit` takes for these devices."""
        if isinstance(self.strategy, jax_devices.JaxStrategy):
            return jax_devices.pad_batches(dataset.as_numpy_iterator(), self.strategy.parts)
        if self.replicas == 1:
            return dataset
        return self.strategy.distribute_datasets_from_function(lambda _: dataset)

    def broadcast_from_chief(self, data: bytes = b"") -> bytes:
        """Return the chief's bytes on every worker; all must call it at the same point."""
        if self.cluster is None:
            return data
        words = np.zeros(-(-len(data) // WORD) if self.is_chief else 0, np.int32)
        words.view(np.uint8)[: len(data) if self.is_chief else 0] = np.frombuffer(
            data if self.is_chief else b"", np.uint8
        )
        first = np.concatenate([[len(data) if self.is_chief else 0], words[: SMALL - 1]])
        received = self._sum(first, SMALL)
        size, parts = int(received[0]), [received[1:]]
        for start in range(SMALL - 1, -(-size // WORD), LARGE):
            parts.append(self._sum(words[start : start + LARGE], LARGE))
        return np.concatenate(parts).tobytes()[:size]

    def _sum(self, values: np.ndarray, block: int) -> np.ndarray:
        """int32 values, padded to `block`, added up over the workers."""
        padded = np.zeros(block, np.int32)
        padded[: len(values)] = values
        return rendezvous.run_interruptibly(
            lambda: _all_reduce_function(self.strategy, block)(padded).numpy()
        )


@functools.cache
def _all_reduce_function(
    strategy: tf.distribute.Strategy, block: int
) -> Callable[[np.ndarray], tf.Tensor]:
    """A function that sums int32 [block] over the workers; they crash where sizes change."""

    @tf.function(input_signature=[tf.TensorSpec([block], tf.int32)])
    def total(values: tf.Tensor) -> tf.Tensor:
        def of_replica(values: tf.Tensor) -> tf.Tensor:
            context = tf.distribute.get_replica_context()
            # One replica of a worker contributes for all of it.
            local = context.replica_id_in_sync_group % len(strategy.extended.worker_devices)
            own = tf.where(local == 0, values, tf.zeros_like(values))
            return context.all_reduce("SUM", own)

        return strategy.experimental_local_results(strategy.run(of_replica, args=(values,)))[0]

    return total


def choose(
    name: str, model_devices: int | None = None, worker_timeout: float = WORKER_TIMEOUT
) -> Devices:
    """Choose the devices of `train.strategy`.

    Args:
        name: The setting.
        model_devices: With "model_parallel", the devices that share one copy of the model.
        worker_timeout: Seconds to wait for the other workers of a run.

    Returns:
        The devices, connected.

    Raises:
        SettingError: The machine has no such devices, or other workers have not connected in time.
    """
    check(name)
    if keras.backend.backend() == "jax":
        return Devices(jax_devices.choose(name, model_devices))
    cluster = clusters.find_cluster(os.environ)
    gpus = tf.config.list_logical_devices("GPU") if cluster is None else []
    if name == "tpu":
        return Devices(_tpu())
    if name == "multi_worker" or (name == "auto" and cluster is not None):
        return _multi_worker(cluster, worker_timeout)
    if cluster is not None:
        raise SettingError(
            f"train.strategy: {name}, but {clusters.VARIABLE} or Slurm names {len(cluster)} "
            "workers, which would each train a model of their own. Use train.strategy=multi_worker."
        )
    if name == "one" or (name == "auto" and len(gpus) < 2):
        return Devices(tf.distribute.get_strategy())
    devices = gpus or tf.config.list_logical_devices("CPU")
    if len(devices) < 2:
        raise SettingError(
            "train.strategy: mirrored needs two devices or more, this machine shows one. "
            "Use train.strategy=one."
        )
    return Devices(_mirrored(tuple(device.name for device in devices)))


def check(name: str) -> None:
    """Check a strategy's name against the Keras backend.

    Raises:
        SettingError: It is a strategy of another backend.
    """
    backend = keras.backend.backend()
    if name in JAX_STRATEGIES and backend != "jax":
        raise SettingError(
            f"train.strategy: {name} is Keras' own distribution (keras.distribution), which on the "
            f"backend '{backend}' changes nothing and says nothing: everything would run on one "
            "device. Set KERAS_BACKEND=jax, or use train.strategy=mirrored."
        )
    if name not in (*STRATEGIES, *JAX_STRATEGIES):
        known = (*STRATEGIES, *JAX_STRATEGIES)
        raise SettingError(
            f"train.strategy: '{name}' is not available. {did_you_mean(name, known)} "
            f"Use one of: {', '.join(known)}."
        )


@functools.cache
def _mirrored(devices: tuple[str, ...]) -> tf.distribute.Strategy:
    """One strategy for all runs of a process: a second one's collective operations would be taken
    for the first one's, which fails as "Shape mismatch in the collective instance"."""
    return tf.distribute.MirroredStrategy(list(devices))


@contextlib.contextmanager
def report_lost_workers(devices: Devices, directory: Path) -> Iterator[None]:
    """Raise the loss of another worker inside the block as TrainingFailed.

    Args:
        devices: The devices of the run.
        directory: Its directory, which the message names.

    Raises:
        TrainingFailed: A worker was lost; the message says how to resume.
    """
    if devices.cluster is None:
        yield
        return
    try:
        yield
    except tf.errors.OpError as error:
        text = error.message or type(error).__name__
        if not isinstance(error, _connection_errors()) and "ollective" not in text:
            raise
        raise TrainingFailed(
            f"Worker {devices.cluster.index} of {len(devices.cluster)} stops: another worker has "
            f"gone ({_cause(text)}). "
            f"Start all of them again with --output {directory} --resume."
        ) from None


def _cause(text: str) -> str:
    """The line of TensorFlow's message that says why."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    aborted = [line for line in lines if "aborted by" in line]
    return (aborted or lines or ["no reason given"])[0][:200]


def _connection_errors() -> tuple[type[Exception], ...]:
    """The errors of TensorFlow when the other end of a collective operation has gone."""
    errors = tf.errors
    return (
        errors.UnavailableError, errors.AbortedError, errors.CancelledError,
        errors.DeadlineExceededError,
    )  # fmt: skip


def _multi_worker(cluster: Cluster | None, seconds: float) -> Devices:
    if cluster is None:
        raise SettingError(
            f"train.strategy: multi_worker needs the workers' addresses in {clusters.VARIABLE}, or "
            "Slurm's variables with more than one task. On one machine, start them with: "
            "tfllm launch --workers 2 RECIPE"
        )
    return Devices(_connect(cluster, seconds), cluster)


# TensorFlow connects the workers of a process once: one strategy for all of its runs.
_connected: dict[Cluster, tf.distribute.Strategy] = {}


def _connect(cluster: Cluster, seconds: float) -> tf.distribute.Strategy:
    """Connect the workers, or return the strategy of those that are connected."""
    if cluster in _connected:
        return _connected[cluster]
    os.environ[clusters.VARIABLE] = cluster.tf_config()
    log.warning(
        "worker %d of %d (%s): waiting for the others",
        cluster.index, len(cluster), cluster.addresses[cluster.index],
    )  # fmt: skip
    rendezvous.wait_for_workers(cluster, seconds)
    try:
        with rendezvous.default_signals(cluster, seconds):
            _connected[cluster] = tf.distribute.MultiWorkerMirroredStrategy()
    except tf.errors.OpError as error:
        raise SettingError(
            f"{cluster.source}: TensorFlow cannot connect worker {cluster.index} "
            f"({cluster.addresses[cluster.index]}) with the others: {_cause(error.message or '')}. "
            "Check that all addresses are right and reachable from here."
        ) from None
    return _connected[cluster]


def _tpu() -> tf.distribute.Strategy:
    """Create a TPUStrategy as https://www.tensorflow.org/guide/tpu does. Not run."""
    if TPU_ADDRESS not in os.environ and importlib.util.find_spec("libtpu") is None:
        raise SettingError(
            "train.strategy: tpu, but this TensorFlow has no TPU runtime (no package libtpu) and "
            f"{TPU_ADDRESS} names no TPU. Run on a TPU host, or use train.strategy=auto."
        )
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(
            tpu=os.environ.get(TPU_ADDRESS, "local")
        )
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except (tf.errors.OpError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SettingError(
            f"train.strategy: tpu, but no TPU answers ({reason}). Run on a TPU host with a "
            "TensorFlow that has its runtime (libtpu), or use train.strategy=auto."
        ) from None
    return tf.distribute.TPUStrategy(resolver)
