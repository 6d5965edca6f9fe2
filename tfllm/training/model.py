"""The Keras model that `model.fit` trains: one optimizer step with all that transformers need.

It differs from `keras.Model.train_step` in six points: gradients of embeddings are made dense
(Keras' Adam adds the squares of repeated rows instead of squaring their sum), micro-batches
are accumulated inside the step, every target counts alike whatever its micro-batch or device,
gradients are summed over devices before they are clipped, their norm is reported, and the logs are
those of the step, not running means.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from keras import tree

from tfllm import keras_internals
from tfllm.tasks.features import IGNORED
from tfllm.training.averages import Averages

# Replica ids are multiplied by it before they are added to a dropout's seed: odd and large, so that
# seeds of other layers are not met.
REPLICA_SEED = 0x9E3779B1

# A log beside those of `train_step`: the seconds that this process waited for the step's batch.
INPUT_WAIT = "input_wait"

Logs = dict[str, Any]


class ReplicatedModel(keras_internals.BuiltModel):
    """A model whose `fit` works under every `tf.distribute` strategy.

    Keras 3's own step function hands PerReplica values to reductions that refuse them under
    MultiWorkerMirroredStrategy, and puts `merge_call` into a loop for `steps_per_execution`.
    `train_step` must return values that are the same on every replica.
    """

    steps_per_call: Callable[[], int] | None = None
    """How many steps the next call of `fit`'s function does; None: one."""
    step_logs: Logs = {}
    """The logs of the last call's steps, each [steps], and INPUT_WAIT."""
    train_function: Any
    log_names: tuple[str, ...] = ("loss", "gradient_norm")
    """The keys that `train_step` returns, each a float32 scalar."""

    def make_train_function(self, force: bool = False) -> None:
        if self.train_function is not None and not force:
            return
        strategy = self.distribute_strategy
        local = strategy.experimental_local_results

        def one(iterator: Any) -> list[Any]:
            asked = tf.timestamp()
            with tf.control_dependencies([asked]):
                data = next(iterator)
            parts = [part for one in tree.flatten(data) for part in local(one)]
            with tf.control_dependencies(parts):
                waited = tf.timestamp() - asked
            logs = strategy.run(self.train_step, args=(data,))
            assert set(logs) == set(self.log_names), logs
            # Every replica has the same values: those of the first that is here.
            values = [local(logs[name])[0] for name in self.log_names]
            return [tf.cast(value, tf.float32) for value in (*values, waited)]

        def single(iterator: Any) -> list[Any]:
            return [value[None] for value in one(iterator)]

        def several(iterator: Any, count: Any) -> list[Any]:
            def body(step: Any, results: list[Any]) -> tuple[Any, list[Any]]:
                values = zip(results, one(iterator), strict=True)
                return step + 1, [result.write(step, value) for result, value in values]

            names = (*self.log_names, INPUT_WAIT)
            empty = [tf.TensorArray(tf.float32, size=count) for _ in names]
            _, results = tf.while_loop(
                lambda step, _: step < count, body, (0, empty), parallel_iterations=1
            )
            return [result.stack() for result in results]

        if not self.run_eagerly:
            single = tf.function(single, reduce_retracing=True, autograph=False)
            several = tf.function(several, reduce_retracing=True, autograph=False)

        def function(iterator: Any) -> Logs:
            count = 1 if self.steps_per_call is None else self.steps_per_call()
            try:
                rows = single(iterator) if count == 1 else several(iterator, tf.constant(count))
            except tf.errors.OutOfRangeError:
                raise StopIteration from None
            self.step_logs = dict(zip((*self.log_names, INPUT_WAIT), rows, strict=True))
            return {name: self.step_logs[name][-1] for name in self.log_names}

        self.train_function = function


@keras.saving.register_keras_serializable(package="tfllm")
class TrainingModel(ReplicatedModel):
    """A functional model with its own `train_step`: `TrainingModel(model.input, model.output)`.

    The loss is a `tfllm.tasks.losses.TaskLoss`: its `parts` is the mean over what counts, and its
    `counts` says how much each target does, so that parts of a batch are weighed against one
    another; a loss that adds several means returns a structure (a dict, say) of both. Of Keras' own
    losses all targets but -100 count alike.
    """

    micro_batches: int = 1
    clip_norm: float | None = None
    averages: Averages | None = None
    """Moving averages of the weights, where the run keeps them."""
    stop_flag: Any = None
    """A local variable: above 0 it asks all workers to stop after the step (log "stop")."""

    def train_step(self, data: Any) -> dict[str, Any]:
        """One optimizer step over a global batch; logs: loss, gradient_norm (and stop).

        `data`: inputs, targets and, with several replicas, 1.0 per row, or 0.0 for rows that only
        keep a replica busy for which the batch has none.
        """
        x, y, rows = keras.utils.unpack_x_y_sample_weight(data)
        context = tf.distribute.get_replica_context()
        replicas = context.num_replicas_in_sync
        real = 1.0 if rows is None else tf.reduce_max(tf.cast(rows, tf.float32))
        total = None
        if self.micro_batches > 1 or replicas > 1:
            total = tree.map_structure(lambda count: real * count, self._counted(y))
        if replicas > 1:
            total = context.all_reduce("SUM", total)
        loss, gradients = self._accumulated(x, y, total, real)
        stop = [] if self.stop_flag is None else [self.stop_flag.read_value()]
        if replicas > 1:
            loss, *stop_and_gradients = context.all_reduce("SUM", [loss, *stop, *gradients])
            stop, gradients = stop_and_gradients[: len(stop)], stop_and_gradients[len(stop) :]
        optimizer = self.optimizer
        norm = tf.linalg.global_norm(gradients) / unscaled(optimizer, 1.0)
        if self.clip_norm is not None:
            factor = self.clip_norm / tf.maximum(norm, self.clip_norm)  # NaN stays NaN
            inner(optimizer).gradient_factor = factor
        inner(optimizer).gradients_reduced = True
        optimizer.apply_gradients(zip(gradients, self.trainable_weights, strict=True))
        if self.averages is not None:
            self.averages.update(inner(optimizer).iterations.value)
        return dict(zip(self.log_names, [loss, norm, *stop], strict=True))

    def settle(self) -> None:
        """Variables are up to the last step here; with Keras on JAX they may not be."""

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        """Inside, the model has its averaged weights, where the run keeps such."""
        return contextlib.nullcontext() if self.averages is None else self.averages.in_place()

    def _counted(self, y: Any) -> Any:
        """What the means of the loss over `y` are divided by: a scalar, or a structure of them."""
        counts = getattr(self.loss, "counts", counted)(y)
        return tree.map_structure(lambda each: tf.reduce_sum(tf.cast(each, tf.float32)), counts)

    def _means(self, y: Any, outputs: Any) -> Any:
        """The means of the loss, in the structure of `_counted`."""
        return getattr(self.loss, "parts", self.loss.call)(y, outputs)

    def _gradients(self, x: Any, y: Any, share: Any = None) -> tuple[Any, list[Any]]:
        """The loss, its means times `share`, and its dense gradients (scaled, for float16)."""
        variables = self.trainable_weights
        with tf.GradientTape() as tape:
            outputs = self(x, training=True)
            # Not `compute_loss`, which divides some losses by the number of devices.
            means = tree.map_structure(tf.reduce_mean, self._means(y, outputs))
            if share is not None:
                means = tree.map_structure(lambda part, mean: part * mean, share, means)
            loss = tf.add_n(tree.flatten(means))
            scaled = self.optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, [variable.value for variable in variables])
        dense = [
            tf.zeros(variable.shape) if gradient is None else tf.convert_to_tensor(gradient)
            for gradient, variable in zip(gradients, variables, strict=True)
        ]
        return loss, dense

    def _accumulated(self, x: Any, y: Any, total: Any, real: Any) -> tuple[Any, list[Any]]:
        """The same over micro-batches, one after the other, each weighted by what counts in it.

        `total`: what counts in the whole batch; None: this is all of it. `real`: 1.0, or 0.0 where
        these rows belong to no batch.
        """
        if total is None:
            return self._gradients(x, y)
        rows = tf.shape(tree.flatten(x)[0])[0]
        loss, gradients = 0.0, None
        for part in range(self.micro_batches):
            start, end = rows * part // self.micro_batches, rows * (part + 1) // self.micro_batches
            # Fewer rows than parts: a part without any computes one that counts for nothing.
            own = real * tf.cast(end > start, tf.float32)
            start, end = tf.minimum(start, rows - 1), tf.maximum(end, start + 1)
            x_part, y_part = tree.map_structure(lambda value: value[start:end], (x, y))  # noqa: B023
            share = tree.map_structure(
                lambda count, whole: tf.math.divide_no_nan(own * count, whole),  # noqa: B023
                self._counted(y_part), total,
            )  # fmt: skip
            # Without the dependency all parts would run, and take memory, at once.
            with tf.control_dependencies(gradients or []):
                x_part = tree.map_structure(tf.identity, x_part)
                part_loss, part_gradients = self._gradients(x_part, y_part, share)
            loss = loss + part_loss
            gradients = [
                new if gradients is None else gradients[i] + new
                for i, new in enumerate(part_gradients)
            ]
        assert gradients is not None
        return loss, gradients


def counted(y: Any) -> Any:
    """1.0 for every target that counts in the loss, 0.0 for ignored ones, flat."""
    flat = tf.reshape(y, [-1])
    return tf.cast(tf.not_equal(flat, tf.cast(IGNORED, flat.dtype)), tf.float32)


def inner(optimizer: Any) -> Any:
    """The optimizer inside the loss scaling of float16, or the optimizer itself."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def unscaled(optimizer: Any, value: float) -> Any:
    """What a loss of `value` becomes by float16's loss scaling."""
    return optimizer.scale_loss(tf.constant(value)) if inner(optimizer) is not optimizer else value


def fold_replica_into_dropout(model: keras.Model) -> int:
    """Makes every seed generator of `model` differ by replica; returns how many there are.

    Keras mirrors their states, so that all replicas would draw the same mask. The first replica
    draws what a single device would.
    """
    generators = keras_internals.seed_generators(model)
    for generator in generators:
        draw = functools.partial(_next_of_replica, generator)
        keras_internals.override_next(generator, draw)
    return len(generators)


def _next_of_replica(generator: Any, ordered: bool = True) -> Any:
    seed = type(generator).next(generator, ordered)
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return seed
    replica = tf.cast(context.replica_id_in_sync_group, seed.dtype)
    return seed + tf.stack([replica * tf.constant(REPLICA_SEED, seed.dtype), 0 * replica])
