"""Tensors as numpy arrays: their specification in a signature, and TensorProto both ways.

A TensorProto comes from outside and is not believed: a shape may be negative, may not fit the
content, or may ask for a terabyte with four bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2
from tensorflow.core.protobuf import meta_graph_pb2

from tfllm.serving.schema import invalid

MAX_ELEMENTS = 1 << 24
MAX_DIMENSIONS = 64  # numpy's limit; TensorFlow's is 254
VARINT_BYTES = 10  # of 64 bits, seven in a byte

# DataType name -> the TensorProto field that holds its values.
FIELDS = {
    "float": "float_val",
    "double": "double_val",
    "int32": "int_val",
    "int16": "int_val",
    "int8": "int_val",
    "uint8": "int_val",
    "uint16": "int_val",
    "int64": "int64_val",
    "bool": "bool_val",
    "string": "string_val",
    "uint32": "uint32_val",
    "uint64": "uint64_val",
    "half": "half_val",
    "bfloat16": "half_val",
}
BITS_IN_FIELD = {"half", "bfloat16"}  # stored as the 16 bits, in int32


def type_name(dtype: tf.DType) -> str:
    """Return TensorFlow's C++ name: `float` where Python says `float32`."""
    return {"float32": "float", "float64": "double", "float16": "half"}.get(dtype.name, dtype.name)


def shape_text(shape: tuple[int, ...]) -> str:
    """Return `[2,?]`."""
    return "[" + ",".join("?" if size < 0 else str(size) for size in shape) + "]"


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a signature. `shape`: None for unknown rank, -1 for any size."""

    tensor: str
    type: str
    shape: tuple[int, ...] | None
    dtype: np.dtype

    @classmethod
    def of(cls, info: meta_graph_pb2.TensorInfo) -> TensorSpec:
        """Read a TensorInfo proto."""
        if kind := info.WhichOneof("encoding"):
            if kind != "name":  # coo_sparse, composite_tensor: several tensors with one name
                return cls("", kind, None, np.dtype(object))
        shape = info.tensor_shape
        dtype = tf.dtypes.as_dtype(info.dtype) if info.dtype else tf.float32
        sizes = None if shape.unknown_rank else tuple(int(dim.size) for dim in shape.dim)
        return cls(info.name, type_name(dtype), sizes, np.dtype(dtype.as_numpy_dtype))

    def check(self, name: str, array: np.ndarray) -> None:
        """Check that an array can be fed.

        Args:
            name: The input's name, for the message.
            array: The array.

        Raises:
            RequestError: INVALID_ARGUMENT, type or shape do not fit.
        """
        if not self.tensor:
            raise invalid(
                f"Input '{name}' is no dense tensor ({self.type}) and cannot be fed. Export a "
                "signature of dense tensors."
            )
        if array.dtype != self.dtype:
            sent = type_name(tf.dtypes.as_dtype(array.dtype))
            raise invalid(f"Input '{name}' is of type {sent}, and the signature takes {self.type}.")
        if self.shape is None:
            return
        fits = len(array.shape) == len(self.shape) and all(
            expected in (-1, size) for expected, size in zip(self.shape, array.shape, strict=True)
        )
        if not fits:
            raise invalid(
                f"Input '{name}' has shape {shape_text(array.shape)}, and the signature takes "
                f"{shape_text(self.shape)}."
            )


def from_proto(proto: tensor_pb2.TensorProto, max_elements: int = MAX_ELEMENTS) -> np.ndarray:
    """Convert a TensorProto to an array; strings are bytes objects.

    Args:
        proto: The tensor.
        max_elements: How many values it may have.

    Raises:
        RequestError: INVALID_ARGUMENT, it is not valid or too large.
    """
    try:
        dtype = tf.dtypes.as_dtype(proto.dtype)
        name = type_name(dtype)
        field = FIELDS[name]
    except (KeyError, TypeError, ValueError):
        raise invalid(f"Tensors of type {proto.dtype} cannot be read.") from None
    shape = tuple(int(dim.size) for dim in proto.tensor_shape.dim)
    if proto.tensor_shape.unknown_rank or any(size < 0 for size in shape):
        raise invalid("A tensor needs a shape without negative sizes.")
    if len(shape) > MAX_DIMENSIONS:
        raise invalid(f"A tensor of {len(shape)} dimensions; {MAX_DIMENSIONS} is the maximum.")
    count = math.prod(shape)
    # The product without empty dimensions too: numpy computes it, and it may overflow.
    if math.prod(size for size in shape if size) > max_elements:
        raise invalid(
            f"A tensor of shape {shape_text(shape)} is larger than {max_elements} elements."
        )
    numpy_type = np.dtype(dtype.as_numpy_dtype)
    if proto.tensor_content:
        return _from_content(proto.tensor_content, numpy_type, shape, count)
    values = getattr(proto, field)
    if len(values) > count:
        raise invalid(f"{len(values)} values do not fill a tensor of shape {shape_text(shape)}.")
    if name in BITS_IN_FIELD:
        flat = np.array(values, np.int64).astype(np.uint16).view(numpy_type)  # TensorFlow cuts too
    elif numpy_type.kind == "O":
        flat = np.empty(len(values), object)
        flat[:] = values
    else:
        flat = np.array(values, np.int64 if field == "int_val" else None).astype(numpy_type)
    if len(values) < count:  # TensorFlow's short form: the last value fills the rest
        last = flat[-1] if len(values) else (b"" if numpy_type.kind == "O" else numpy_type.type(0))
        rest = np.empty(count - len(values), numpy_type)
        rest[:] = last
        flat = np.concatenate([flat.astype(numpy_type), rest])
    return flat.reshape(shape)


def to_proto(array: np.ndarray) -> tensor_pb2.TensorProto:
    """Return an array as a TensorProto with typed fields, as TF Serving answers."""
    from tensorflow.core.framework import tensor_pb2

    dtype = tf.dtypes.as_dtype(array.dtype) if array.dtype.kind != "O" else tf.string
    name = type_name(dtype)
    proto = tensor_pb2.TensorProto(dtype=dtype.as_datatype_enum)
    for size in array.shape:
        proto.tensor_shape.dim.add().size = size
    if name not in FIELDS:
        proto.tensor_content = array.tobytes()
        return proto
    flat = array.ravel()
    values = flat.view(np.uint16) if name in BITS_IN_FIELD else flat
    getattr(proto, FIELDS[name]).extend(values.tolist())
    return proto


def _from_content(content: bytes, dtype: np.dtype, shape: tuple, count: int) -> np.ndarray:
    if dtype.kind == "O":
        return _strings_from_content(content, shape, count)
    if len(content) != count * dtype.itemsize:
        raise invalid(
            f"{len(content)} bytes of tensor_content do not fill a tensor of shape "
            f"{shape_text(shape)}."
        )
    return np.frombuffer(content, dtype).reshape(shape)


def _strings_from_content(content: bytes, shape: tuple, count: int) -> np.ndarray:
    """Read `count` lengths as varints, then the bytes of all strings."""
    lengths, position = [], 0
    try:
        for _ in range(count):
            value = 0
            for shift in range(0, 7 * VARINT_BYTES, 7):
                byte = content[position]
                position += 1
                value |= (byte & 0x7F) << shift
                if byte < 0x80:
                    break
            else:
                raise invalid("tensor_content has a length of more than 64 bits.")
            lengths.append(value)
    except IndexError:
        raise invalid("tensor_content ends before its last string.") from None
    if position + sum(lengths) != len(content):
        raise invalid("tensor_content does not hold the strings that it announces.")
    flat = np.empty(count, object)
    for index, length in enumerate(lengths):
        flat[index] = content[position : position + length]
        position += length
    return flat.reshape(shape)
