"""The interpreter of ai-edge-litert."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from tfllm.errors import ArtifactError, MissingExtra

if TYPE_CHECKING:
    from ai_edge_litert.interpreter import Interpreter


def open_interpreter(path: Path, takes_text: bool = False) -> Interpreter:
    """Open a .tflite file on all cores.

    Args:
        path: The file.
        takes_text: Register TensorFlow Text's operations.

    Raises:
        ArtifactError: The file cannot be run.
        MissingExtra: ai-edge-litert is not installed.
    """
    try:
        from ai_edge_litert import interpreter as litert
    except ImportError:
        raise MissingExtra("ai-edge-litert", "edge") from None
    threads = os.cpu_count()
    try:
        if takes_text:
            import tensorflow_text

            return litert.InterpreterWithCustomOps(
                model_path=str(path),
                num_threads=threads,
                custom_op_registerers=tensorflow_text.tflite_registrar.SELECT_TFTEXT_OPS,
            )
        return litert.Interpreter(model_path=str(path), num_threads=threads)
    except (ValueError, RuntimeError) as error:
        raise cannot_run(path, error) from None


def cannot_run(path: Path, error: Exception) -> ArtifactError:
    """Return the error to raise for a file that ai-edge-litert refuses.

    Args:
        path: The file.
        error: What ai-edge-litert raised.
    """
    first = str(error).strip().splitlines()[0]
    return ArtifactError(
        f"'{path}' is not a TFLite file that ai-edge-litert can run ({first}). Export it again."
    )
