"""Blocks that are recomputed in the backward pass: less memory for about a third more time.

Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost". Only the input of every block is
kept; its activations are recomputed for the gradient. `keras.remat` does so too, but a `Dropout`
inside draws another mask the second time, and the gradients are then those of another function.
Here the seeds are drawn once, outside, and passed to both passes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfllm.keras_internals import (
    all_layers,
    fixed_seeds,
    override_call,
    restore_call,
    seed_generators,
)
from tfllm.layers.blocks import EncoderBlock
from tfllm.layers.causal import CausalBlock

BLOCKS = (EncoderBlock, CausalBlock)


def install(model: keras.Model) -> int:
    """Have every block of a built model recomputed in the backward pass; return how many."""
    blocks: list[Any] = [x for x in all_layers(model) if isinstance(x, BLOCKS)]
    for block in blocks:
        override_call(block, functools.partial(_call, block))
    return len(blocks)


def remove(model: keras.Model) -> None:
    """Undo `install`."""
    for layer in all_layers(model):
        if isinstance(layer, BLOCKS):
            restore_call(layer)


def _call(block: Any, *arguments: Any, **options: Any) -> Any:
    """Call a block; in training with a gradient that recomputes it."""
    call = functools.partial(type(block).call, block)
    if not options.get("training"):
        return call(*arguments, **options)
    generators = seed_generators(block)
    structure = (arguments, options)
    leaves = tf.nest.flatten(structure)
    tensor_indices = [index for index, leaf in enumerate(leaves) if tf.is_tensor(leaf)]
    outputs: list[Any] = []

    def compute(*tensors: Any) -> list[Any]:
        """Call the block with tensors and, after them, seeds; return its outputs as a flat list."""
        filled = list(leaves)
        count = len(tensor_indices)
        for index, tensor in zip(tensor_indices, tensors[:count], strict=True):
            filled[index] = tensor
        positional, named = tf.nest.pack_sequence_as(structure, filled)
        with fixed_seeds(generators, tensors[count:]):
            result = call(*positional, **named)
        outputs[:] = [result]
        return tf.nest.flatten(result)

    seeds = [generator.next() for generator in generators]
    flat = recompute(compute, [leaves[index] for index in tensor_indices] + seeds)
    return tf.nest.pack_sequence_as(outputs[0], flat)


def recompute(compute: Callable[..., list[Any]], tensors: Sequence[Any]) -> list[Any]:
    """Compute tensors, and compute them again for the gradient instead of keeping activations.

    Args:
        compute: A function of the tensors, with the same results both times.
        tensors: Its arguments.

    Returns:
        Its results.
    """

    @tf.custom_gradient
    def run(*tensors: Any) -> Any:
        def gradient(*upstream: Any, variables: Sequence[Any] = ()) -> Any:
            # After the upstream gradient, or TensorFlow would see two equal computations and
            # keep the first one's results.
            with tf.control_dependencies(upstream):
                again = [tf.identity(tensor) for tensor in tensors]
            floats = [tensor for tensor in again if tensor.dtype.is_floating]
            with tf.GradientTape() as tape:
                tape.watch(floats)
                results = compute(*again)
            float_gradients, variable_gradients = tape.gradient(
                results, (floats, list(variables)), output_gradients=upstream
            )
            remaining = iter(float_gradients)
            gradients = [next(remaining) if t.dtype.is_floating else None for t in again]
            return (gradients, variable_gradients) if variables else gradients

        return tuple(compute(*tensors)), gradient

    return list(run(*tensors))
