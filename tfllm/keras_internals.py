"""All private parts of Keras that training over several devices needs, in one place.

Written for and tested with the Keras versions of `KERAS`; `tests/test_keras_internals.py` names a
part that another version has changed. training/adamw.py uses the optimizer's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from keras import tree

# The tested range, as in setup.cfg: from the first, below the second.
KERAS = ("3.15", "3.17")

# Replica ids are multiplied by it before they are added to a dropout's seed: odd and large, so that
# seeds of other layers are not met.
REPLICA_SEED = 0x9E3779B1

# A log beside those of `train_step`: the seconds that this process waited for the step's batch.
INPUT_WAIT = "input_wait"

Logs = dict[str, Any]


class ReplicatedModel(keras.Model):
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

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        """Keras would take a batch and reduce it over the replicas; the model is built already."""

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


def fold_replica_into_dropout(model: keras.Model) -> int:
    """Makes every seed generator of `model` differ by replica; returns how many there are.

    Keras mirrors their states, so that all replicas would draw the same mask. The first replica
    draws what a single device would.
    """
    generators = {
        id(generator): generator
        for layer in model._flatten_layers()
        for generator in [getattr(layer, "seed_generator", None)]
        if generator is not None
    }
    for generator in generators.values():
        generator.next = functools.partial(_next_of_replica, generator)
    return len(generators)


def _next_of_replica(generator: Any, ordered: bool = True) -> Any:
    seed = type(generator).next(generator, ordered)
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return seed
    replica = tf.cast(context.replica_id_in_sync_group, seed.dtype)
    return seed + tf.stack([replica * tf.constant(REPLICA_SEED, seed.dtype), 0 * replica])
