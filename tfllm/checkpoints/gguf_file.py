"""The format of GGUF files: metadata and tensors where they stand, without their meaning.

    magic "GGUF", version | counts | key, type, value ... | name, shape, type, offset ... | data

The `gguf` package's own reader makes array objects for every token and every merge: 25 seconds of a
processor for the 262,144 tokens of Gemma. Quantized blocks are still taken apart by the package.

Source: github.com/ggml-org/ggml, docs/gguf.md.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from tfllm.checkpoints.lazy_tensors import aligned_empty
from tfllm.errors import CheckpointError, MissingExtra

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32  # bytes, where `general.alignment` does not say otherwise
# Types of values by their numbers in the format, little-endian.
SCALARS = {
    0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?",
    10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
STRING, ARRAY = 8, 9
CHUNK = 2**18  # bytes that are dequantized at once: the package makes several copies of them


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as the file holds it."""

    shape: tuple[int, ...]
    """Outputs first, as in Hugging Face's files."""
    tensor_type: GGMLQuantizationType
    data: np.ndarray
    """Its bytes, uint8 [blocks, bytes of a block], memory-mapped."""

    def array(self) -> np.ndarray:
        """Return the values as float32 of `shape`, dequantized where needed."""
        values = aligned_empty(self.shape, np.float32)
        flat, size = values.reshape(-1), CHUNK // len(self.data[0])  # values, blocks
        block = flat.size // len(self.data)
        for start in range(0, len(self.data), size):
            part = self.data[start : start + size].reshape(-1)
            flat[start * block : (start + size) * block] = package().quants.dequantize(
                part, self.tensor_type
            )
        return values


def package() -> ModuleType:
    """Return the `gguf` package. Raises MissingExtra."""
    try:
        import gguf
    except ImportError:
        raise MissingExtra("gguf", "gguf") from None
    return gguf


def read_file(path: Path) -> tuple[dict[str, Any], dict[str, StoredTensor]]:
    """Read a file's metadata, and map its tensors into memory.

    Args:
        path: The file.

    Returns:
        Key -> value (numbers, texts, lists of them); name -> tensor.

    Raises:
        CheckpointError: It is no GGUF file, is cut off or damaged.
        MissingExtra: The `gguf` package is missing.
    """
    package()
    with path.open("rb") as file:
        magic = file.read(len(MAGIC))
    if magic != MAGIC:
        raise CheckpointError(f"{path}: not a GGUF file: it begins with {magic!r}. Copy it again.")
    try:
        return _read(np.asarray(np.memmap(path, np.uint8, "r")))
    except (ValueError, KeyError, struct.error, OverflowError, MemoryError) as error:
        raise CheckpointError(
            f"{path}: the file cannot be read as GGUF ({error}). It was cut off or is damaged; "
            "copy it again."
        ) from None


class _Cursor:
    """A place in the bytes of a file that moves on with every value read."""

    def __init__(self, content: np.ndarray, place: int):
        self.content = memoryview(content)  # type: ignore[arg-type]
        self.place = place

    def number(self, code: str) -> Any:
        (value,) = struct.unpack_from(f"<{code}", self.content, self.place)
        self.place += struct.calcsize(f"<{code}")
        return value

    def text(self) -> str:
        size = self.number("Q")
        start, self.place = self.place, self.place + size
        self._check_end()
        return str(self.content[start : self.place], "utf-8")

    def scalars(self, dtype: str, count: int) -> list[Any]:
        start, self.place = self.place, self.place + count * np.dtype(dtype).itemsize
        self._check_end()
        return np.frombuffer(self.content[start : self.place], dtype).tolist()

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.text()
        if kind in SCALARS:
            return self.scalars(SCALARS[kind], 1)[0]
        if kind != ARRAY:
            raise ValueError(f"a value has type {kind}")
        kind, count = self.number("I"), self.number("Q")
        if kind in SCALARS:
            return self.scalars(SCALARS[kind], count)
        read: Callable[[], Any] = self.text if kind == STRING else lambda: self.value(kind)
        return [read() for _ in range(count)]

    def _check_end(self) -> None:
        if self.place > len(self.content):
            raise ValueError("it ends inside a value")


def _read(content: np.ndarray) -> tuple[dict[str, Any], dict[str, StoredTensor]]:
    cursor = _Cursor(content, len(MAGIC))
    version = cursor.number("I")
    if version not in VERSIONS:
        raise ValueError(
            "its numbers are big-endian"
            if version & 0xFFFF == 0
            else f"version {version}; versions {VERSIONS[0]} and {VERSIONS[1]} are read"
        )
    num_tensors, num_values = cursor.number("Q"), cursor.number("Q")
    metadata: dict[str, Any] = {}
    for _ in range(num_values):
        key = cursor.text()
        if key in metadata:
            raise ValueError(f"the key {key} is there twice")
        metadata[key] = cursor.value(cursor.number("I"))
    places = {}
    for _ in range(num_tensors):
        name = cursor.text()
        if name in places:
            raise ValueError(f"the tensor {name} is there twice")
        sizes = [cursor.number("Q") for _ in range(cursor.number("I"))]
        places[name] = tuple(reversed(sizes)), cursor.number("I"), cursor.number("Q")
    alignment = metadata.get("general.alignment", ALIGNMENT)
    if alignment < 1 or alignment & (alignment - 1):
        raise ValueError(f"general.alignment is {alignment}, no power of two")
    start = math.ceil(cursor.place / alignment) * alignment
    return metadata, {
        name: _stored(content, name, shape, kind, start + offset)
        for name, (shape, kind, offset) in places.items()
    }


def _stored(
    content: np.ndarray, name: str, shape: tuple[int, ...], kind: int, start: int
) -> StoredTensor:
    tensor_type = package().GGMLQuantizationType(kind)
    block, block_bytes = package().GGML_QUANT_SIZES[tensor_type]
    columns = shape[-1] if shape else 1
    if columns % block:
        raise ValueError(f"a row of {name} has {columns} values, no multiple of {block}")
    end = start + math.prod(shape) // block * block_bytes
    if end > len(content):
        raise ValueError(f"it ends inside the tensor {name}")
    return StoredTensor(shape, tensor_type, content[start:end].reshape(-1, block_bytes))
