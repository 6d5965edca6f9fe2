"""Predictions from a TFLite file, run by ai-edge-litert.

Beside the file stand `tfllm.json` (family, config, task, profile) and, where the file takes token
ids, the tokenizer's files. Shapes, types and quantization are read from the file itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfllm.errors import ArtifactError
from tfllm.runtimes.protocols import BATCH_SIZE, Example, Facts, Prediction, Progress
from tfllm.runtimes.tflite_interpreter import open_interpreter
from tfllm.runtimes.token_predictor import Inputs, TokenPredictor
from tfllm.tasks import Task
from tfllm.tokenizers.base import Tokenizer
from tfllm.tokenizers.loading import load_tokenizer

FILE_NAME = "model.tflite"
PROBABILITY = "probability"  # the output of a file for MediaPipe, in place of logits


@dataclass(frozen=True)
class Signature:
    """One signature of the file: a fixed batch size and length, unless a size is -1."""

    run: Callable[..., dict[str, np.ndarray]]
    inputs: dict[str, dict[str, Any]]  # name -> shape, dtype, quantization
    output: str
    output_details: dict[str, Any]
    batch: int
    length: int

    def __call__(self, inputs: Inputs) -> np.ndarray:
        """The output float32 [B, ...] for inputs of this signature's batch size and length."""
        feeds = {name: to_stored(inputs[name], details) for name, details in self.inputs.items()}
        return from_stored(self.run(**feeds)[self.output], self.output_details)


def open_predictor(
    path: Path, description: Mapping[str, Any], task: Task, facts: Facts
) -> TokenPredictor | TFLiteTextPredictor:
    """Open a .tflite file for prediction.

    Args:
        path: The file; its tokenizer's files are beside it.
        description: Its `tfllm.json`.
        task: Its task.
        facts: What `describe` returns.

    Raises:
        ArtifactError: The file cannot be run.
    """
    takes_text = bool(description.get("profile", {}).get("text_input"))
    signatures = _signatures(path, takes_text)
    tokenizer = load_tokenizer(path.parent)
    if takes_text:
        return TFLiteTextPredictor(task, facts, signatures[0], tokenizer)
    to_logits = _to_logits(task) if signatures[0].output == PROBABILITY else lambda output: output
    longest = max(signatures, key=lambda signature: signature.length)
    return TokenPredictor(
        task=task.model_copy(update={"max_length": longest.length}),
        tokenizer=tokenizer,
        facts=facts,
        row_values=int(np.prod(longest.output_details["shape"][1:])),
        call=lambda inputs: to_logits(call_signatures(signatures, inputs)),
    )


@dataclass(frozen=True)
class TFLiteTextPredictor:
    """A Predictor with a file that takes text: its graph has TensorFlow Text's operations."""

    task: Task
    facts: Facts
    signature: Signature
    tokenizer: Tokenizer

    @property
    def vocabulary(self) -> Sequence[str]:
        """The tokens by id."""
        return self.tokenizer.vocabulary

    def describe(self) -> Facts:
        """See Predictor.describe."""
        return self.facts

    def predict(
        self,
        examples: Sequence[Example],
        batch_size: int = BATCH_SIZE,
        progress: Progress | None = None,
    ) -> list[Prediction]:
        """Predict one example at a time, as the file takes them. See Predictor.predict."""
        predictions = []
        for example in examples:
            predictions.append(self._predict_one(example))
            if progress:
                progress(1)
        return predictions

    def _predict_one(self, example: Example) -> Prediction:
        if not self.task.encodes_pairs_apart:
            # These tasks' predictions need the output alone.
            return self.task.answers([self.scores(example)], None)[0]  # type: ignore[arg-type]
        vector = self.scores(example)
        if "text_pair" not in example:
            return self.task.answer_from_signature(example, {self.task.output_name: vector})
        return self.task.pair_answer(vector, self.scores({"text": example["text_pair"]}))

    def scores(self, example: Example) -> np.ndarray:
        """Compute the output for one example: float32 [C] or [D]."""
        names = self.signature.inputs
        return self.signature({name: np.array([example[name].encode()]) for name in names})[0]


def call_signatures(signatures: Sequence[Signature], inputs: Inputs) -> np.ndarray:
    """Run the file's fixed shapes on rows of any number and length.

    The shortest length that holds T is taken, and the largest batch that is full; the rest is
    padded with copies of the last row.

    Args:
        signatures: The file's signatures.
        inputs: By name: int32 [B, T].

    Returns:
        float32 [B, ...], [B, T, ...] where there are scores of every token.
    """
    count, width = inputs["token_ids"].shape
    length = min(s.length for s in signatures if s.length >= width)
    fitting = sorted((s for s in signatures if s.length == length), key=lambda s: -s.batch)
    outputs: list[np.ndarray] = []
    done = 0
    while done < count:
        remaining = count - done
        chosen = next((s for s in fitting if s.batch <= remaining), fitting[-1])
        rows = np.minimum(np.arange(done, done + chosen.batch), count - 1)
        feeds = {
            name: np.pad(value[rows], ((0, 0), (0, length - width)), constant_values=0)
            for name, value in inputs.items()
        }
        outputs.append(chosen(feeds)[: min(remaining, chosen.batch)])
        done += chosen.batch
    result = np.concatenate(outputs)
    return result[:, :width] if result.ndim == 3 else result  # scores of the tokens asked for


def to_stored(values: np.ndarray, details: dict[str, Any]) -> np.ndarray:
    """Convert values to the type that the file has for an input, quantized where it is.

    Args:
        values: The values.
        details: The interpreter's details of the input.
    """
    dtype, (scale, zero) = details["dtype"], details["quantization"]
    if dtype in (np.int8, np.uint8, np.int16) and scale:
        limits = np.iinfo(dtype)
        return np.clip(np.rint(values / scale) + zero, limits.min, limits.max).astype(dtype)
    return values if dtype in (np.object_, np.bytes_) else values.astype(dtype)


def from_stored(values: np.ndarray, details: dict[str, Any]) -> np.ndarray:
    """Convert an output to float32.

    Args:
        values: The output.
        details: The interpreter's details of it.
    """
    scale, zero = details["quantization"]
    if details["dtype"] in (np.int8, np.uint8, np.int16) and scale:
        return ((values.astype(np.float32) - zero) * scale).astype(np.float32)
    return values.astype(np.float32)


def _to_logits(task: Task) -> Callable[[np.ndarray], np.ndarray]:
    """The way back from probabilities to logits that `task.answers` turns into the same ones."""
    smallest = np.finfo(np.float32).tiny

    def logarithm(values: np.ndarray) -> np.ndarray:
        return np.log(np.maximum(values, smallest))

    if getattr(task, "problem", "") == "multi_label":
        return lambda values: logarithm(values) - logarithm(1 - values)
    return logarithm


def _signatures(path: Path, takes_text: bool) -> list[Signature]:
    interpreter = open_interpreter(path, takes_text)
    expected = "text" if takes_text else "token_ids"
    signatures = []
    for name in interpreter.get_signature_list():
        runner = interpreter.get_signature_runner(name)
        inputs, outputs = runner.get_input_details(), runner.get_output_details()
        if expected not in inputs or len(outputs) != 1:
            continue
        (output,) = outputs
        shape = [int(size) for size in inputs[expected]["shape"]]
        signatures.append(
            Signature(
                runner, inputs, output, outputs[output], shape[0], 0 if takes_text else shape[1]
            )
        )
    if not signatures:
        raise ArtifactError(
            f"{path}: no signature takes '{expected}' and gives one output. Measure a file "
            "that tfllm export wrote."
        )
    return signatures
