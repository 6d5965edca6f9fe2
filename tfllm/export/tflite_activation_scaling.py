"""Scales of int8 activations in post-norm encoders: per channel, and from measured ranges.

An int8 activation has one scale for all its channels. The last layer of BERT's feed-forward part
has a few channels that are a hundred times larger than the others (Bondarenko et al. 2021,
"Understanding and Overcoming the Challenges of Efficient Transformer Quantization"), and a shared
scale leaves the others no resolution. So such a layer computes its channels divided by their own
range, and they are multiplied back in float32, where the residual sum and the norm are: the same
function, with a scale per channel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops
from tensorflow.lite.python import schema_py_generated as schema

from tfllm.errors import MissingExtra
from tfllm.export import flatbuffer
from tfllm.keras_internals import all_layers, override_call, restore_call

# A layer is scaled when its largest channel range exceeds the median by this factor.
UNEVEN_RATIO = 4.0
# Smaller ranges than this fraction of the largest are scaled as if they were this large.
SMALLEST_RATIO = 1e-3

Ranges = dict[str, np.ndarray]  # layer path -> largest magnitude of every output channel [D]


class ScaledChannels:
    """Context manager in which the uneven layers of `model` compute scaled channels.

    Every function that is traced within calls `trace` first.
    """

    def __init__(self, model: keras.Model, inputs: Iterable[Mapping[str, np.ndarray]]):
        ranges = channel_ranges(model, inputs)
        self.layers = {
            layer: _scales(ranges[layer.path])
            for layer in _linear_dense_layers(model)
            if layer.path in ranges and _is_uneven(ranges[layer.path])
        }
        self._zero: tf.Tensor | float = 0.0

    def __enter__(self) -> ScaledChannels:
        for layer, scales in self.layers.items():
            override_call(layer, self._scaled_call(layer, scales))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for layer in self.layers:
            restore_call(layer)

    def trace(self, padding_mask: tf.Tensor) -> None:
        """Derive a zero from an input (int32 [B, T], never negative) of the function being traced:
        added to the scales, it keeps the converter from multiplying them back into the weights."""
        self._zero = tf.cast(tf.minimum(padding_mask[0, 0], 0), tf.float32)

    def _scaled_call(
        self, layer: keras.layers.Dense, scales: np.ndarray
    ) -> Callable[..., tf.Tensor]:
        def call(x: tf.Tensor, training: bool | None = None) -> tf.Tensor:
            kernel = ops.convert_to_tensor(layer.kernel) / scales
            bias = ops.convert_to_tensor(layer.bias) / scales
            return (ops.matmul(x, kernel) + bias) * (scales + self._zero)

        return call


def channel_ranges(model: keras.Model, inputs: Iterable[Mapping[str, np.ndarray]]) -> Ranges:
    """Measure the largest magnitude of every output channel of every linear dense layer.

    Args:
        model: The model.
        inputs: Inputs by name, int32 [B, T], of each batch.

    Returns:
        float [channels] by layer.
    """
    ranges: Ranges = {}
    layers = _linear_dense_layers(model)

    def recording_call(layer: keras.layers.Dense) -> Callable[..., tf.Tensor]:
        def call(x: tf.Tensor, training: bool | None = None) -> tf.Tensor:
            y = type(layer).call(layer, x)
            largest = np.abs(np.asarray(y)).reshape(-1, y.shape[-1]).max(axis=0)
            ranges[layer.path] = np.maximum(ranges.get(layer.path, 0), largest)
            return y

        return call

    for layer in layers:
        override_call(layer, recording_call(layer))
    try:
        for batch in inputs:
            model(dict(batch), training=False)
    finally:
        for layer in layers:
            restore_call(layer)
    return ranges


def measure_ranges(calibrated: bytes, inputs: Sequence[Mapping[str, np.ndarray]]) -> bytes:
    """Replace the calibrated range of each tensor by the one that it really has.

    TensorFlow's calibrator reads a tensor after the next operation may have written its own result
    into the same memory (a residual sum does), so that its ranges of such tensors are too wide: in
    a MiniLM, 51 of 299, and with them the error of the logits is three times as large.

    Args:
        calibrated: A float file after calibration.
        inputs: Inputs by name of each batch.

    Returns:
        The file's new content.
    """
    model = flatbuffer.parse(calibrated)
    tensors = model.subgraphs[0].tensors
    indices = [i for i, tensor in enumerate(tensors) if _calibrated_range(tensor) is not None]
    lowest, highest = np.full(len(tensors), np.inf), np.full(len(tensors), -np.inf)
    interpreter = _interpreter_without_shared_memory(calibrated)
    run = interpreter.get_signature_runner()
    for batch in inputs:
        run(**batch)
        for index in indices:
            values = interpreter.get_tensor(index)
            lowest[index] = min(lowest[index], values.min())
            highest[index] = max(highest[index], values.max())
    for index in indices:
        parameters = _calibrated_range(tensors[index])
        parameters.min, parameters.max = [float(lowest[index])], [float(highest[index])]
    return flatbuffer.serialize(model, len(calibrated) + 4096)


def _calibrated_range(tensor: schema.TensorT) -> Any:
    """Return the quantization parameters of a tensor that was calibrated, or None."""
    parameters = tensor.quantization
    if parameters is None or parameters.min is None or len(parameters.min) != 1:
        return None
    return parameters


def _interpreter_without_shared_memory(content: bytes) -> Any:
    """Return an interpreter in which no tensor's memory is reused for another."""
    try:
        from ai_edge_litert import interpreter as litert
    except ImportError:
        raise MissingExtra("ai-edge-litert", "edge") from None
    interpreter = litert.Interpreter(
        model_content=content,
        experimental_preserve_all_tensors=True,
        experimental_op_resolver_type=(
            litert.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES  # a delegate has no tensors
        ),
    )
    interpreter.allocate_tensors()
    return interpreter


def _linear_dense_layers(model: keras.Model) -> list[keras.layers.Dense]:
    """Return the dense layers without an activation function."""
    return [
        layer
        for layer in all_layers(model)
        if isinstance(layer, keras.layers.Dense) and layer.activation is keras.activations.linear
    ]


def _is_uneven(ranges: np.ndarray) -> bool:
    return float(ranges.max()) > UNEVEN_RATIO * float(np.median(ranges))


def _scales(ranges: np.ndarray) -> np.ndarray:
    """Return float32 [D] around 1, in proportion to the channels' ranges [D]."""
    ranges = np.maximum(ranges, ranges.max() * SMALLEST_RATIO)
    return (ranges / np.exp(np.mean(np.log(ranges)))).astype(np.float32)
