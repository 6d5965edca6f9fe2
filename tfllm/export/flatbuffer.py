"""The contents of a .tflite file: operations, tensors, weights, metadata.

The file is a FlatBuffer of TensorFlow's `schema.fbs`; TensorFlow ships the generated reader.
"""

from __future__ import annotations

import io
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import flatbuffers
import numpy as np
from tensorflow.lite.python import schema_py_generated as schema

from tfllm.errors import ArtifactError

TFLITE_FILE = "model.tflite"
METADATA_ENTRY = "TFLITE_METADATA"
# The converter writes here which TensorFlow Lite first has all operations in their versions.
RUNTIME_ENTRY, RUNTIME_BYTES = "min_runtime_version", 16
IDENTIFIER = b"TFL3"
ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # fixed: the same model gives the same bytes


@dataclass(frozen=True)
class Operations:
    """The operations of a file, each with its number of occurrences in all subgraphs."""

    builtin: dict[str, int]
    """`FULLY_CONNECTED:INT8`: the operation and the type of its first output."""
    custom: dict[str, int]
    """Custom operations, TensorFlow's own (`Flex...`) among them."""


def parse(content: bytes, name: str = TFLITE_FILE) -> schema.ModelT:
    """Parse a .tflite file to the schema's ModelT object.

    Args:
        content: The file.
        name: What the error calls it.

    Raises:
        ArtifactError: It is no .tflite file.
    """
    if content[4:8] != IDENTIFIER:
        raise ArtifactError(f"'{name}' is no TFLite file. Export the model again.")
    return schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(bytearray(content), 0))


class _SharingBuilder(flatbuffers.Builder):
    """Write equal vectors of numbers once: every signature names the scales of the same weights.

    The weights themselves, bytes, are left as they are: the schema has one buffer for all.
    """

    def __init__(self, size: int):
        super().__init__(size)
        self._vectors: dict[tuple[str, bytes], int] = {}

    def CreateNumpyVector(self, x: np.ndarray) -> int:
        """Write a vector, or return the offset of an equal one."""
        if x.dtype == np.uint8:
            return super().CreateNumpyVector(x)
        key = (x.dtype.str, x.tobytes())
        if key not in self._vectors:
            self._vectors[key] = super().CreateNumpyVector(x)
        return self._vectors[key]


def serialize(model: schema.ModelT, size: int = 1024) -> bytes:
    """Serialize a ModelT.

    Args:
        model: The model.
        size: A first guess of the number of bytes.
    """
    builder = _SharingBuilder(size)
    builder.Finish(model.Pack(builder), IDENTIFIER)
    return bytes(builder.Output())


def operator_number(model: schema.ModelT, operator: schema.OperatorT) -> int:
    """Return an operator's BuiltinOperator value."""
    return builtin_code(model.operatorCodes[operator.opcodeIndex])


def builtin_code(code: schema.OperatorCodeT) -> int:
    """Return a code's BuiltinOperator value.

    Values up to 126 were once stored in one byte; newer files fill both fields.
    """
    return max(code.builtinCode, code.deprecatedBuiltinCode)


def count_operations(content: bytes) -> Operations:
    """Count every operation of a file."""
    model = parse(content)
    names = _enum_names(schema.BuiltinOperator)
    types = _enum_names(schema.TensorType)
    builtin: Counter[str] = Counter()
    custom: Counter[str] = Counter()
    for graph in model.subgraphs:
        for operator in graph.operators:
            number = operator_number(model, operator)
            if number == schema.BuiltinOperator.CUSTOM:
                custom[model.operatorCodes[operator.opcodeIndex].customCode.decode()] += 1
                continue
            outputs = operator.outputs
            dtype = types[graph.tensors[outputs[0]].type] if outputs.size else ""
            builtin[f"{names[number]}:{dtype}"] += 1
    return Operations(dict(sorted(builtin.items())), dict(sorted(custom.items())))


def weight_bytes(content: bytes) -> int:
    """Return the bytes of all constant tensors: the weights, and little else."""
    model = parse(content)
    return sum(len(buffer.data) for buffer in model.buffers if buffer.data is not None)


def oldest_runtime(model: schema.ModelT) -> str | None:
    """Return the first TensorFlow Lite version that runs a ModelT, such as "2.17.0".

    None where the file does not say.
    """
    for entry in model.metadata or []:
        if _text(entry.name) == RUNTIME_ENTRY:
            data = model.buffers[entry.buffer].data
            return bytes(data).rstrip(b"\0").decode() or None if data is not None else None
    return None


def describe_runtime(model: schema.ModelT) -> str:
    """Return `oldest_runtime` in words."""
    version = oldest_runtime(model)
    return f"TensorFlow Lite {version} or newer" if version else "the file does not say"


def require_runtime(model: schema.ModelT, version: str) -> None:
    """Record in the ModelT that it needs a runtime of at least `version`."""
    recorded = oldest_runtime(model)
    if recorded is not None and version_numbers(recorded) >= version_numbers(version):
        return
    data = np.frombuffer(version.encode().ljust(RUNTIME_BYTES, b"\0"), np.uint8)
    _set_metadata_entry(model, RUNTIME_ENTRY, data)


def version_numbers(version: str) -> tuple[int, ...]:
    """Return version 2.17.0 as (2, 17): a version's third number changes no operation."""
    return tuple(int(part) for part in version.split(".")[:2])


def _set_metadata_entry(model: schema.ModelT, name: str, data: np.ndarray) -> None:
    """Add a metadata buffer uint8 [N] under `name`, in place of an older one."""
    buffer = schema.BufferT()
    buffer.data = data
    model.buffers.append(buffer)
    entry = schema.MetadataT()
    entry.name, entry.buffer = name, len(model.buffers) - 1
    model.metadata = [other for other in model.metadata or [] if _text(other.name) != name]
    model.metadata.append(entry)


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name


def signature_names(model: schema.ModelT) -> list[str]:
    """Return the names of a ModelT's signatures, sorted."""
    return sorted(_text(signature.signatureKey) for signature in model.signatureDefs)


def input_names(model: schema.ModelT) -> list[str]:
    """Return the inputs of the first signature in the order of its subgraph's inputs."""
    signature = model.signatureDefs[0]
    names = {tensor_map.tensorIndex: _text(tensor_map.name) for tensor_map in signature.inputs}
    return [names[number] for number in model.subgraphs[signature.subgraphIndex].inputs]


def with_metadata(content: bytes, metadata: bytes, files: Mapping[str, bytes]) -> bytes:
    """Add metadata and associated files to a .tflite file.

    https://ai.google.dev/edge/litert/models/metadata: readers find the archive by its own directory
    at the end of the file, and stop reading the FlatBuffer before it.

    Args:
        content: The file.
        metadata: The FlatBuffer of the metadata.
        files: Content by name, for the zip archive at the end.

    Returns:
        The file's new content.
    """
    model = parse(content)
    _set_metadata_entry(model, METADATA_ENTRY, np.frombuffer(metadata, np.uint8))
    stream = io.BytesIO()
    stream.write(serialize(model, len(content) + 4096))
    with zipfile.ZipFile(stream, "a", zipfile.ZIP_STORED) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name, ZIP_DATE), data)
    return stream.getvalue()


def associated_files(path: str | Path) -> dict[str, bytes]:
    """Return name -> content of the files in the archive at a .tflite file's end."""
    if not zipfile.is_zipfile(path):
        return {}
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _enum_names(enumeration: type) -> dict[int, str]:
    """Return value -> name of one of the schema's enumerations."""
    return {value: name for name, value in vars(enumeration).items() if isinstance(value, int)}
