"""Predictions of a model from token ids to raw outputs: a checkpoint or a TFLite file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar, cast

import numpy as np

from tfllm.errors import CheckpointError
from tfllm.runtimes.protocols import BATCH_SIZE, Example, Facts, Prediction, Progress
from tfllm.tasks import Features, Task
from tfllm.tasks.features import IGNORED
from tfllm.tokenizers.base import Tokenizer

# Outputs of a chunk of examples are kept until its predictions are made. A masked language model
# gives 15 MiB for one row of 128 tokens; this bounds the sum.
CHUNK_BYTES = 256 * 2**20
MAX_CHUNK_BATCHES = 32

R = TypeVar("R")
Inputs = dict[str, np.ndarray]
"""token_ids, segment_ids, padding_mask: int32 [B, T]."""
Outputs = np.ndarray | dict[str, np.ndarray]
"""[B, ...], or several such by name."""


@dataclass(frozen=True)
class TokenPredictor:
    """A Predictor with a model from token ids to raw outputs."""

    task: Task
    tokenizer: Tokenizer
    facts: Facts
    """What `describe` returns."""
    row_values: int
    """Numbers that the model outputs for the longest row."""
    call: Callable[[Inputs], Outputs]
    """The model."""

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
        """Tokenize examples, run the model and let the task answer. See Predictor.predict."""
        predictions: list[Prediction] = []
        for features in self._chunks(examples, batch_size):
            outputs = map_rows(features, self._checked_call, _output, batch_size, progress)
            predictions += self.task.answers(cast(list[np.ndarray], outputs), features)
        return predictions

    def masked_token_log_probs(
        self,
        examples: Sequence[Example],
        batch_size: int = BATCH_SIZE,
        progress: Progress | None = None,
    ) -> list[Prediction]:
        """Measure how well a masked language model predicts masked tokens.

        Args:
            examples: Texts. `task.for_epoch` (epoch 0, seed 0) masks the same positions for every
                model.
            batch_size: Rows that the model is given at once.
            progress: Called as examples are done.

        Returns:
            For each example `{"ranks": [...], "log_probabilities": [...]}` of the right token at
            every masked position.
        """
        features = self.task.for_epoch(self.task.load_features(examples, self.tokenizer))
        targets = features.targets or []
        return map_rows(
            features,
            self._checked_call,
            lambda row, output: _score_row(output, targets[row]),
            batch_size,
            progress,
        )

    def _checked_call(self, inputs: Inputs) -> Outputs:
        output = self.call(inputs)
        for values in output.values() if isinstance(output, dict) else [output]:
            check_finite(values, self.facts.get("path"))
        return output

    def _chunks(self, examples: Sequence[Example], batch_size: int) -> Iterator[Features]:
        batches = CHUNK_BYTES // max(1, 4 * self.row_values * batch_size)
        size = batch_size * min(max(1, batches), MAX_CHUNK_BATCHES)
        for start in range(0, len(examples), size):
            chunk = examples[start : start + size]
            yield self.task.features(chunk, self.tokenizer, targets=False)


def check_finite(values: np.ndarray, path: object) -> None:
    """Check that a model's outputs are finite.

    Args:
        values: The outputs.
        path: What the error calls the model.

    Raises:
        CheckpointError: One is NaN or infinite.
    """
    if not np.isfinite(values).all():
        raise CheckpointError(
            f"'{path}' answers with NaN or infinite scores. Its weights are damaged or training "
            "diverged; use an earlier checkpoint, or export it again."
        )


def map_rows(
    features: Features,
    call: Callable[[Inputs], Outputs],
    function: Callable[[int, Outputs], R],
    batch_size: int,
    progress: Progress | None = None,
) -> list[R]:
    """Run a model on rows, and apply a function to each row's output.

    Rows of similar length share a batch, so that little of it is padding.

    Args:
        features: The rows.
        call: Runs the model: inputs by name, int32 [B, T], to outputs [B, ...].
        function: (index of the row, its output) -> result.
        batch_size: Rows of a batch.
        progress: Called as examples are done, with how many.

    Returns:
        The results in the rows' order.
    """
    examples = len(np.unique(features.example))
    features = replace(features, targets=None)
    order = np.argsort(-features.lengths, kind="stable")
    results: list[R | None] = [None] * len(features)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        inputs = features.inputs(rows)
        for row, output in zip(rows, _rows_of(call(inputs)), strict=True):
            results[row] = function(row, output)
        if progress:
            progress(examples * len(rows) / len(features))
    return cast(list[R], results)


def _rows_of(outputs: Outputs) -> Iterable[Outputs]:
    """The outputs of a batch, row by row."""
    if not isinstance(outputs, dict):
        return outputs
    return (dict(zip(outputs, row, strict=True)) for row in zip(*outputs.values(), strict=True))


def _output(row: int, output: Outputs) -> Outputs:
    return output


def _score_row(output: Outputs, target: np.ndarray) -> Prediction:
    """One row's masked tokens and, where the model has it, whether its next sentence is right."""
    if not isinstance(output, dict):
        return _score_tokens(output, target)
    tokens = np.concatenate([[IGNORED], target[1:]])
    correct = int(np.argmax(output["next_sentence"])) == target[0]
    return {**_score_tokens(output["tokens"], tokens), "next_sentence": bool(correct)}


def _score_tokens(output: np.ndarray, target: np.ndarray) -> Prediction:
    """Ranks and log-probabilities of the targets of one row: logits [T, V], target int [T]."""
    positions = np.flatnonzero(target != IGNORED)
    logits = np.asarray(output, np.float64)[positions]
    right = logits[np.arange(len(positions)), target[positions]]
    top = logits.max(axis=-1, initial=-np.inf)
    logs = right - top - np.log(np.exp(logits - top[:, None]).sum(axis=-1))
    ranks = 1 + (logits > right[:, None]).sum(axis=-1)
    return {"ranks": ranks.tolist(), "log_probabilities": logs.tolist()}
