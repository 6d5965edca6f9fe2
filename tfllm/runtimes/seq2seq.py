"""Encoder-decoders: texts from sources, and log-probabilities of given targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import keras
import numpy as np
import tensorflow as tf

from tfllm.data.batching import Batches
from tfllm.generation.checkpoint_config import GenerationSource
from tfllm.generation.config import GenerationConfig
from tfllm.generation.seq2seq_generator import Seq2SeqGenerator, predict_targets
from tfllm.generation.token_generator import TokenGenerator
from tfllm.runtimes.protocols import BATCH_SIZE, Example, Facts, Prediction, Progress
from tfllm.runtimes.token_predictor import check_finite
from tfllm.tasks import Task
from tfllm.tasks.features import IGNORED
from tfllm.tasks.seq2seq import Seq2Seq, source_of, targets_of
from tfllm.tokenizers.base import Tokenizer

Logits = Callable[[Sequence[int], Sequence[int]], np.ndarray]
"""(ids of a source, ids of a target with the start token first) -> logits of the token after each
of the target's, float32 [T, V]."""
LogProbs = Callable[[Mapping[str, np.ndarray], np.ndarray], tuple[np.ndarray, np.ndarray]]
"""(inputs, targets int32 [B, T]) -> (log-probability of each target, whether it is the most likely
token), [B, T]."""


@dataclass(frozen=True)
class Seq2SeqPredictor:
    """A Predictor whose predictions are the texts of sources."""

    checkpoint: GenerationSource
    """A checkpoint, or the description of an exported file."""
    facts: Facts
    """What `describe` returns."""
    engine: TokenGenerator | None = None
    """Of an exported file; None of a checkpoint."""
    logits: Logits | None = None
    """Of an exported file that gives them."""

    @property
    def task(self) -> Task:
        """What the model is for."""
        return self.checkpoint.task

    @property
    def tokenizer(self) -> Tokenizer:
        """See Predictor.tokenizer."""
        return self.checkpoint.tokenizer

    @property
    def vocabulary(self) -> Sequence[str]:
        """The tokens by id."""
        return self.tokenizer.target.vocabulary

    def describe(self) -> Facts:
        """See Predictor.describe."""
        return self.facts

    @cached_property
    def generator(self) -> Seq2SeqGenerator:
        """Generates texts with the model."""
        return Seq2SeqGenerator(self.checkpoint, engine=self.engine)

    def generation_config(self, **overrides: object) -> GenerationConfig:
        """Return the config that `predict` uses: the checkpoint's own with overrides."""
        return self.generator.generation_config(**overrides)

    def predict(
        self,
        examples: Sequence[Example],
        batch_size: int = BATCH_SIZE,
        progress: Progress | None = None,
        *,
        truncate: bool | None = None,
        **overrides: object,
    ) -> list[Prediction]:
        """Predict the target of each `source` (or `text`). See Predictor.predict.

        Args:
            examples: Dicts with `source` or `text`.
            batch_size: Sources that the model is given at once.
            progress: Called as examples are done, with how many.
            truncate: Whether too long sources are truncated; None: as the task says.
            **overrides: Fields of GenerationConfig.
        """
        return predict_targets(
            self.generator,
            [_with_source(example) for example in examples],
            self.generation_config(**overrides),
            truncate=truncate,
            batch_size=batch_size,
            progress=progress,
        )


@dataclass(frozen=True)
class ScoringSeq2SeqPredictor(Seq2SeqPredictor):
    """A Seq2SeqPredictor that can score given targets: that of a checkpoint."""

    log_probs: LogProbs | None = None

    def score(self, examples: Sequence[Example], batch_size: int = BATCH_SIZE) -> list[Prediction]:
        """Score the first target of each example. A target that is too long is truncated.

        Args:
            examples: Examples with a source and targets.
            batch_size: Rows that the model is given at once.

        Returns:
            Per example `log_probability` (natural) of the target with the end token, `token_count`,
            and `correct`: how many of these tokens are the most likely ones.
        """
        assert self.log_probs is not None
        assert isinstance(self.checkpoint.task, Seq2Seq)
        task = self.checkpoint.task.with_decoder_start_token_id(
            self.checkpoint.decoder_start_token_id
        )
        first = [{**example, "target": targets_of(example)[0]} for example in examples]
        scores = [{"log_probability": 0.0, "token_count": 0, "correct": 0} for _ in examples]
        if not any(source_of(e).strip() and e["target"].strip() for e in first):
            return scores
        task = task.model_copy(update={"truncate": True, "objective": None})
        features = task.features(first, self.checkpoint.tokenizer)
        plan = Batches(
            features.lengths, features.units, batch_size, shuffle=False,
            source_lengths=features.source_lengths,
        ).epoch(0)  # fmt: skip
        for batch in plan:
            inputs, targets = features.batch(batch.rows, batch.length)
            targets = np.asarray(targets)
            logs, best = self.log_probs(inputs, targets)
            counts = targets != IGNORED
            for row, log, correct, count in zip(batch.rows, logs, best, counts, strict=True):
                scores[int(features.example[row])] = {
                    "log_probability": float(log[count].sum(dtype=np.float64)),
                    "token_count": int(count.sum()),
                    "correct": int(correct[count].sum()),
                }
        return scores


def model_log_probs(model: keras.Model, path: object = None) -> LogProbs:
    """Return the LogProbs of a Keras model.

    Args:
        model: Ids of sources and targets to logits [B, T, V].
        path: What errors call it.
    """
    ids = tf.TensorSpec([None, None], tf.int32)
    names = list(model.input)

    @tf.function(input_signature=[dict.fromkeys(names, ids), ids])
    def forward(inputs: dict[str, tf.Tensor], targets: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        logits = model(inputs, training=False)
        safe = tf.maximum(targets, 0)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(safe, logits)
        return -losses, tf.equal(tf.argmax(logits, -1, output_type=tf.int32), safe)

    def log_probs(
        inputs: Mapping[str, np.ndarray], targets: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        model_inputs = {name: inputs[name] for name in names}
        logs, best = (value.numpy() for value in forward(model_inputs, targets))
        check_finite(logs, path)
        return logs, best

    return log_probs


def _with_source(example: Example) -> Example:
    """The example with a `source`, which an example to predict may call `text`."""
    return example if "source" in example else {**example, "source": example.get("text")}
