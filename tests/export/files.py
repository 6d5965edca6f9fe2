"""Changes to .tflite files that a check has to find."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import flatbuffers

from tfllm.export import flatbuffer

SMALLEST_WEIGHTS = 256  # bytes; what is smaller are shapes and scalars


def changed(content: bytes, change: Callable[[Any], None]) -> bytes:
    """The file after `change` of its ModelT."""
    model = flatbuffer.parse(content)
    change(model)
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def without_weights(model: Any) -> None:
    """Its constants are tensors that nothing ever fills."""
    for buffer in model.buffers:
        if buffer.data is not None and len(buffer.data) >= SMALLEST_WEIGHTS:
            buffer.data = None


COPIES = 9


def with_copies(model: Any) -> None:
    """Every constant of the file ten times: in a tiny one, twice is no more than shapes may be."""
    constants = [buffer for buffer in model.buffers if buffer.data is not None]
    model.buffers += [deepcopy(buffer) for buffer in constants * COPIES]
