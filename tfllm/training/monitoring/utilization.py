"""Model FLOPs utilization (MFU): how much of the machine's arithmetic a run uses.

Chowdhery et al. 2022 (PaLM), appendix B: what the model's matrix products need, forward and
backward, divided by what the hardware could do in that time. Here padding does not count, blocks
that are computed twice count once, and the hardware's peak is measured: the rate of one large
matrix product on this machine in the run's precision.
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass

import keras
import tensorflow as tf

from tfllm.keras_internals import all_layers, call_options, stored_matrix

# The product that the rate is measured by: [M, K] x [K, N].
CPU_PRODUCT, GPU_PRODUCT = (1024, 1024, 4096), (8192, 8192, 8192)
MEASURED_SECONDS = 0.3  # the best of as many products as fit, after one to warm up
LEAST_PRODUCTS = 3

FORWARD, BACKWARD = 2, 4  # FLOPs for each number of a matrix and token: one product, and two
BACKWARD_FROZEN = 2  # no gradient of the matrix itself


@dataclass(frozen=True)
class StepFlops:
    """FLOPs of one optimizer step's matrix products, forward and backward."""

    per_token: float
    per_row: float
    """Of layers that see one vector per row: a classifier's."""
    per_pair: float
    """Of attention, for every pair of tokens of one row."""

    def of_batch(self, tokens: int, rows: int) -> float:
        """Return the floating-point operations of a step on a batch.

        Args:
            tokens: Tokens of the batch.
            rows: Rows of the batch, of about equal length.
        """
        return (
            self.per_token * tokens
            + self.per_row * rows
            + self.per_pair * tokens * tokens / max(1, rows)
        )


def step_flops(model: keras.Model, target_share: float = 1.0) -> StepFlops | None:
    """Count the FLOPs of a functional model's training step.

    Args:
        model: The model.
        target_share: The share of tokens that a model with the input `positions` scores.

    Returns:
        The counts; None for models of a source and a target per row, whose lengths differ.
    """
    if "source_ids" in model.input:
        return None
    one_vector = {
        layer.name
        for layer in model.layers
        if isinstance(layer, keras.layers.Dense) and len(layer.output.shape) < 3
    }
    scored = target_share if "positions" in model.input else 1.0
    per_token = per_row = per_pair = 0.0
    for layer in all_layers(model):
        if isinstance(layer, (keras.layers.Dense, keras.layers.EinsumDense)):
            flops = _flops(layer, "kernel")
            if layer.name in one_vector:
                per_row += flops
            else:
                per_token += flops * (scored if layer.name == "transform" else 1.0)
        elif isinstance(layer, keras.layers.ReversibleEmbedding) and _is_reversed(layer):
            per_token += _flops(layer, "embeddings") * scored
        elif width := _attention_width(layer):
            per_pair += 2 * (FORWARD + BACKWARD) * width  # scores, and values by weights
    return StepFlops(per_token, per_row, per_pair)


def _flops(layer: keras.layers.Layer, name: str) -> float:
    # With LoRA, the name without underscore is a sum; the adapters' own products are small.
    stored = stored_matrix(layer, name)
    matrix = getattr(layer, name) if stored is None else stored
    size = 1
    for length in matrix.shape:
        size *= length
    return size * (FORWARD + (BACKWARD if matrix.trainable else BACKWARD_FROZEN))


def _is_reversed(layer: keras.layers.Layer) -> bool:
    """Whether the embeddings also give the logits."""
    return any(options.get("reverse") for options in call_options(layer))


def _attention_width(layer: keras.layers.Layer) -> int:
    """Heads times their width for an attention layer, else 0."""
    if isinstance(layer, keras.layers.MultiHeadAttention):
        return layer.num_heads * layer.key_dim
    if hasattr(layer, "num_key_value_heads") and hasattr(layer, "head_dim"):
        return layer.num_heads * layer.head_dim
    return 0


@functools.cache
def matrix_rate(precision: str, on_gpu: bool = False) -> float:
    """Measure how fast one large matrix product is: FLOP/s, the best in 0.3 seconds.

    Args:
        precision: The type of its operands.
        on_gpu: Whether it is computed on a GPU, where it is larger.
    """
    rows, inner, columns = GPU_PRODUCT if on_gpu else CPU_PRODUCT
    left = tf.cast(tf.random.stateless_normal((rows, inner), [1, 1]), precision)
    right = tf.cast(tf.random.stateless_normal((inner, columns), [1, 2]), precision)
    best, count = float("inf"), 0
    end = time.perf_counter() + MEASURED_SECONDS
    while count <= LEAST_PRODUCTS or time.perf_counter() < end:
        started = time.perf_counter()
        tf.matmul(left, right)[0, 0].numpy()  # a GPU is done only when its number is here
        if count:
            best = min(best, time.perf_counter() - started)
        count += 1
    return 2 * rows * inner * columns / best
