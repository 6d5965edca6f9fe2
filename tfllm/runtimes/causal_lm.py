"""Causal language models: texts after prompts, and log-probabilities of given texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import keras
import numpy as np
import tensorflow as tf

from tfllm.generation.checkpoint_config import GenerationSource
from tfllm.generation.config import GenerationConfig
from tfllm.generation.text_generator import TextGenerator
from tfllm.generation.token_generator import TokenGenerator
from tfllm.runtimes import token_log_probs
from tfllm.runtimes.protocols import BATCH_SIZE, Example, Facts, Prediction, Progress
from tfllm.runtimes.token_log_probs import LogProbs
from tfllm.runtimes.token_predictor import check_finite
from tfllm.tasks import Task
from tfllm.tasks.causal_lm import CausalLM, messages_of
from tfllm.tokenizers.base import Tokenizer

Logits = Callable[[np.ndarray], np.ndarray]
"""Token ids int32 [B, T] -> logits of the token after each, float32 [B, T, V]."""


@dataclass(frozen=True)
class CausalLMPredictor:
    """A Predictor whose predictions are texts; `score` is what evaluation measures."""

    checkpoint: GenerationSource
    """A checkpoint, or the description of an exported file."""
    facts: Facts
    """What `describe` returns."""
    log_probs: LogProbs
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
        return self.tokenizer.vocabulary

    def describe(self) -> Facts:
        """See Predictor.describe."""
        return self.facts

    @cached_property
    def generator(self) -> TextGenerator:
        """Generates texts with the model."""
        return TextGenerator(self.checkpoint, engine=self.engine)

    def predict(
        self,
        examples: Sequence[Example],
        batch_size: int = BATCH_SIZE,
        progress: Progress | None = None,
    ) -> list[Prediction]:
        """Predict `{"text"}`: the greedy continuation of a prompt, or the reply to `messages`.

        See Predictor.predict. A prompt is the field `prompt` or `text`.
        """
        predictions: list[Prediction] = []
        generator, config = self.generator, GenerationConfig()
        for start in range(0, len(examples), batch_size):
            batch = [_as_prompt(each) for each in examples[start : start + batch_size]]
            texts = generator.generate_examples(batch, config, truncate="left")
            predictions += [{"text": text.text} for text in texts]
            if progress:
                progress(len(batch))
        return predictions

    def score(
        self,
        examples: Sequence[Example],
        batch_size: int = BATCH_SIZE,
        progress: Progress | None = None,
        *,
        stride: int | None = None,
        measure: str = "all",
    ) -> list[Prediction]:
        """Compute the log-probability of every token of texts; see `token_log_probs.score_texts`.

        Args:
            examples: Texts or conversations.
            batch_size: Windows that the model is given at once.
            progress: Called as examples are done.
            stride: Tokens by which the window moves; unset: half of it.
            measure: "all" tokens, or the "last_word" of every text (LAMBADA).

        Returns:
            A dict per text.

        Raises:
            SettingError: The stride is not between 1 and the window.
        """
        task, tokenizer = self.checkpoint.task, self.checkpoint.tokenizer
        assert isinstance(task, CausalLM)
        window = task.max_length
        last_word = measure == "last_word"
        tokenize = token_log_probs.last_words if last_word else token_log_probs.documents
        return token_log_probs.score_texts(
            tokenize(examples, task, tokenizer),
            self.log_probs,
            window,
            token_log_probs.check_stride(stride, window),
            batch_size,
            self.checkpoint.config.vocabulary_size,
            last_window_only=last_word,
            progress=progress,
        )


def model_log_probs(model: keras.Model, path: object = None) -> LogProbs:
    """Return the LogProbs of a Keras model.

    Args:
        model: Token ids [B, T] to logits [B, T, V].
        path: What errors call it.
    """
    names = list(model.input)

    @tf.function(input_signature=[tf.TensorSpec([None, None], tf.int32)] * 2)
    def forward(ids: tf.Tensor, targets: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        inputs = {"token_ids": ids, "padding_mask": tf.ones_like(ids)}
        logits = model({name: inputs[name] for name in names}, training=False)
        safe = tf.maximum(targets, 0)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(safe, logits)
        best = tf.equal(tf.argmax(logits, -1, output_type=tf.int32), safe)
        return -losses, best

    def log_probs(ids: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logs, best = (value.numpy() for value in forward(ids, targets))
        check_finite(logs, path)
        return logs, best

    return log_probs


def _as_prompt(example: Example) -> Example:
    """The example's prompt, or its checked messages."""
    if "messages" in example:
        return {"messages": messages_of(example)}
    return {"prompt": str(example.get("prompt", example.get("text", "")))}
