"""Answers from a TFLite file, run by ai-edge-litert.

Beside the file stand `tfllm.json` (family, config, task, profile) and, where the file takes token
ids, the tokenizer's files. Shapes, types and quantization are read from the file itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfllm.errors import ArtifactError, MissingExtra
from tfllm.runtimes.artifact import read_description
from tfllm.runtimes.predictor import (
    BATCH_SIZE,
    Answer,
    Example,
    Inputs,
    Predictor,
    Progress,
    RowPredictor,
)
from tfllm.tasks import Task
from tfllm.tokenizers.loading import load_tokenizer

FILE_NAME = "model.tflite"
PROBABILITY = "probability"  # the output of a file for MediaPipe, in place of raw scores


@dataclass(frozen=True)
class Signature:
    """One entry point of the file: a fixed batch and length, unless a size is -1."""

    run: Callable[..., dict[str, np.ndarray]]
    inputs: dict[str, dict[str, Any]]  # name -> shape, dtype, quantization
    output: str
    output_details: dict[str, Any]
    batch: int
    length: int

    def __call__(self, inputs: Inputs) -> np.ndarray:
        """float32 [B, ...] of inputs with this signature's batch and length."""
        fed = {name: to_stored(inputs[name], details) for name, details in self.inputs.items()}
        return from_stored(self.run(**fed)[self.output], self.output_details)


def open_tflite(source: Path) -> Predictor:
    """The model of a .tflite file, or of a directory with a model.tflite. Raises ArtifactError."""
    path = source / FILE_NAME if source.is_dir() else source
    description, task = read_description(path.parent / "tfllm.json")
    facts = {
        "kind": "tflite",
        "path": str(path),
        "family": description.get("family"),
        "task": task.kind,
        "size_bytes": path.stat().st_size,
    }
    if task.generates == "continuation":
        from tfllm.runtimes.causal_lm_artifact import open_language_tflite

        return open_language_tflite(path, description, task, facts)
    if task.generates == "target":
        from tfllm.runtimes.seq2seq_artifact import open_source_tflite

        return open_source_tflite(path, description, task, facts)
    takes_text = bool(description.get("profile", {}).get("text"))
    signatures = _signatures(path, takes_text)
    tokenizer = load_tokenizer(path.parent)
    if takes_text:
        return TextPredictor(task, facts, signatures[0], tokenizer.vocabulary)
    raw = _raw_scores(task) if signatures[0].output == PROBABILITY else lambda output: output
    longest = max(signatures, key=lambda signature: signature.length)
    task = task.model_copy(update={"max_length": longest.length})
    return RowPredictor(
        task=task,
        tokenizer=tokenizer,
        facts=facts,
        row_values=int(np.prod(longest.output_details["shape"][1:])),
        call=lambda inputs: raw(call_signatures(signatures, inputs)),
    )


@dataclass(frozen=True)
class TextPredictor:
    """A file that takes the text itself: its graph holds TensorFlow Text's operations."""

    task: Task
    facts: dict[str, Any]
    signature: Signature
    vocabulary: Sequence[str]

    def describe(self) -> dict[str, Any]:
        return self.facts

    def answers(
        self,
        examples: Sequence[Example],
        batch_size: int = BATCH_SIZE,
        progress: Progress | None = None,
    ) -> list[Answer]:
        """See Predictor.answers. One example at a time, as the file takes them."""
        found = []
        for example in examples:
            found.append(self._answer(example))
            if progress:
                progress(1)
        return found

    def _answer(self, example: Example) -> Answer:
        if not self.task.encodes_pairs_apart:
            # These tasks' answers need the output alone.
            return self.task.answers([self.scores(example)], None)[0]  # type: ignore[arg-type]
        vector = self.scores(example)
        if "text_pair" not in example:
            return self.task.answer_from_signature(example, {self.task.output_name: vector})
        return self.task.pair_answer(vector, self.scores({"text": example["text_pair"]}))

    def scores(self, example: Example) -> np.ndarray:
        """float32 [C] or [D]."""
        names = self.signature.inputs
        return self.signature({name: np.array([example[name].encode()]) for name in names})[0]


def call_signatures(signatures: Sequence[Signature], inputs: Inputs) -> np.ndarray:
    """float32 [B, ...] for int32 [B, T], through the file's fixed shapes.

    The shortest length that holds T is taken, and the largest batch that is full; what is left
    over is filled up with copies of the last row.
    """
    count, width = inputs["token_ids"].shape
    length = min(s.length for s in signatures if s.length >= width)
    fitting = sorted((s for s in signatures if s.length == length), key=lambda s: -s.batch)
    outputs: list[np.ndarray] = []
    done = 0
    while done < count:
        left = count - done
        chosen = next((s for s in fitting if s.batch <= left), fitting[-1])
        rows = np.minimum(np.arange(done, done + chosen.batch), count - 1)
        fed = {
            name: np.pad(value[rows], ((0, 0), (0, length - width)), constant_values=0)
            for name, value in inputs.items()
        }
        outputs.append(chosen(fed)[: min(left, chosen.batch)])
        done += chosen.batch
    return np.concatenate(outputs)


def to_stored(values: np.ndarray, details: dict[str, Any]) -> np.ndarray:
    """Values in the type that the file has for an input, quantized where it is."""
    dtype, (scale, zero) = details["dtype"], details["quantization"]
    if dtype in (np.int8, np.uint8, np.int16) and scale:
        limits = np.iinfo(dtype)
        return np.clip(np.rint(values / scale) + zero, limits.min, limits.max).astype(dtype)
    return values if dtype in (np.object_, np.bytes_) else values.astype(dtype)


def from_stored(values: np.ndarray, details: dict[str, Any]) -> np.ndarray:
    """An output as float32."""
    scale, zero = details["quantization"]
    if details["dtype"] in (np.int8, np.uint8, np.int16) and scale:
        return ((values.astype(np.float32) - zero) * scale).astype(np.float32)
    return values.astype(np.float32)


def _raw_scores(task: Task) -> Callable[[np.ndarray], np.ndarray]:
    """From probabilities to raw scores that `task.answers` turns into the same ones again."""
    smallest = np.finfo(np.float32).tiny

    def logarithm(values: np.ndarray) -> np.ndarray:
        return np.log(np.maximum(values, smallest))

    if getattr(task, "problem", "") == "multi_label":
        return lambda values: logarithm(values) - logarithm(1 - values)
    return logarithm


def _signatures(path: Path, takes_text: bool) -> list[Signature]:
    interpreter = interpreter_of(path, takes_text)
    expected = "text" if takes_text else "token_ids"
    found = []
    for name in interpreter.get_signature_list():
        runner = interpreter.get_signature_runner(name)
        inputs, outputs = runner.get_input_details(), runner.get_output_details()
        if expected not in inputs or len(outputs) != 1:
            continue
        (output,) = outputs
        shape = [int(size) for size in inputs[expected]["shape"]]
        found.append(
            Signature(
                runner, inputs, output, outputs[output], shape[0], 0 if takes_text else shape[1]
            )
        )
    if not found:
        raise ArtifactError(
            f"{path}: no signature takes '{expected}' and gives one output. Measure a file "
            "that tfllm export wrote."
        )
    return found


def interpreter_of(path: Path, takes_text: bool = False) -> Any:
    """ai-edge-litert on all cores. Raises ArtifactError for a file that it cannot run."""
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
        first = str(error).strip().splitlines()[0]
        raise ArtifactError(
            f"'{path}' is not a TFLite file that ai-edge-litert can run ({first}). Export it again."
        ) from None
