"""What is inside a .tflite file: operations, tensors, weights, and room for metadata.

The file is a FlatBuffer of TensorFlow's `schema.fbs`; TensorFlow ships the generated reader.
"""

from __future__ import annotations

import io
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfllm.errors import ArtifactError

FLEX = "Flex"  # prefix of TensorFlow's own operations, which a phone's runtime does not have
METADATA = "TFLITE_METADATA"
# The converter writes here which TensorFlow Lite first has all operations in their versions.
RUNTIME, RUNTIME_BYTES = "min_runtime_version", 16


@dataclass(frozen=True)
class Operations:
    """The operations of a file, each with how often it occurs in all its subgraphs."""

    builtin: dict[str, int]  # "FULLY_CONNECTED:INT8": operation and the type of what it gives
    custom: dict[str, int]

    @property
    def flex(self) -> list[str]:
        """Those that need TensorFlow itself in the runtime."""
        return [name for name in self.custom if name.startswith(FLEX)]


def parse(content: bytes, name: str = "model.tflite") -> Any:
    """The file as the schema's ModelT object. Raises ArtifactError for anything else."""
    from tensorflow.lite.python import schema_py_generated as schema

    if content[4:8] != b"TFL3":
        raise ArtifactError(f"'{name}' is no TFLite file. Export the model again.")
    return schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(bytearray(content), 0))


def operations(content: bytes) -> Operations:
    """Counts every operation of a file."""
    from tensorflow.lite.python import schema_py_generated as schema

    model = parse(content)
    names = _constants(schema.BuiltinOperator)
    types = _constants(schema.TensorType)
    builtin: Counter[str] = Counter()
    custom: Counter[str] = Counter()
    for graph in model.subgraphs:
        for operator in graph.operators:
            code = model.operatorCodes[operator.opcodeIndex]
            # Numbers up to 126 were once kept in one byte; newer files fill both fields.
            number = max(code.builtinCode, code.deprecatedBuiltinCode)
            if number == schema.BuiltinOperator.CUSTOM:
                custom[code.customCode.decode()] += 1
            else:
                kind = (
                    types[graph.tensors[operator.outputs[0]].type] if operator.outputs.size else ""
                )
                builtin[f"{names[number]}:{kind}"] += 1
    return Operations(dict(sorted(builtin.items())), dict(sorted(custom.items())))


def weight_bytes(content: bytes) -> int:
    """Bytes of all constant tensors: the weights, and little else."""
    model = parse(content)
    return sum(len(buffer.data) for buffer in model.buffers if buffer.data is not None)


def oldest_runtime(model: Any) -> str | None:
    """The TensorFlow Lite version, "2.17.0", from which on a ModelT runs; None where it does not
    tell."""
    for entry in model.metadata or []:
        if _text(entry.name) == RUNTIME:
            data = model.buffers[entry.buffer].data
            return bytes(data).rstrip(b"\0").decode() or None if data is not None else None
    return None


def shown_runtime(model: Any) -> str:
    """The same in words."""
    found = oldest_runtime(model)
    return f"TensorFlow Lite {found} or newer" if found else "the file does not say"


def require_runtime(model: Any, version: str) -> None:
    """Says in the ModelT that no runtime older than `version` has what it holds."""
    import numpy as np
    from tensorflow.lite.python import schema_py_generated as schema

    known = oldest_runtime(model)
    if known is not None and as_numbers(known) >= as_numbers(version):
        return
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(version.encode().ljust(RUNTIME_BYTES, b"\0"), np.uint8)
    model.buffers.append(buffer)
    entry = schema.MetadataT()
    entry.name, entry.buffer = RUNTIME, len(model.buffers) - 1
    model.metadata = [old for old in model.metadata or [] if _text(old.name) != RUNTIME]
    model.metadata.append(entry)


def as_numbers(version: str) -> tuple[int, ...]:
    """Version 2.17.0 as (2, 17): a version's third number changes no operation."""
    return tuple(int(part) for part in version.split(".")[:2])


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else name


def input_names(model: Any) -> list[str]:
    """The inputs of a ModelT's first signature in the order of its subgraph's."""
    signature = model.signatureDefs[0]
    names = {one.tensorIndex: _text(one.name) for one in signature.inputs}
    return [names[number] for number in model.subgraphs[signature.subgraphIndex].inputs]


def with_metadata(content: bytes, metadata: bytes, files: Mapping[str, bytes]) -> bytes:
    """The file with a metadata FlatBuffer inside and `files` as a zip archive at its end.

    https://ai.google.dev/edge/litert/models/metadata: readers find the archive by its own directory
    at the end of the file, and stop reading the FlatBuffer before it.
    """
    import flatbuffers
    from tensorflow.lite.python import schema_py_generated as schema

    model = parse(content)
    buffer = schema.BufferT()
    buffer.data = list(metadata)
    model.buffers.append(buffer)
    entry = schema.MetadataT()
    entry.name, entry.buffer = METADATA, len(model.buffers) - 1
    model.metadata = [old for old in model.metadata or [] if _text(old.name) != METADATA]
    model.metadata.append(entry)
    builder = flatbuffers.Builder(len(content) + 4096)
    builder.Finish(model.Pack(builder), b"TFL3")
    out = io.BytesIO()
    out.write(bytes(builder.Output()))
    with zipfile.ZipFile(out, "a", zipfile.ZIP_STORED) as archive:
        for name, data in files.items():
            # A fixed date: the same model gives the same bytes.
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data)
    return out.getvalue()


def associated_files(path: str | Path) -> dict[str, bytes]:
    """The files inside a .tflite file; none where it carries none."""
    if not zipfile.is_zipfile(path):
        return {}
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _constants(names: type) -> dict[int, str]:
    """Number to name of one of the schema's enumerations."""
    return {value: key for key, value in vars(names).items() if isinstance(value, int)}
