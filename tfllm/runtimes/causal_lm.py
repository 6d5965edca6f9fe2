"""A causal language model's checkpoint: it goes on from prompts, and tells texts token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from tfllm.checkpoints.store import Checkpoint
from tfllm.runtimes import token_log_probs
from tfllm.runtimes.predictor import BATCH_SIZE, Answer, Example, Progress, check_finite
from tfllm.tasks import Task
from tfllm.tasks.causal_lm import CausalLM, messages_of


@dataclass(frozen=True)
class LanguagePredictor:
    """See Predictor. Its answers are texts; `scored` is what is measured."""

    checkpoint: Checkpoint
    facts: dict[str, Any]

    @property
    def task(self) -> Task:
        return self.checkpoint.task

    @property
    def vocabulary(self) -> Sequence[str]:
        return self.checkpoint.tokenizer.vocabulary

    def describe(self) -> dict[str, Any]:
        return self.facts

    def answers(
        self,
        examples: Sequence[Example],
        batch_size: int = BATCH_SIZE,
        progress: Progress | None = None,
    ) -> list[Answer]:
        """`{"text"}`: the likeliest continuation of `text` or `prompt`, or answer to `messages`."""
        from tfllm.generation.config import generation_config
        from tfllm.tokenizers import chat

        generator, settings = self.generator, generation_config()
        found: list[Answer] = []
        for start in range(0, len(examples), batch_size):
            some = examples[start : start + batch_size]
            ids = [
                generator.cut(chat.encode(generator.tokenizer, messages_of(example)), settings)
                if "messages" in example
                else generator.encode(_prompt(example), settings, "left")
                for example in some
            ]
            prompts = [_prompt(example) for example in some]
            texts = generator.continued(ids, settings, prompts=prompts)
            found += [{"text": text.text} for text in texts]
            if progress:
                progress(len(some))
        return found

    def scored(
        self,
        examples: Sequence[Example],
        batch_size: int = BATCH_SIZE,
        progress: Progress | None = None,
        *,
        stride: int | None = None,
        measure: str = "all",
    ) -> list[Answer]:
        """What `evaluation.language` measures. Raises SettingError for an impossible stride."""
        task, tokenizer = self.checkpoint.task, self.checkpoint.tokenizer
        assert isinstance(task, CausalLM)
        window = task.max_length
        make = token_log_probs.last_words if measure == "last_word" else token_log_probs.documents
        return token_log_probs.scored(
            make(examples, task, tokenizer),
            self._score,
            window,
            token_log_probs.checked_stride(stride, window),
            batch_size,
            self.checkpoint.config.vocabulary_size,
            cut=measure == "last_word",
            progress=progress,
        )

    @cached_property
    def generator(self) -> Any:
        """Writes texts with the checkpoint: a TextGenerator."""
        from tfllm.generation.text_generator import TextGenerator

        return TextGenerator(self.checkpoint)

    @cached_property
    def _forward(self) -> Any:
        import tensorflow as tf

        model = self.checkpoint.model
        names = list(model.input)

        @tf.function(input_signature=[tf.TensorSpec([None, None], tf.int32)] * 2)
        def forward(ids, targets):
            given = {"token_ids": ids, "padding_mask": tf.ones_like(ids)}
            logits = model({name: given[name] for name in names}, training=False)
            safe = tf.maximum(targets, 0)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(safe, logits)
            best = tf.equal(tf.argmax(logits, -1, output_type=tf.int32), safe)
            return -losses, best

        return forward

    def _score(self, ids: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logs, best = (value.numpy() for value in self._forward(ids, targets))
        check_finite(logs, self.facts.get("path"))
        return logs, best


def _prompt(example: Example) -> str:
    return str(example.get("prompt", example.get("text", "")))
