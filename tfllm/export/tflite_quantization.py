"""int8 and int4 weights for language models: rewrites the matrices of a float32 .tflite file.

TensorFlow's own dynamic range quantization writes a tied embedding twice, as int8 with one scale
for the lookup and as int8 with a scale per row for the logits. Here both operations read one matrix
with a scale per row. Matrix products are "hybrid": the runtime quantizes the activations, row by
row, at run time.

int4: groups of 32 weights of a row share a scale (float16). Embeddings and logits stay int8, as
does a matrix whose row length is not a multiple of 32.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tensorflow.lite.python import schema_py_generated as schema

from tfllm.export import flatbuffer

MIN_WEIGHTS = 1024  # smaller constants stay float32
MAX_INT8, MAX_INT4 = 127, 7
GROUP_SIZE = 32
EPSILON = 1e-12  # keeps the scale of a row of zeros above zero
# First versions of the operations that take such weights, and the TensorFlow Lite that has them
# (tflite/tools/versioning: op_version.cc, runtime_version.cc). An older runtime would run a lower
# version of the operation and multiply all rows by the first row's scale.
FULLY_CONNECTED_PER_ROW, FULLY_CONNECTED_PER_GROUP, LOOKUP_PER_ROW = 12, 13, 4
OPERATION_RUNTIMES = {
    ("FULLY_CONNECTED", FULLY_CONNECTED_PER_ROW): "2.17.0",
    ("FULLY_CONNECTED", FULLY_CONNECTED_PER_GROUP): "2.18.0",
    ("EMBEDDING_LOOKUP", LOOKUP_PER_ROW): "2.18.0",
}
OLDEST_RUNTIME = "2.18"  # of a file with all of them


@dataclass(frozen=True)
class Matrix:
    """Quantized weights [rows, columns]."""

    values: np.ndarray
    """int8"""
    scales: np.ndarray
    """float32 [rows], or float16 [rows, columns / GROUP_SIZE]"""
    bits: int

    @property
    def is_grouped(self) -> bool:
        """Whether groups of a row have their own scales."""
        return self.scales.ndim == 2

    @property
    def packed(self) -> np.ndarray:
        """uint8 as stored in the file: two int4 in a byte, the first in its lower half."""
        flat = self.values.reshape(-1)
        if self.bits == 8:
            return flat.view(np.uint8)
        low, high = flat[0::2] & 15, flat[1::2] & 15
        return (low | (high << 4)).astype(np.uint8)


def quantize_rows(weights: np.ndarray) -> Matrix:
    """Quantize float32 [rows, columns] to int8 with a scale per row."""
    scales = (np.abs(weights).max(axis=1) / MAX_INT8 + EPSILON).astype(np.float32)
    values = np.rint(weights / scales[:, None]).clip(-MAX_INT8, MAX_INT8)
    return Matrix(values.astype(np.int8), scales, 8)


def quantize_groups(weights: np.ndarray) -> Matrix:
    """Quantize float32 [rows, columns] to int4 with a scale per GROUP_SIZE columns of a row."""
    groups = weights.reshape(len(weights), -1, GROUP_SIZE)
    scales = np.abs(groups).max(axis=-1) / MAX_INT4
    scales = np.maximum(scales, np.finfo(np.float16).tiny).astype(np.float16)
    values = np.rint(groups / scales[..., None].astype(np.float32))
    values = values.clip(-MAX_INT4 - 1, MAX_INT4).astype(np.int8)
    return Matrix(values.reshape(weights.shape), scales, 4)


def quantize_weights(content: bytes, bits: int, vocabulary_size: int) -> bytes:
    """Quantize the weights of matrix products, and the embedding table to int8.

    Args:
        content: A float file.
        bits: Of the weights: 8 or 4.
        vocabulary_size: Rows of the embedding table.

    Returns:
        The file's new content.
    """
    model = flatbuffer.parse(content)
    rewriter = _Rewriter(model)
    matrices = {
        index: _quantize(weights, bits, vocabulary_size)
        for index, weights in rewriter.weight_matrices(vocabulary_size).items()
    }
    for index, matrix in matrices.items():
        model.buffers[index].data = matrix.packed
    for graph in model.subgraphs:
        rewriter.declare_quantized_tensors(graph, matrices)
        graph.operators = [new for old in graph.operators for new in rewriter.rewrite(graph, old)]
    if any(matrix.is_grouped for matrix in matrices.values()):
        rewriter.require_version("FULLY_CONNECTED", FULLY_CONNECTED_PER_GROUP)
    size = sum(len(matrix.packed) for matrix in matrices.values()) + 2**20
    return flatbuffer.serialize(model, size)


def _quantize(weights: np.ndarray, bits: int, vocabulary_size: int) -> Matrix:
    fills_groups = weights.shape[1] % GROUP_SIZE == 0
    if bits == 4 and fills_groups and len(weights) != vocabulary_size:
        return quantize_groups(weights)
    return quantize_rows(weights)


class _Rewriter:
    """Changes the tensors and operators of a ModelT that read quantized matrices."""

    def __init__(self, model: schema.ModelT):
        self.model = model
        self._quantized: dict[tuple[int, int], Matrix] = {}  # (subgraph's id, tensor index)
        self._scale_buffers: dict[int, int] = {}  # a matrix's buffer -> that of its group scales

    def weight_matrices(self, vocabulary_size: int) -> dict[int, np.ndarray]:
        """Return buffer index -> float32 [rows, columns] of the weights of matrix products and
        embedding lookups."""
        builtin = schema.BuiltinOperator
        matrices: dict[int, np.ndarray] = {}
        for graph in self.model.subgraphs:
            for operator in graph.operators:
                number = flatbuffer.operator_number(self.model, operator)
                if number == builtin.FULLY_CONNECTED:
                    tensor = graph.tensors[operator.inputs[1]]
                elif number == builtin.GATHER:
                    tensor = graph.tensors[operator.inputs[0]]
                    if tensor.shape[0] != vocabulary_size:
                        continue
                else:
                    continue
                weights = self._constant_matrix(tensor)
                if weights is not None:
                    matrices[tensor.buffer] = weights
        return matrices

    def _constant_matrix(self, tensor: schema.TensorT) -> np.ndarray | None:
        """Return a large constant float32 matrix's values, or None."""
        data = self.model.buffers[tensor.buffer].data
        size = int(np.prod(tensor.shape))
        if (
            data is None
            or tensor.type != schema.TensorType.FLOAT32
            or size < MIN_WEIGHTS
            or len(tensor.shape) != 2
        ):
            return None
        return np.asarray(data, np.uint8).view(np.float32).reshape(tensor.shape)

    def declare_quantized_tensors(
        self, graph: schema.SubGraphT, matrices: dict[int, Matrix]
    ) -> None:
        """Set type and scales of the tensors that read quantized buffers."""
        types = schema.TensorType
        for index, tensor in enumerate(list(graph.tensors)):
            matrix = matrices.get(tensor.buffer)
            if matrix is None:
                continue
            self._quantized[id(graph), index] = matrix
            tensor.type = types.INT8 if matrix.bits == 8 else types.INT4
            tensor.quantization = self._parameters(graph, tensor, matrix)

    def _parameters(
        self, graph: schema.SubGraphT, tensor: schema.TensorT, matrix: Matrix
    ) -> schema.QuantizationParametersT:
        parameters = schema.QuantizationParametersT()
        parameters.quantizedDimension = 0
        if not matrix.is_grouped:
            parameters.scale = matrix.scales
            parameters.zeroPoint = np.zeros(len(matrix.scales), np.int64)
            return parameters
        if tensor.buffer not in self._scale_buffers:
            buffer = schema.BufferT()
            buffer.data = matrix.scales.reshape(-1).view(np.uint8)
            self.model.buffers.append(buffer)
            self._scale_buffers[tensor.buffer] = len(self.model.buffers) - 1
        scales = self._add_tensor(
            graph, tensor, "scales", matrix.scales.shape, schema.TensorType.FLOAT16
        )
        graph.tensors[scales].buffer = self._scale_buffers[tensor.buffer]
        details = schema.BlockwiseQuantizationT()
        details.scales, details.zeroPoints, details.blockSize = scales, -1, GROUP_SIZE
        parameters.detailsType = schema.QuantizationDetails.BlockwiseQuantization
        parameters.details = details
        return parameters

    def rewrite(
        self, graph: schema.SubGraphT, operator: schema.OperatorT
    ) -> list[schema.OperatorT]:
        """Return the operators that replace an operator."""
        builtin = schema.BuiltinOperator
        number = flatbuffer.operator_number(self.model, operator)
        if number == builtin.FULLY_CONNECTED and (id(graph), operator.inputs[1]) in self._quantized:
            operator.builtinOptions.asymmetricQuantizeInputs = True
            self.require_version("FULLY_CONNECTED", FULLY_CONNECTED_PER_ROW)
        elif number == builtin.GATHER and (id(graph), operator.inputs[0]) in self._quantized:
            return self._embedding_lookup(graph, operator)
        return [operator]

    def _embedding_lookup(
        self, graph: schema.SubGraphT, operator: schema.OperatorT
    ) -> list[schema.OperatorT]:
        """Return EMBEDDING_LOOKUP in place of GATHER. It takes a list of ids, so [1, T] ids are
        reshaped before and after."""
        table, ids = operator.inputs
        output = operator.outputs[0]
        shape = [int(size) for size in graph.tensors[output].shape]
        count = int(np.prod(shape[:-1]))
        flat_ids = self._add_tensor(
            graph, graph.tensors[ids], "flat", (count,), graph.tensors[ids].type
        )
        flat = self._add_tensor(
            graph,
            graph.tensors[output],
            "flat",
            (count, shape[-1]),
            schema.TensorType.FLOAT32,
        )
        lookup = schema.OperatorT()
        lookup.opcodeIndex = self._operator_code("EMBEDDING_LOOKUP", LOOKUP_PER_ROW)
        lookup.inputs = np.array([flat_ids, table], np.int32)
        lookup.outputs = np.array([flat], np.int32)
        return [
            self._reshape(ids, flat_ids, [count]),
            lookup,
            self._reshape(flat, output, shape),
        ]

    def _reshape(self, source: int, target: int, shape: list[int]) -> schema.OperatorT:
        operator = schema.OperatorT()
        operator.opcodeIndex = self._operator_code("RESHAPE", 1)
        operator.inputs = np.array([source], np.int32)
        operator.outputs = np.array([target], np.int32)
        options = schema.ReshapeOptionsT()
        options.newShape = np.array(shape, np.int32)
        operator.builtinOptionsType = schema.BuiltinOptions.ReshapeOptions
        operator.builtinOptions = options
        return operator

    def _add_tensor(
        self,
        graph: schema.SubGraphT,
        like: schema.TensorT,
        suffix: str,
        shape: tuple[int, ...],
        dtype: int,
    ) -> int:
        """Add a tensor without data, named after another; return its index."""
        tensor = schema.TensorT()
        name = like.name if isinstance(like.name, bytes) else like.name.encode()
        tensor.name = name + b"/" + suffix.encode()
        tensor.shape = np.array(shape, np.int32)
        tensor.type = dtype
        tensor.buffer = 0  # the schema's empty buffer
        graph.tensors.append(tensor)
        return len(graph.tensors) - 1

    def _operator_code(self, name: str, version: int) -> int:
        """Return the index of an operation's code, which is added where it is missing."""
        number = getattr(schema.BuiltinOperator, name)
        for index, code in enumerate(self.model.operatorCodes):
            if flatbuffer.builtin_code(code) == number:
                self.require_version(name, version)
                return index
        code = schema.OperatorCodeT()
        code.builtinCode = number
        code.deprecatedBuiltinCode = min(number, 127)
        code.version = version
        self.model.operatorCodes.append(code)
        self.require_version(name, version)
        return len(self.model.operatorCodes) - 1

    def require_version(self, name: str, version: int) -> None:
        """Record that the file needs at least this version of an operation, and a runtime with
        it."""
        if (name, version) in OPERATION_RUNTIMES:
            flatbuffer.require_runtime(self.model, OPERATION_RUNTIMES[name, version])
        number = getattr(schema.BuiltinOperator, name)
        for code in self.model.operatorCodes:
            if flatbuffer.builtin_code(code) == number:
                code.version = max(code.version, version)
