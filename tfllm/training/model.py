"""The Keras model that `model.fit` trains: one optimizer step for transformers.

It differs from `keras.Model.train_step` in six points: gradients of embeddings are made dense
(Keras' Adam adds the squares of repeated rows instead of squaring their sum), micro-batches
are accumulated inside the step, every target counts alike whatever its micro-batch or device,
gradients are summed over devices before they are clipped, their norm is reported, and the logs are
those of the step, not running means.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf
from keras import tree

from tfllm import keras_internals
from tfllm.layers.types import Tensor
from tfllm.tasks.features import IGNORED
from tfllm.training.optimizers import WeightAverages

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
    train_function: Callable[[Iterator[Any]], Logs]
    log_names: tuple[str, ...] = ("loss", "gradient_norm")
    """The keys that `train_step` returns, each a float32 scalar."""

    def make_train_function(self, force: bool = False) -> None:
        """Build the function of one call, which may run several steps, as Keras' own does."""
        if self.train_function is not None and not force:
            return
        strategy = self.distribute_strategy
        local = strategy.experimental_local_results

        def run_step(iterator: Iterator[Any]) -> list[tf.Tensor]:
            started = tf.timestamp()
            with tf.control_dependencies([started]):
                data = next(iterator)
            parts = [part for values in tree.flatten(data) for part in local(values)]
            with tf.control_dependencies(parts):
                waited = tf.timestamp() - started
            logs = strategy.run(self.train_step, args=(data,))
            assert set(logs) == set(self.log_names), logs
            # Every replica has the same values: take those of the first local one.
            values = [local(logs[name])[0] for name in self.log_names]
            return [tf.cast(value, tf.float32) for value in (*values, waited)]

        def run_one(iterator: Iterator[Any]) -> list[tf.Tensor]:
            return [value[None] for value in run_step(iterator)]

        def run_several(iterator: Iterator[Any], count: tf.Tensor) -> list[tf.Tensor]:
            def body(
                step: tf.Tensor, results: list[tf.Tensor]
            ) -> tuple[tf.Tensor, list[tf.Tensor]]:
                values = zip(results, run_step(iterator), strict=True)
                return step + 1, [result.write(step, value) for result, value in values]

            names = (*self.log_names, INPUT_WAIT)
            empty = [tf.TensorArray(tf.float32, size=count) for _ in names]
            _, results = tf.while_loop(
                lambda step, _: step < count, body, (0, empty), parallel_iterations=1
            )
            return [result.stack() for result in results]

        if not self.run_eagerly:
            run_one = tf.function(run_one, reduce_retracing=True, autograph=False)
            run_several = tf.function(run_several, reduce_retracing=True, autograph=False)

        def function(iterator: Iterator[Any]) -> Logs:
            count = 1 if self.steps_per_call is None else self.steps_per_call()
            try:
                rows = (
                    run_one(iterator) if count == 1 else run_several(iterator, tf.constant(count))
                )
            except tf.errors.OutOfRangeError:
                raise StopIteration from None
            self.step_logs = dict(zip((*self.log_names, INPUT_WAIT), rows, strict=True))
            return {name: self.step_logs[name][-1] for name in self.log_names}

        self.train_function = function


@keras.saving.register_keras_serializable(package="tfllm")
class TrainingModel(ReplicatedModel):
    """A functional model with its own `train_step`: `TrainingModel(model.input, model.output)`.

    The loss is a `tfllm.tasks.losses.TaskLoss`: its `parts` are means over the counted targets, and
    its `counts` are the weights of the targets, by which parts of a batch are weighted. A loss that
    adds several means returns a structure (such as a dict) of both. With Keras' own losses all
    targets but -100 have the weight 1.
    """

    micro_batches: int = 1
    clip_norm: float | None = None
    averages: WeightAverages | None = None
    """Moving averages of the weights (`train.ema`)."""
    stop_flag: tf.Variable | None = None
    """A local variable; above 0, all workers stop after the step (log "stop")."""

    def train_step(self, data: Any) -> Logs:
        """Do one optimizer step over a global batch.

        Args:
            data: Inputs, targets and, with several replicas, float32 [B]: 1.0, or 0.0 for the
                filler rows of a replica for which the batch has none.

        Returns:
            The logs: loss, gradient_norm (and stop).
        """
        x, y, rows = keras.utils.unpack_x_y_sample_weight(data)
        context = tf.distribute.get_replica_context()
        replicas = context.num_replicas_in_sync
        real = 1.0 if rows is None else tf.reduce_max(tf.cast(rows, tf.float32))
        total = None
        if self.micro_batches > 1 or replicas > 1:
            total = tree.map_structure(lambda count: real * count, self._target_weights(y))
        if replicas > 1:
            total = context.all_reduce("SUM", total)
        loss, gradients = self._accumulate(x, y, total, real)
        stop = [] if self.stop_flag is None else [self.stop_flag.read_value()]
        if replicas > 1:
            loss, *stop_and_gradients = context.all_reduce("SUM", [loss, *stop, *gradients])
            stop, gradients = stop_and_gradients[: len(stop)], stop_and_gradients[len(stop) :]
        optimizer = self.optimizer
        norm = tf.linalg.global_norm(gradients) / scaled_loss(optimizer, 1.0)
        if self.clip_norm is not None:
            factor = self.clip_norm / tf.maximum(norm, self.clip_norm)  # NaN stays NaN
            inner_optimizer(optimizer).gradient_factor = factor
        inner_optimizer(optimizer).gradients_reduced = True
        optimizer.apply_gradients(zip(gradients, self.trainable_weights, strict=True))
        if self.averages is not None:
            self.averages.update(inner_optimizer(optimizer).iterations.value)
        return dict(zip(self.log_names, [loss, norm, *stop], strict=True))

    def settle(self) -> None:
        """Bring the variables up to the last step: nothing to do, except with Keras on JAX."""

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        """Inside, the model has its averaged weights, if there are any."""
        return contextlib.nullcontext() if self.averages is None else self.averages.swapped_in()

    def _target_weights(self, y: Tensor) -> Tensor:
        """The sums of weights that the losses over `y` are divided by: a scalar, or a structure."""
        counts = getattr(self.loss, "counts", target_weights)(y)
        return tree.map_structure(lambda each: tf.reduce_sum(tf.cast(each, tf.float32)), counts)

    def _means(self, y: Tensor, outputs: Tensor) -> Tensor:
        """The means of the loss, in the structure of `_target_weights`."""
        return getattr(self.loss, "parts", self.loss.call)(y, outputs)

    def _gradients(
        self, x: Tensor, y: Tensor, share: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """Compute the loss (its means times `share`) and dense gradients (scaled, for float16)."""
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

    def _accumulate(
        self, x: Tensor, y: Tensor, total: tf.Tensor, real: tf.Tensor
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """Accumulate loss and gradients over micro-batches, weighted by their targets.

        Args:
            x: The inputs.
            y: The targets.
            total: The weights of the whole batch; None: `y` is all of it.
            real: 1.0, or 0.0 for filler rows.
        """
        if total is None:
            return self._gradients(x, y)
        rows = tf.shape(tree.flatten(x)[0])[0]
        loss, gradients = 0.0, None
        for part in range(self.micro_batches):
            start, end = rows * part // self.micro_batches, rows * (part + 1) // self.micro_batches
            # With fewer rows than parts, an empty part computes one row with weight 0.
            own = real * tf.cast(end > start, tf.float32)
            start, end = tf.minimum(start, rows - 1), tf.maximum(end, start + 1)
            x_part, y_part = tree.map_structure(lambda value: value[start:end], (x, y))  # noqa: B023
            share = tree.map_structure(
                lambda count, whole: tf.math.divide_no_nan(own * count, whole),  # noqa: B023
                self._target_weights(y_part), total,
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


def target_weights(y: Tensor) -> Tensor:
    """Return 1.0 for every target, 0.0 for ignored ones, flat."""
    flat = tf.reshape(y, [-1])
    return tf.cast(tf.not_equal(flat, tf.cast(IGNORED, flat.dtype)), tf.float32)


def inner_optimizer(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """Return the optimizer inside a LossScaleOptimizer (float16), or the optimizer itself."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def scaled_loss(optimizer: keras.optimizers.Optimizer, value: float) -> tf.Tensor:
    """Return a loss of `value` after the loss scaling of float16.

    Args:
        optimizer: The optimizer, which scales losses if it is a LossScaleOptimizer.
        value: The loss.
    """
    return (
        optimizer.scale_loss(tf.constant(value))
        if inner_optimizer(optimizer) is not optimizer
        else value
    )


def fold_replica_into_dropout(model: keras.Model) -> int:
    """Make every seed generator of `model` differ by replica; return how many there are.

    Keras mirrors their states, so that all replicas would draw the same dropout mask. The first
    replica draws what a single device would.
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
