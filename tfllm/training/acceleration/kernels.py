"""Faster kernels for parts of a training step, installed into a built model from outside.

On a CPU in bfloat16, GELU, layer normalization and dropout take as long as the matrix products when
each of their operations passes over memory. "fused" has their gradients written by hand in float32;
"compiled" has XLA fuse each formula into one pass, at a fraction of a second per batch shape.
Matrix products stay TensorFlow's, which are faster than XLA's on CPUs; those of attention's
projections get two dimensions. The layers' own `keras.ops` forms are the reference of the tests.
benchmarks/training.md has the numbers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfllm.generation import random
from tfllm.keras_internals import all_layers, override_call, restore_call
from tfllm.layers.activations import SQRT_HALF, exact_gelu

DENSITY_AT_0 = 1 / math.sqrt(2 * math.pi)  # of the standard normal distribution

# Dropout compares one random byte per element, so its rate is a multiple of 1/256.
BYTE_VALUES = 256

# Trained parameters from which a step takes a second or more on two cores, so that XLA's fraction
# of a second per batch shape pays off.
COMPILED_FROM = 50_000_000


def _gelu_gradient(x: tf.Tensor, upstream: tf.Tensor) -> tf.Tensor:
    """d/dx x P(x) = P(x) + x p(x), with the standard normal distribution's P and density p."""
    wide = tf.cast(x, tf.float32)
    cumulative = 0.5 * (1 + tf.math.erf(wide * SQRT_HALF))
    slope = cumulative + wide * DENSITY_AT_0 * tf.exp(-0.5 * wide * wide)
    return tf.cast(tf.cast(upstream, tf.float32) * slope, x.dtype)


@functools.cache
def kernel(formula: Callable[..., Any], compiled: bool) -> Callable[..., Any]:
    """Return a formula, compiled by XLA if asked; once for all layers, as compilation is slow.

    Args:
        formula: A function of tensors.
        compiled: Whether XLA compiles it.
    """
    if not compiled:
        return formula
    return tf.function(formula, jit_compile=True, autograph=False, reduce_retracing=True)


def gelu(x: tf.Tensor, compiled: bool = False) -> tf.Tensor:
    """Compute exact GELU in float32, as `tfllm.layers.activations.exact_gelu`.

    Args:
        x: The inputs, of any shape.
        compiled: Whether XLA compiles it.
    """

    @tf.custom_gradient
    def apply(x: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        flat = tf.reshape(x, [-1])  # one compiled kernel per size, not per shape

        def gradient(upstream: tf.Tensor) -> tf.Tensor:
            dx = kernel(_gelu_gradient, compiled)(flat, tf.reshape(upstream, [-1]))
            return tf.reshape(dx, tf.shape(x))

        return tf.reshape(kernel(exact_gelu, compiled)(flat), tf.shape(x)), gradient

    return apply(tf.convert_to_tensor(x))


def _normalize(
    x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, epsilon: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Normalize [N, D]; also return means [N, 1] and inverse deviations [N, 1]."""
    wide = tf.cast(x, tf.float32)
    mean = tf.reduce_mean(wide, -1, keepdims=True)
    centred = wide - mean
    inverse = tf.math.rsqrt(tf.reduce_mean(centred * centred, -1, keepdims=True) + epsilon)
    return tf.cast(centred * inverse * gamma + beta, x.dtype), mean, inverse


def _normalize_gradient(
    x: tf.Tensor, mean: tf.Tensor, inverse: tf.Tensor, gamma: tf.Tensor, upstream: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Gradients of x [N, D], gamma [D] and beta [D] (Ba et al. 2016)."""
    upstream = tf.cast(upstream, tf.float32)
    normal = (tf.cast(x, tf.float32) - mean) * inverse
    scaled = upstream * gamma
    projection = tf.reduce_mean(scaled * normal, -1, keepdims=True)
    gradient = inverse * (scaled - tf.reduce_mean(scaled, -1, keepdims=True) - normal * projection)
    return (
        tf.cast(gradient, x.dtype),
        tf.reduce_sum(upstream * normal, 0),
        tf.reduce_sum(upstream, 0),
    )


def normalize(
    x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, epsilon: float, compiled: bool = False
) -> tf.Tensor:
    """Compute layer normalization over the last axis in float32.

    Args:
        x: [..., D].
        gamma: Scale [D].
        beta: Offset [D].
        epsilon: Added to the variance.
        compiled: Whether XLA compiles it.

    Returns:
        [..., D] in the type of `x`.
    """

    @tf.custom_gradient
    def apply(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        flat = tf.reshape(x, [-1, x.shape[-1]])
        result, mean, inverse = kernel(_normalize, compiled)(
            flat, gamma, beta, tf.constant(epsilon)
        )

        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            rows = tf.reshape(upstream, [-1, x.shape[-1]])
            dx, dgamma, dbeta = kernel(_normalize_gradient, compiled)(
                flat, mean, inverse, gamma, rows
            )
            return tf.reshape(dx, tf.shape(x)), dgamma, dbeta

        return tf.reshape(result, tf.shape(x)), gradient

    return apply(*(tf.convert_to_tensor(value) for value in (x, gamma, beta)))


def dropped_byte_values(rate: float) -> int:
    """Return how many of the 256 values of a random byte drop an element."""
    return round(rate * BYTE_VALUES)


def dropout(x: tf.Tensor, rate: float, seed: tf.Tensor, compiled: bool = False) -> tf.Tensor:
    """Apply inverted dropout.

    Where it is not compiled, four elements share a random word, and the rate is the nearest
    multiple of 1/256.

    Args:
        x: The inputs.
        rate: The probability of dropping an element.
        seed: int [2].
        compiled: Whether XLA compiles it.
    """
    if compiled:
        return _hashed_dropout(x, rate, seed)
    dropped = dropped_byte_values(rate)
    size = tf.size(x)
    words = tf.random.stateless_uniform(
        [(size + 3) // 4], seed=tf.cast(seed, tf.int32), minval=None, maxval=None, dtype=tf.int32
    )
    random = tf.reshape(tf.reshape(tf.bitcast(words, tf.uint8), [-1])[:size], tf.shape(x))
    factor = tf.constant(BYTE_VALUES / (BYTE_VALUES - dropped), x.dtype)
    return x * (tf.cast(random >= dropped, x.dtype) * factor)


def _hashed_dropout(x: tf.Tensor, rate: float, seed: tf.Tensor) -> tf.Tensor:
    """Apply dropout by a mask that is a function of seed and position: the gradient redraws it."""
    threshold = tf.constant(int(rate * 2**32), tf.uint32)
    scale = tf.constant(1 / (1 - rate), x.dtype)

    @tf.custom_gradient
    def apply(x: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        def mask(values: tf.Tensor) -> tf.Tensor:
            flat = kernel(_mask, True)(tf.reshape(values, [-1]), seed, threshold, scale)
            return tf.reshape(flat, tf.shape(values))

        return mask(x), mask

    return apply(x)


def _mask(x: tf.Tensor, seed: tf.Tensor, threshold: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
    """x [N] times `scale` where the position's random bits are at least `threshold`, else 0."""
    seed = tf.cast(seed, tf.int32)
    drawn = random.bits(seed[0], seed[1], tf.range(tf.size(x)))
    return tf.where(drawn >= threshold, x * scale, tf.zeros([], x.dtype))


def choose(kernels: str, parameters: int) -> str:
    """Resolve "auto" of `train.kernels`.

    Args:
        kernels: The setting.
        parameters: Number of trained parameters.

    Returns:
        "plain", "fused" or "compiled".
    """
    if kernels != "auto":
        return kernels
    if tf.config.list_physical_devices("GPU"):
        return "plain"
    return "compiled" if parameters >= COMPILED_FROM else "fused"


def install(model: keras.Model, compiled: bool = False) -> int:
    """Install the kernels into every layer of a model that they fit.

    Args:
        model: The model, whose layers are changed.
        compiled: Whether XLA compiles the kernels.

    Returns:
        Number of changed layers.
    """
    count = 0
    for layer in all_layers(model):
        if isinstance(layer, keras.layers.Dense) and layer.activation is exact_gelu:
            layer.activation = functools.partial(gelu, compiled=compiled)
        elif type(layer) is keras.layers.LayerNormalization and _is_plain(layer):
            override_call(layer, functools.partial(_call_normalization, layer, compiled=compiled))
        elif type(layer) is keras.layers.Dropout and dropped_byte_values(layer.rate):
            override_call(layer, functools.partial(_call_dropout, layer, compiled=compiled))
        elif type(layer) is keras.layers.EinsumDense and _is_projection(layer):
            override_call(layer, functools.partial(_call_projection, layer))
        else:
            continue
        count += 1
    return count


def remove(model: keras.Model) -> None:
    """Undo `install`."""
    for layer in all_layers(model):
        if getattr(getattr(layer, "activation", None), "func", None) is gelu:
            layer.activation = exact_gelu
        restore_call(layer)


def _is_plain(layer: keras.Layer) -> bool:
    return layer.center and layer.scale and list(layer.axis) == [-1]


def _call_normalization(layer: keras.Layer, inputs: tf.Tensor, compiled: bool = False) -> tf.Tensor:
    inputs = tf.cast(inputs, layer.compute_dtype)
    gamma, beta = (tf.cast(weight.value, tf.float32) for weight in (layer.gamma, layer.beta))
    return normalize(inputs, gamma, beta, layer.epsilon, compiled)


def _call_dropout(
    layer: keras.Layer, inputs: tf.Tensor, training: bool = False, compiled: bool = False
) -> tf.Tensor:
    if not training or layer.noise_shape is not None:
        return inputs if not training else type(layer).call(layer, inputs, training=True)
    return dropout(inputs, layer.rate, layer.seed_generator.next(), compiled)


# Attention's projections: to heads (one axis of the kernel is summed over), and from them (two).
PROJECTIONS = {"abc,cde->abde": 1, "abcd,cde->abe": 2}


def _is_projection(layer: keras.Layer) -> bool:
    plain = layer.activation is keras.activations.linear and not layer.lora_enabled
    return plain and layer.equation in PROJECTIONS and layer.quantization_mode is None


def _call_projection(
    layer: keras.Layer, inputs: tf.Tensor, training: bool | None = None
) -> tf.Tensor:
    """Compute one matrix product for all rows instead of a batched one, whose gradients are summed.

    The bias is added to three dimensions: right after a matrix product TensorFlow fuses the two
    into a kernel of half the speed.
    """
    weights = tf.cast(layer.kernel.value, layer.compute_dtype)
    contracted = PROJECTIONS[layer.equation]
    outputs = weights.shape[contracted:]
    width, size = math.prod(weights.shape[:contracted]), math.prod(outputs)
    lead = tf.shape(inputs)[:2]
    x = tf.reshape(tf.cast(inputs, layer.compute_dtype), [-1, width])
    product = tf.matmul(x, tf.reshape(weights, [width, size]))
    y = tf.reshape(product, tf.concat([lead, [size]], 0))
    if layer.bias is not None:
        y = tf.nn.bias_add(y, tf.reshape(tf.cast(layer.bias.value, y.dtype), [size]))
    return tf.reshape(y, tf.concat([lead, outputs], 0))
