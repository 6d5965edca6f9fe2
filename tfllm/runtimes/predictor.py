"""What every model that can be measured offers, and the way from token rows to answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from tfllm.errors import CheckpointError
from tfllm.tasks import Features, Task
from tfllm.tasks.features import IGNORED
from tfllm.tokenizers.base import Tokenizer

BATCH_SIZE = 32

# Outputs of a chunk of examples are kept until its answers are made. A masked language model gives
# 15 MiB for one row of 128 tokens; this bounds the sum.
CHUNK_BYTES = 256 * 2**20
LARGEST_CHUNK_BATCHES = 32

Example = dict[str, Any]
Answer = dict[str, Any]
Progress = Callable[[float], None]  # called with the number of examples done since the last call
Inputs = dict[str, np.ndarray]  # token_ids, segment_ids, padding_mask: int32 [B, T]


class Predictor(Protocol):
    """A checkpoint, a SavedModel or a TFLite file, ready to answer."""

    @property
    def task(self) -> Task: ...

    @property
    def vocabulary(self) -> Sequence[str]:
        """The tokens by id."""
        ...

    def describe(self) -> dict[str, Any]:
        """What it is: kind, path, family, task, size_bytes."""
        ...

    def answers(
        self,
        examples: Sequence[Example],
        batch_size: int = BATCH_SIZE,
        progress: Progress | None = None,
    ) -> list[Answer]:
        """One dict per example, in their order: the JSON lines of `tfllm predict`."""
        ...


@dataclass(frozen=True)
class RowPredictor:
    """A model from token ids to raw scores: a checkpoint or a TFLite file."""

    task: Task
    tokenizer: Tokenizer
    facts: dict[str, Any]
    row_values: int  # numbers that the model gives for the longest row
    call: Callable[[Inputs], Any]  # int32 [B, T] -> [B, ...], or several such by name

    @property
    def vocabulary(self) -> Sequence[str]:
        return self.tokenizer.vocabulary

    def describe(self) -> dict[str, Any]:
        return self.facts

    def answers(
        self,
        examples: Sequence[Example],
        batch_size: int = BATCH_SIZE,
        progress: Progress | None = None,
    ) -> list[Answer]:
        """See Predictor.answers."""
        found: list[Answer] = []
        for features in self._chunks(examples, batch_size):
            outputs = rows_of(features, self._finite, _whole, batch_size, progress)
            found += self.task.answers(outputs, features)
        return found

    def hidden_tokens(
        self,
        examples: Sequence[Example],
        batch_size: int = BATCH_SIZE,
        progress: Progress | None = None,
    ) -> list[Answer]:
        """Masked language models: how well hidden tokens are told, one dict per example.

        `{"ranks": [...], "log_probabilities": [...]}` of the right token at every place that
        `task.for_epoch` hides (epoch 0, seed 0: the same places for every model).
        """
        features = self.task.for_epoch(self.task.load_features(examples, self.tokenizer))
        targets = features.targets or []
        return rows_of(
            features,
            self._finite,
            lambda row, output: self._told(output, targets[row]),
            batch_size,
            progress,
        )

    def _told(self, output: Any, target: np.ndarray) -> Answer:
        """One row's hidden tokens and, where the model tells it, whether its pair is one."""
        if not isinstance(output, dict):
            return _told(output, target)
        tokens = np.concatenate([[IGNORED], target[1:]])
        right = int(np.argmax(output["next_sentence"])) == target[0]
        return {**_told(output["tokens"], tokens), "next_sentence": bool(right)}

    def _finite(self, inputs: Inputs) -> Any:
        """The model's output, which must be numbers."""
        output = self.call(inputs)
        for values in output.values() if isinstance(output, dict) else [output]:
            check_finite(values, self.facts.get("path"))
        return output

    def _chunks(self, examples: Sequence[Example], batch_size: int):
        batches = CHUNK_BYTES // max(1, 4 * self.row_values * batch_size)
        size = batch_size * min(max(1, batches), LARGEST_CHUNK_BATCHES)
        for start in range(0, len(examples), size):
            chunk = examples[start : start + size]
            yield self.task.features(chunk, self.tokenizer, targets=False)


def check_finite(values: np.ndarray, path: Any) -> None:
    """Raises CheckpointError when a model answers with something that is no number."""
    if not np.isfinite(values).all():
        raise CheckpointError(
            f"'{path}' answers with NaN or infinite scores. Its weights are damaged or training "
            "diverged; use an earlier checkpoint, or export it again."
        )


def rows_of(
    features: Features,
    call: Callable[[Inputs], Any],
    keep: Callable[[int, Any], Any],
    batch_size: int,
    progress: Progress | None = None,
) -> list[Any]:
    """What `keep` makes of each row's number and output, in the rows' order.

    Rows of like length share a batch, so that little of it is padding.
    """
    examples = len(np.unique(features.example))
    features = replace(features, targets=None)
    order = np.argsort(-features.lengths, kind="stable")
    kept: list[Any] = [None] * len(features)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        inputs = features.inputs(rows)
        for row, output in zip(rows, _each(call(inputs)), strict=True):
            kept[row] = keep(row, output)
        if progress:
            progress(examples * len(rows) / len(features))
    return kept


def _each(outputs: Any) -> Any:
    """The outputs of a batch, row by row."""
    if not isinstance(outputs, dict):
        return outputs
    return (dict(zip(outputs, row, strict=True)) for row in zip(*outputs.values(), strict=True))


def _whole(row: int, output: Any) -> Any:
    return output


def _told(output: np.ndarray, target: np.ndarray) -> Answer:
    """Rank and log probability of the hidden tokens of one row: scores [T, V], target int [T]."""
    places = np.flatnonzero(target != IGNORED)
    scores = np.asarray(output, np.float64)[places]
    right = scores[np.arange(len(places)), target[places]]
    top = scores.max(axis=-1, initial=-np.inf)
    logs = right - top - np.log(np.exp(scores - top[:, None]).sum(axis=-1))
    ranks = 1 + (scores > right[:, None]).sum(axis=-1)
    return {"ranks": ranks.tolist(), "log_probabilities": logs.tolist()}
