"""The matrix products of a .tflite file against the kernels of the Keras model that it was made of.

A file computes what the model computes with other weights too: TensorFlow's converter multiplies
constants that stand beside a product into its weights. In float32 nothing shows that; in int8 the
weights have lost what they were scaled down for. So the weights themselves are compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from tensorflow.lite.python import schema_py_generated as schema

from tfllm.export import flatbuffer
from tfllm.keras_internals import all_layers

TYPES = {
    schema.TensorType.FLOAT32: np.float32,
    schema.TensorType.FLOAT16: np.float16,
    schema.TensorType.INT8: np.int8,
}
PRODUCTS = ("FULLY_CONNECTED", "BATCH_MATMUL")
# Larger than float32's rounding of a weight, smaller than any constant that could be folded in.
RELATIVE = 1e-6
# Of half a step: a group's scale is a float16, and the largest weight of a group is cut to it.
ROUNDING = 1.02


@dataclass(frozen=True)
class Factor:
    """A constant of a product."""

    name: str
    values: np.ndarray
    """float32 [rows, columns]: outputs and inputs of a product."""
    step: np.ndarray
    """What values were rounded to, of a shape that broadcasts; 0 where they were not."""

    def equals(self, kernel: np.ndarray) -> bool:
        """Whether the values are the kernel's [rows, columns], to half a step."""
        if self.values.shape != kernel.shape:
            return False
        allowed = self.step / 2 * ROUNDING + RELATIVE * np.abs(kernel).max()
        return bool((np.abs(self.values - kernel) <= allowed).all())


def factors(content: bytes) -> Iterator[Factor]:
    """The constants of all products of a file, each once."""
    model = flatbuffer.parse(content)
    seen: set[tuple[int, str]] = set()
    names = {number: name for name, number in vars(schema.BuiltinOperator).items()}
    for graph in model.subgraphs:
        made_by = {n: operator for operator in graph.operators for n in operator.outputs}
        for operator in graph.operators:
            name = names[_number(model, operator)]
            if name not in PRODUCTS:
                continue
            for place, number in enumerate(operator.inputs[:2]):
                tensor = _source(model, graph, made_by, number)
                if tensor is None or tensor.type not in (*TYPES, schema.TensorType.INT4):
                    continue
                key = tensor.buffer, name
                if key in seen:
                    continue
                seen.add(key)
                values, step = _values(model, graph, tensor)
                if name == "BATCH_MATMUL" and place == 1 and not operator.builtinOptions.adjY:
                    values, step = np.swapaxes(values, -1, -2), np.swapaxes(step, -1, -2)
                yield Factor(f"{name} {tensor.name.decode()}", values, step)


def _number(model: Any, operator: Any) -> int:
    code = model.operatorCodes[operator.opcodeIndex]
    return max(code.builtinCode, code.deprecatedBuiltinCode)


def _source(model: Any, graph: Any, made_by: dict, number: int) -> Any:
    """The constant tensor behind `number`, through what only changes its type; or None."""
    tensor = graph.tensors[number]
    operator = made_by.get(number)
    if operator is not None and _number(model, operator) == schema.BuiltinOperator.DEQUANTIZE:
        return _source(model, graph, made_by, operator.inputs[0])
    data = model.buffers[tensor.buffer].data
    return None if data is None or len(tensor.shape) < 2 else tensor


def _values(model: Any, graph: Any, tensor: Any) -> tuple[np.ndarray, np.ndarray]:
    """(float32 numbers [rows, columns], the steps between them)."""
    data = np.asarray(model.buffers[tensor.buffer].data, np.uint8)
    shape = [int(size) for size in tensor.shape]
    if tensor.type == schema.TensorType.INT4:
        halves = np.stack([data & 15, data >> 4], axis=1).astype(np.int16).reshape(-1)
        stored = np.where(halves > 7, halves - 16, halves).reshape(shape).astype(np.float32)
    else:
        stored = data.view(TYPES[tensor.type]).reshape(shape).astype(np.float32)
    step = _steps(model, graph, tensor, stored)
    values = stored * step if tensor.type not in (schema.TensorType.FLOAT32,) else stored
    if tensor.type in (schema.TensorType.FLOAT32, schema.TensorType.FLOAT16):
        half = tensor.type == schema.TensorType.FLOAT16
        # Half precision keeps 11 bits.
        step = np.maximum(np.abs(stored) * 2.0**-10, 2.0**-24) if half else np.zeros_like(stored)
        values = stored
    return values.reshape(-1, shape[-1]), step.reshape(-1, shape[-1])


def _steps(model: Any, graph: Any, tensor: Any, stored: np.ndarray) -> np.ndarray:
    found = tensor.quantization
    if found is None:
        return np.zeros_like(stored)
    if found.detailsType == schema.QuantizationDetails.BlockwiseQuantization:
        scales = graph.tensors[found.details.scales]
        data = np.asarray(model.buffers[scales.buffer].data, np.uint8).view(np.float16)
        data = data.reshape(stored.shape[0], -1).astype(np.float32)
        return np.repeat(data, found.details.blockSize, axis=1)
    if found.scale is None or not len(found.scale):
        return np.zeros_like(stored)
    scale = np.asarray(found.scale, np.float32)
    assert not np.any(found.zeroPoint)
    if len(scale) == 1:
        return np.full_like(stored, scale[0])
    along = [1] * stored.ndim
    along[found.quantizedDimension] = len(scale)
    return np.broadcast_to(scale.reshape(along), stored.shape)


def kernels(model: Any, scales: Mapping[str, float] | None = None) -> dict[str, np.ndarray]:
    """Path -> [outputs, inputs] of every matrix that the model multiplies by, times the number of
    its layer's name in `scales`."""
    found = {}
    for layer in all_layers(model):
        kernel = getattr(layer, "kernel", None)
        if kernel is None:
            continue
        values = np.asarray(kernel)
        if values.ndim == 3:  # Keras' attention: (D, N, H) into heads, (N, H, D) out of them
            split = 2 if "attention_output" in kernel.path else 1
            values = values.reshape(int(np.prod(values.shape[:split])), -1)
        scale = (scales or {}).get(kernel.path.split("/")[-2], 1.0)
        found[kernel.path] = values.T * np.float32(scale)
    return found


def tables(model: Any) -> dict[str, np.ndarray]:
    """Path -> [tokens, width] of every table of embeddings."""
    return {
        weight.path: np.asarray(weight)
        for weight in model.weights
        if weight.path.endswith("embeddings")
    }


def differing(
    content: bytes, model: Any, tied: bool, scales: Mapping[str, float] | None = None
) -> list[str]:
    """What is a product's weights in one of file and model and not in the other.

    `tied`: the table of tokens is one of them. `scales`: the one number that kernels of a layer's
    name may be multiplied by as a whole; it changes nothing when rows are rounded.
    """
    plain, scaled = kernels(model), kernels(model, scales)
    if tied:
        table = tables(model)["token_embedding/embeddings"]
        plain["token_embedding/embeddings"] = scaled["token_embedding/embeddings"] = table
    found, wrong = set(), []
    for factor in factors(content):
        same = [
            path
            for path, kernel in plain.items()
            if factor.equals(kernel) or factor.equals(scaled[path])
        ]
        found.update(same)
        if not same:
            wrong.append(f"{factor.name} {factor.values.shape} is no kernel")
    return wrong + [f"{path} is not in the file" for path in plain if path not in found]
