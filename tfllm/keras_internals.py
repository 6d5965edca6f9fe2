"""Every private part of Keras that tfllm uses, each behind a small named function or class.

Written for and tested with the Keras versions of `KERAS`; `tests/test_keras_internals.py` names a
part that another version has changed. Imports only Keras, because layers and models, which run on
every backend, build on it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import keras
from keras import ops
from keras.src.backend.common import global_state

# The tested range, as in setup.cfg: from the first, below the second.
KERAS = ("3.15", "3.17")
# Where Keras lists the variables that were created in a stateless scope.
UNINITIALIZED = "uninitialized_variables"


def all_layers(model: keras.Layer, include_self: bool = True) -> list[keras.Layer]:
    """List a model's or layer's layers at every depth, each once.

    Args:
        model: The model or layer.
        include_self: Whether it is in the list itself.
    """
    return list(model._flatten_layers(include_self=include_self))


def seed_generators(model: keras.Layer) -> list[keras.random.SeedGenerator]:
    """List the seed generators of all dropout layers in a model, each once."""
    generators = [getattr(layer, "seed_generator", None) for layer in all_layers(model)]
    return list({id(each): each for each in generators if each is not None}.values())


def override_call(layer: keras.Layer, call: Callable[..., Any]) -> None:
    """Replace what a built layer computes, in this instance alone, until `restore_call`.

    Args:
        layer: The layer.
        call: Computes in place of `layer.call`.
    """
    layer.call = call


def restore_call(layer: keras.Layer) -> None:
    """Undo `override_call`; do nothing where it was not overridden."""
    layer.__dict__.pop("call", None)


def override_next(generator: keras.random.SeedGenerator, draw: Callable[..., Any]) -> None:
    """Replace what a seed generator draws: `draw(ordered=True)` returns a seed, an int [2]."""
    generator.next = draw


@contextlib.contextmanager
def fixed_seeds(
    generators: Sequence[keras.random.SeedGenerator], seeds: Sequence[Any]
) -> Iterator[None]:
    """Make every generator draw one seed inside the block.

    Args:
        generators: The generators.
        seeds: The seed of each, an int [2].
    """
    before = [vars(generator).get("next") for generator in generators]
    for generator, seed in zip(generators, seeds, strict=True):
        override_next(generator, lambda ordered=True, seed=seed: seed)
    try:
        yield
    finally:
        for generator, own in zip(generators, before, strict=True):
            del generator.next
            if own is not None:
                override_next(generator, own)


def backend_variable(variable: keras.Variable) -> Any:
    """Return the variable of the backend: of TensorFlow, the `tf.Variable`."""
    return variable._value


@contextlib.contextmanager
def deferred_values() -> Iterator[list[keras.Variable]]:
    """Create variables without values inside the block: nothing is drawn, no memory is taken.

    Yields:
        A list that has the variables after the block, for `set_value` and `initialize`.
    """
    created: list[keras.Variable] = []
    others = global_state.get_global_attribute(UNINITIALIZED, [])
    global_state.set_global_attribute(UNINITIALIZED, [])
    try:
        with keras.StatelessScope(initialize_variables=False):
            yield created
        created += global_state.get_global_attribute(UNINITIALIZED)
    finally:
        global_state.set_global_attribute(UNINITIALIZED, others)


def set_value(variable: keras.Variable, value: Any) -> None:
    """Set a variable, with or without a value, to an array or a tensor of its shape."""
    if variable._value is not None:
        variable.assign(value)
        return
    variable._initialize(variable._convert_to_tensor(value, dtype=variable.dtype))
    variable._initializer = None


def initialize(variables: Sequence[keras.Variable]) -> None:
    """Give those of variables that have no value yet the one of their initializers."""
    for variable in variables:
        if variable._value is None:
            variable._deferred_initialize()


def stored_matrix(layer: keras.Layer, name: str) -> keras.Variable | None:
    """Return the variable of a layer's matrix, without its LoRA adapter.

    The public property of this name is a tensor where the layer has an adapter: their sum.

    Args:
        layer: The layer.
        name: "kernel" or "embeddings".

    Returns:
        The variable; None where the layer has no such matrix.
    """
    return getattr(layer, f"_{name}", None)


def release_kernel(layer: keras.Layer) -> None:
    """Remove the kernel of a Dense layer, so that its memory is freed with the last reference."""
    layer._untrack_variable(layer._kernel)
    layer._kernel = None


def call_options(layer: keras.Layer) -> list[dict[str, Any]]:
    """Return the keyword arguments of every symbolic call of a layer in a functional model."""
    return [node.arguments.kwargs for node in layer._inbound_nodes]


def set_direction(metric: keras.metrics.Metric, direction: Literal["up", "down"]) -> None:
    """Set which values of a metric are better, for Keras' callbacks and tuners.

    Args:
        metric: The metric.
        direction: "up" where higher values are better, else "down".
    """
    metric._direction = direction


class BuiltModel(keras.Model):
    """A model that is built before `fit`: no batch is taken from the dataset to build it.

    Keras would take one and reduce it over the replicas of a `tf.distribute` strategy.
    """

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        pass


class MultiHeadAttentionBase(keras.layers.MultiHeadAttention):
    """`keras.layers.MultiHeadAttention` whose attention function, `attend`, a subclass defines."""

    def attend(
        self, query: Any, key: Any, value: Any, attention_mask: Any, training: bool | None
    ) -> tuple[Any, Any]:
        """Compute attention: see `tfllm.layers.attention.MultiHeadAttention.attend`."""
        raise NotImplementedError

    def scale_query(self, query: Any) -> Any:
        """Multiply queries (B, T, N, H) by the inverse root of their width H."""
        return ops.multiply(query, ops.cast(self._inverse_sqrt_key_dim, query.dtype))

    def drop_weights(self, weights: Any, training: bool | None) -> Any:
        """Apply the layer's dropout to attention weights (B, N, T, S)."""
        return self._dropout_layer(weights, training=training)

    def _compute_attention(
        self,
        query: Any,
        key: Any,
        value: Any,
        attention_mask: Any = None,
        training: bool | None = None,
        return_attention_scores: bool = False,
    ) -> tuple[Any, Any]:
        return self.attend(self.scale_query(query), key, value, attention_mask, training)


class AdamWBase(keras.optimizers.AdamW):
    """`keras.optimizers.AdamW` with access to its moments, and clipping of summed gradients.

    It clips the sum of the gradients over all devices, where Keras clips each device's part.
    """

    gradients_reduced = False
    """Whether the training step itself sums the gradients over all devices."""

    def moments(self, variable: keras.Variable) -> tuple[Any, Any]:
        """Return the moving averages of a variable's gradient and of its square."""
        index = self._get_variable_index(variable)
        return self._momentums[index], self._velocities[index]

    def num_replicas(self) -> int:
        """Return the number of devices that each compute a part of the gradients."""
        return 1

    def sum_over_replicas(self, gradients: Any) -> Any:
        """Return the sum of each gradient over all devices."""
        return gradients

    def _clip_gradients(self, grads: Any) -> Any:
        if self._clips_sum():
            grads = self.sum_over_replicas(grads)
        return super()._clip_gradients(grads)

    def _clips_sum(self) -> bool:
        """Whether `_clip_gradients`, which Keras calls first, sums over devices."""
        clips = any((self.clipnorm, self.global_clipnorm, self.clipvalue))
        return clips and self.num_replicas() > 1 and not self.gradients_reduced

    def _all_reduce_sum_gradients(self, grads_and_vars: Any) -> Any:
        if self.gradients_reduced or self._clips_sum():
            return list(grads_and_vars)
        return super()._all_reduce_sum_gradients(grads_and_vars)
