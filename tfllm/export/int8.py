"""What a post-norm encoder needs to stay itself with int8 activations.

An int8 activation has one scale for all its channels. The last layer of BERT's feed-forward part
gives a few channels that are a hundred times larger than the others (Bondarenko et al. 2021,
"Understanding and Overcoming the Challenges of Efficient Transformer Quantization"), and one scale
for both leaves the others with nothing. So such a layer computes its channels divided by their own
range, and they are multiplied back in float32, where the residual sum and the norm are: the same
function, with a scale per channel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np

from tfllm.errors import MissingExtra
from tfllm.export import flatbuffer
from tfllm.keras_internals import all_layers, override_call, restore_call

# A layer is scaled when its widest channel is so many times the one in the middle.
UNEVEN = 4.0
# Channels narrower than this part of the widest are scaled as if they were this wide.
NARROWEST = 1e-3

Ranges = dict[str, np.ndarray]  # layer path -> largest magnitude of every output channel [D]


class ScaledChannels:
    """While it is entered, uneven layers of `model` compute scaled channels.

    Every function that is traced meanwhile calls `trace` first.
    """

    def __init__(self, model: Any, inputs: Iterable[Mapping[str, np.ndarray]]):
        found = ranges(model, inputs)
        self.layers = {
            layer: _scales(found[layer.path])
            for layer in _dense(model)
            if layer.path in found and _uneven(found[layer.path])
        }
        self._zero: Any = 0.0

    def __enter__(self) -> ScaledChannels:
        for layer, scales in self.layers.items():
            override_call(layer, self._scaled(layer, scales))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for layer in self.layers:
            restore_call(layer)

    def trace(self, mask: Any) -> None:
        """Takes a zero from the inputs (`mask` int32 [B, T], never negative) of the function that
        is being traced: added to the scales, it keeps the converter from multiplying them back
        into the weights."""
        import tensorflow as tf

        self._zero = tf.cast(tf.minimum(mask[0, 0], 0), tf.float32)

    def _scaled(self, layer: Any, scales: np.ndarray) -> Callable:
        from keras import ops

        def call(x: Any, training: bool | None = None) -> Any:
            kernel = ops.convert_to_tensor(layer.kernel) / scales
            bias = ops.convert_to_tensor(layer.bias) / scales
            return (ops.matmul(x, kernel) + bias) * (scales + self._zero)

        return call


def ranges(model: Any, inputs: Iterable[Mapping[str, np.ndarray]]) -> Ranges:
    """The largest magnitude of every output channel of every linear dense layer, over `inputs`."""
    found: Ranges = {}
    layers = list(_dense(model))

    def recording(layer: Any) -> Callable:
        def call(x: Any, training: bool | None = None) -> Any:
            y = type(layer).call(layer, x)
            widest = np.abs(np.asarray(y)).reshape(-1, y.shape[-1]).max(axis=0)
            found[layer.path] = np.maximum(found.get(layer.path, 0), widest)
            return y

        return call

    for layer in layers:
        override_call(layer, recording(layer))
    try:
        for one in inputs:
            model(dict(one), training=False)
    finally:
        for layer in layers:
            restore_call(layer)
    return found


def with_true_ranges(calibrated: bytes, inputs: Sequence[Mapping[str, np.ndarray]]) -> bytes:
    """A calibrated float file with the range that each tensor really has over `inputs`.

    TensorFlow's calibrator reads a tensor after the next operation may have written its own result
    into the same memory (a residual sum does), so that its ranges of such tensors are too wide: in
    a MiniLM, 51 of 299, and with them the error of the logits is three times as large.
    """
    import flatbuffers

    model = flatbuffer.parse(calibrated)
    tensors = model.subgraphs[0].tensors
    wanted = [n for n, tensor in enumerate(tensors) if _range(tensor) is not None]
    lowest, highest = np.full(len(tensors), np.inf), np.full(len(tensors), -np.inf)
    interpreter = _keeping_all(calibrated)
    run = interpreter.get_signature_runner()
    for one in inputs:
        run(**one)
        for number in wanted:
            values = interpreter.get_tensor(number)
            lowest[number] = min(lowest[number], values.min())
            highest[number] = max(highest[number], values.max())
    for number in wanted:
        range_ = _range(tensors[number])
        range_.min, range_.max = [float(lowest[number])], [float(highest[number])]
    builder = flatbuffers.Builder(len(calibrated) + 4096)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _range(tensor: Any) -> Any:
    """The quantization parameters of a tensor that was calibrated, or None."""
    found = tensor.quantization
    return found if found is not None and found.min is not None and len(found.min) == 1 else None


def _keeping_all(content: bytes) -> Any:
    """An interpreter in which no tensor gives its memory to another."""
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


def _dense(model: Any) -> list[Any]:
    """The dense layers over hidden states without an activation of their own."""
    import keras

    return [
        layer
        for layer in all_layers(model)
        if isinstance(layer, keras.layers.Dense) and layer.activation is keras.activations.linear
    ]


def _uneven(widest: np.ndarray) -> bool:
    return float(widest.max()) > UNEVEN * float(np.median(widest))


def _scales(widest: np.ndarray) -> np.ndarray:
    """Float32 [D] around 1, in proportion to the channels' ranges."""
    kept = np.maximum(widest, widest.max() * NARROWEST)
    return (kept / np.exp(np.mean(np.log(kept)))).astype(np.float32)
