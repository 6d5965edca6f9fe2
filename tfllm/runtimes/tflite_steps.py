"""The signatures `prefill_N`, `decode` and `encode` of a .tflite file, run by ai-edge-litert.

The caches stay in the runtime's own memory: what one call wrote is what the next one reads.
"""

from __future__ import annotations

import atexit
import functools
import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tfllm.errors import ArtifactError, MissingExtra
from tfllm.runtimes.quiet import quiet, silence

if TYPE_CHECKING:
    from ai_edge_litert.compiled_model import CompiledModel
    from ai_edge_litert.environment import Environment
    from ai_edge_litert.tensor_buffer import TensorBuffer

DECODE = "decode"
ENCODE = "encode"
PREFILL = "prefill_"
CACHE = "kv_cache_"
MASKED = -1e9  # what the mask adds to the scores of masked positions


class TFLiteSteps:
    """One text at a time, from its first token on.

    Args:
        path: The file.
        content: The model's bytes, where it is inside of the file.

    Raises:
        ArtifactError: The file has no such signatures, or cannot be run.
    """

    def __init__(self, path: Path, content: bytes | None = None):
        _quiet_at_exit()
        with quiet():  # LiteRT logs each of its parts
            self._open(path, content)

    def _open(self, path: Path, content: bytes | None) -> None:
        environment, self._model = _compile(path, content)
        weakref.finalize(self, _close, self._model, environment)
        signatures = self._model.get_signature_list()
        if DECODE not in signatures:
            raise ArtifactError(
                f"'{path}' has no signature {DECODE} (it has: {', '.join(signatures) or 'none'}). "
                "Export the model with tfllm export --to tflite-float32."
            )
        inputs = self._model.get_input_tensor_details(DECODE)
        outputs = self._model.get_output_tensor_details(DECODE)
        self.context = int(inputs["mask"]["shape"][-1])
        """Tokens of prompt and text together."""
        self.vocabulary_size = int(outputs["logits"]["shape"][-1])
        self.prefill_lengths = sorted(
            int(name.removeprefix(PREFILL)) for name in signatures if name.startswith(PREFILL)
        )
        self._names = [name for name in inputs if name.startswith(CACHE)]
        self._inputs = {name: self._input(DECODE, name) for name in self._names}
        self._outputs = {name: self._output(DECODE, name) for name in self._names}
        for name, buffer in self._inputs.items():  # masked positions must still be numbers
            buffer.write(np.zeros([int(size) for size in inputs[name]["shape"]], np.float32))
        self._logits = self._output(DECODE, "logits")
        self.source_length = 0
        """Maximum number of tokens of a source; 0: the model reads none."""
        if ENCODE in signatures:
            self._open_source()
        self._rows: dict[str, dict[str, TensorBuffer]] = {}

    def _open_source(self) -> None:
        details = self._model.get_input_tensor_details(ENCODE)
        self.source_length = int(details["source_ids"]["shape"][-1])
        names = self._model.get_output_tensor_details(ENCODE)
        self._source = {name: self._input(DECODE, name) for name in names}
        self._inputs |= self._source
        self._source_row = {name: self._input(ENCODE, name) for name in details}

    def encode(self, source: Sequence[int]) -> None:
        """Run the encoder on the source of the next texts."""
        ids = np.zeros([1, self.source_length], np.int32)
        ids[0, : len(source)] = source
        self._source_row["source_ids"].write(ids)
        self._source_row["source_length"].write(np.array([len(source)], np.int32))
        self._model.run_by_name(ENCODE, self._source_row, self._source)

    def read(self, ids: Sequence[int], position: int = 0) -> None:
        """Feed tokens.

        Args:
            ids: Token ids.
            position: The position of the first one.
        """
        done = 0
        while done < len(ids):
            remaining, free = len(ids) - done, self.context - position - done
            fitting = [n for n in self.prefill_lengths if n <= free]
            # One padded call is quicker than several small ones, as long as half of it counts.
            padded = [n for n in fitting if remaining <= n <= 2 * remaining]
            whole = [n for n in fitting if n <= remaining]
            length = min(padded) if padded else max(whole) if whole else min(fitting, default=1)
            chunk = ids[done : done + length]
            name = f"{PREFILL}{length}" if fitting else DECODE
            self._run(name, chunk, length if fitting else 1, position + done)
            done += len(chunk)

    def step(self, token: int, position: int) -> np.ndarray:
        """Feed one token.

        Args:
            token: Its id.
            position: Its position.

        Returns:
            Logits of the next token: float32 [V].
        """
        self._run(DECODE, [token], 1, position)
        return self._logits.read(self.vocabulary_size, np.float32)

    def _run(self, name: str, ids: Sequence[int], length: int, position: int) -> None:
        if name not in self._rows:
            parts = ("tokens", "input_pos", "mask")
            self._rows[name] = {part: self._input(name, part) for part in parts}
        row = self._rows[name]
        tokens, positions = np.zeros([1, length], np.int32), np.zeros([length], np.int32)
        tokens[0, : len(ids)] = ids
        positions[: len(ids)] = np.arange(position, position + len(ids))
        seen = np.arange(self.context)[None] <= positions[:, None]
        seen[len(ids) :] = False
        row["tokens"].write(tokens)
        row["input_pos"].write(positions)
        row["mask"].write(np.where(seen, 0, MASKED).astype(np.float32)[None, None])
        outputs = dict(self._outputs)
        if name == DECODE:
            outputs["logits"] = self._logits
        self._model.run_by_name(name, {**row, **self._inputs}, outputs)
        caches = {cache: self._inputs[cache] for cache in self._names}
        self._inputs, self._outputs = {**self._inputs, **self._outputs}, caches

    def _input(self, signature: str, name: str) -> TensorBuffer:
        return self._model.create_input_buffer_by_name(signature, name)

    def _output(self, signature: str, name: str) -> TensorBuffer:
        return self._model.create_output_buffer_by_name(signature, name)


def _compile(path: Path, content: bytes | None) -> tuple[Environment, CompiledModel]:
    """(environment, model) of LiteRT, on all cores."""
    try:
        from ai_edge_litert.compiled_model import CompiledModel
        from ai_edge_litert.environment import Environment
        from ai_edge_litert.hardware_accelerator import HardwareAccelerator
        from ai_edge_litert.interpreter import Interpreter
        from ai_edge_litert.options import CpuOptions, Options
    except ImportError:
        raise MissingExtra("ai-edge-litert", "edge") from None
    options = Options(
        hardware_accelerators=HardwareAccelerator.CPU,
        cpu_options=CpuOptions(num_threads=os.cpu_count() or 1),
    )
    try:
        # The interpreter checks a file; CompiledModel does not, and a damaged one is fatal.
        Interpreter(model_path=str(path)) if content is None else Interpreter(model_content=content)
        environment = Environment.create()
        if content is not None:
            model = CompiledModel.from_buffer(content, environment=environment, options=options)
        else:
            model = CompiledModel.from_file(str(path), environment=environment, options=options)
        return environment, model
    except (ValueError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        raise ArtifactError(
            f"'{path}' is not a TFLite file that ai-edge-litert can run ({first}). Export it again."
        ) from None


def _close(model: CompiledModel, environment: Environment) -> None:
    with quiet():
        model.close()
        environment.close()


@functools.cache
def _quiet_at_exit() -> None:
    """LiteRT also logs that it ends, after Python has."""
    atexit.register(silence)
