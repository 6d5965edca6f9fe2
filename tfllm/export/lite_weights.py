"""int8 and int4 weights in a float32 .tflite file, every matrix once.

TensorFlow's own dynamic range quantization writes a tied embedding twice, as int8 with one scale
for looking tokens up and as int8 with a scale a row for the logits. Here both operations read one
matrix with a scale a row. Products are "hybrid": the runtime quantizes the other factor, row by
row, when it is there.

int4: groups of 32 weights of a row share a scale (float16). Embeddings and logits stay int8, as
does a matrix whose rows groups of 32 do not fill.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

SMALLEST = 1024  # weights; smaller constants stay as they are
LARGEST_INT8, LARGEST_INT4 = 127, 7
GROUP = 32
TINY = 1e-12  # keeps the scale of a row of zeros above zero
# The versions of operations from which on they take such weights, and the TensorFlow Lite that
# first has them (tflite/tools/versioning: op_version.cc, runtime_version.cc). An older one would
# take a lower version of the operation and multiply all rows by the first row's scale.
FULLY_CONNECTED_ROWS, FULLY_CONNECTED_GROUPS, LOOKUP_ROWS = 12, 13, 4
RUNTIMES = {
    ("FULLY_CONNECTED", FULLY_CONNECTED_ROWS): "2.17.0",
    ("FULLY_CONNECTED", FULLY_CONNECTED_GROUPS): "2.18.0",
    ("EMBEDDING_LOOKUP", LOOKUP_ROWS): "2.18.0",
}
OLDEST_RUNTIME = "2.18"  # of a file with all of them


@dataclass(frozen=True)
class Matrix:
    """Quantized weights [rows, columns]."""

    values: np.ndarray
    """int8"""
    scales: np.ndarray
    """float32 [rows], or float16 [rows, columns / GROUP]"""
    bits: int

    @property
    def grouped(self) -> bool:
        return self.scales.ndim == 2

    @property
    def stored(self) -> np.ndarray:
        """uint8, as the file holds them: two int4 in a byte, the first in its lower half."""
        flat = self.values.reshape(-1)
        if self.bits == 8:
            return flat.view(np.uint8)
        low, high = flat[0::2] & 15, flat[1::2] & 15
        return (low | (high << 4)).astype(np.uint8)


def by_row(weights: np.ndarray) -> Matrix:
    """int8 with a scale a row."""
    scales = (np.abs(weights).max(axis=1) / LARGEST_INT8 + TINY).astype(np.float32)
    values = np.rint(weights / scales[:, None]).clip(-LARGEST_INT8, LARGEST_INT8)
    return Matrix(values.astype(np.int8), scales, 8)


def by_group(weights: np.ndarray) -> Matrix:
    """int4 with a scale for each GROUP columns of a row."""
    groups = weights.reshape(len(weights), -1, GROUP)
    scales = np.abs(groups).max(axis=-1) / LARGEST_INT4
    scales = np.maximum(scales, np.finfo(np.float16).tiny).astype(np.float16)
    values = np.rint(groups / scales[..., None].astype(np.float32))
    values = values.clip(-LARGEST_INT4 - 1, LARGEST_INT4).astype(np.int8)
    return Matrix(values.reshape(weights.shape), scales, 4)


def quantized(content: bytes, bits: int, vocabulary_size: int) -> bytes:
    """The file with the weights of its matrix products in `bits` 8 or 4, and its table of
    `vocabulary_size` embeddings in int8."""
    import flatbuffers

    from tfllm.export import flatbuffer

    model = flatbuffer.parse(content)
    file = _File(model)
    matrices = {
        number: _quantized(weights, bits, vocabulary_size)
        for number, weights in file.matrices(vocabulary_size).items()
    }
    for number, matrix in matrices.items():
        model.buffers[number].data = matrix.stored
    for graph in model.subgraphs:
        file.declare(graph, matrices)
        graph.operators = [new for old in graph.operators for new in file.rewritten(graph, old)]
    if any(matrix.grouped for matrix in matrices.values()):
        file.require("FULLY_CONNECTED", FULLY_CONNECTED_GROUPS)
    builder = flatbuffers.Builder(sum(len(matrix.stored) for matrix in matrices.values()) + 2**20)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _quantized(weights: np.ndarray, bits: int, vocabulary_size: int) -> Matrix:
    whole_groups = weights.shape[1] % GROUP == 0
    if bits == 4 and whole_groups and len(weights) != vocabulary_size:
        return by_group(weights)
    return by_row(weights)


class _File:
    """The schema's ModelT object with what has to be known to change it."""

    def __init__(self, model: Any):
        from tensorflow.lite.python import schema_py_generated as schema

        self.schema: Any = schema
        self.model = model
        self._quantized: dict[tuple[int, int], Matrix] = {}
        self._scales: dict[int, int] = {}  # a matrix's buffer to that of its groups' scales

    def name(self, operator: Any) -> int:
        code = self.model.operatorCodes[operator.opcodeIndex]
        return max(code.builtinCode, code.deprecatedBuiltinCode)

    def matrices(self, vocabulary_size: int) -> dict[int, np.ndarray]:
        """Buffer number -> float32 [rows, columns] of all weights that products or lookups read."""
        builtin = self.schema.BuiltinOperator
        found: dict[int, np.ndarray] = {}
        for graph in self.model.subgraphs:
            for operator in graph.operators:
                if self.name(operator) == builtin.FULLY_CONNECTED:
                    tensor = graph.tensors[operator.inputs[1]]
                elif self.name(operator) == builtin.GATHER:
                    tensor = graph.tensors[operator.inputs[0]]
                    if tensor.shape[0] != vocabulary_size:
                        continue
                else:
                    continue
                weights = self._weights(tensor)
                if weights is not None:
                    found[tensor.buffer] = weights
        return found

    def _weights(self, tensor: Any) -> np.ndarray | None:
        data = self.model.buffers[tensor.buffer].data
        size = int(np.prod(tensor.shape))
        if (
            data is None
            or tensor.type != self.schema.TensorType.FLOAT32
            or size < SMALLEST
            or len(tensor.shape) != 2
        ):
            return None
        return np.asarray(data, np.uint8).view(np.float32).reshape(tensor.shape)

    def declare(self, graph: Any, matrices: dict[int, Matrix]) -> None:
        """Types and scales of the tensors that read quantized buffers."""
        types = self.schema.TensorType
        for number, tensor in enumerate(list(graph.tensors)):
            matrix = matrices.get(tensor.buffer)
            if matrix is None:
                continue
            self._quantized[id(graph), number] = matrix
            tensor.type = types.INT8 if matrix.bits == 8 else types.INT4
            tensor.quantization = self._parameters(graph, tensor, matrix)

    def _parameters(self, graph: Any, tensor: Any, matrix: Matrix) -> Any:
        schema = self.schema
        parameters = schema.QuantizationParametersT()
        parameters.quantizedDimension = 0
        if not matrix.grouped:
            parameters.scale = matrix.scales
            parameters.zeroPoint = np.zeros(len(matrix.scales), np.int64)
            return parameters
        if tensor.buffer not in self._scales:
            buffer = schema.BufferT()
            buffer.data = matrix.scales.reshape(-1).view(np.uint8)
            self.model.buffers.append(buffer)
            self._scales[tensor.buffer] = len(self.model.buffers) - 1
        scales = self._tensor(
            graph, tensor, "scales", matrix.scales.shape, schema.TensorType.FLOAT16
        )
        graph.tensors[scales].buffer = self._scales[tensor.buffer]
        details = schema.BlockwiseQuantizationT()
        details.scales, details.zeroPoints, details.blockSize = scales, -1, GROUP
        parameters.detailsType = schema.QuantizationDetails.BlockwiseQuantization
        parameters.details = details
        return parameters

    def rewritten(self, graph: Any, operator: Any) -> list[Any]:
        """The operators that take an operator's place."""
        builtin = self.schema.BuiltinOperator
        name = self.name(operator)
        if name == builtin.FULLY_CONNECTED and (id(graph), operator.inputs[1]) in self._quantized:
            operator.builtinOptions.asymmetricQuantizeInputs = True
            self.require("FULLY_CONNECTED", FULLY_CONNECTED_ROWS)
        elif name == builtin.GATHER and (id(graph), operator.inputs[0]) in self._quantized:
            return self._lookup(graph, operator)
        return [operator]

    def _lookup(self, graph: Any, operator: Any) -> list[Any]:
        """EMBEDDING_LOOKUP for GATHER. It takes a list of ids, so that [1, T] are made one."""
        table, ids = operator.inputs
        output = operator.outputs[0]
        shape = [int(size) for size in graph.tensors[output].shape]
        count = int(np.prod(shape[:-1]))
        flat_ids = self._tensor(
            graph, graph.tensors[ids], "flat", (count,), graph.tensors[ids].type
        )
        flat = self._tensor(
            graph,
            graph.tensors[output],
            "flat",
            (count, shape[-1]),
            self.schema.TensorType.FLOAT32,
        )
        lookup = self.schema.OperatorT()
        lookup.opcodeIndex = self._code("EMBEDDING_LOOKUP", LOOKUP_ROWS)
        lookup.inputs = np.array([flat_ids, table], np.int32)
        lookup.outputs = np.array([flat], np.int32)
        return [
            self._reshape(ids, flat_ids, [count]),
            lookup,
            self._reshape(flat, output, shape),
        ]

    def _reshape(self, source: int, target: int, shape: list[int]) -> Any:
        operator = self.schema.OperatorT()
        operator.opcodeIndex = self._code("RESHAPE", 1)
        operator.inputs = np.array([source], np.int32)
        operator.outputs = np.array([target], np.int32)
        options = self.schema.ReshapeOptionsT()
        options.newShape = np.array(shape, np.int32)
        operator.builtinOptionsType = self.schema.BuiltinOptions.ReshapeOptions
        operator.builtinOptions = options
        return operator

    def _tensor(self, graph: Any, like: Any, suffix: str, shape: Any, kind: int) -> int:
        """The number of a new tensor without data."""
        tensor = self.schema.TensorT()
        name = like.name if isinstance(like.name, bytes) else like.name.encode()
        tensor.name = name + b"/" + suffix.encode()
        tensor.shape = np.array(shape, np.int32)
        tensor.type = kind
        tensor.buffer = 0  # the schema's empty buffer
        graph.tensors.append(tensor)
        return len(graph.tensors) - 1

    def _code(self, name: str, version: int) -> int:
        number = getattr(self.schema.BuiltinOperator, name)
        for place, code in enumerate(self.model.operatorCodes):
            if max(code.builtinCode, code.deprecatedBuiltinCode) == number:
                self.require(name, version)
                return place
        code = self.schema.OperatorCodeT()
        code.builtinCode = number
        code.deprecatedBuiltinCode = min(number, 127)
        code.version = version
        self.model.operatorCodes.append(code)
        self.require(name, version)
        return len(self.model.operatorCodes) - 1

    def require(self, name: str, version: int) -> None:
        """The operation in at least that version, and a runtime that has it."""
        from tfllm.export import flatbuffer

        if (name, version) in RUNTIMES:
            flatbuffer.require_runtime(self.model, RUNTIMES[name, version])
        number = getattr(self.schema.BuiltinOperator, name)
        for code in self.model.operatorCodes:
            if max(code.builtinCode, code.deprecatedBuiltinCode) == number:
                code.version = max(code.version, version)
