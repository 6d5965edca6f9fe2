"""An encoder-decoder's checkpoint: it writes texts after sources, and tells targets by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from tfllm.checkpoints.store import Checkpoint
from tfllm.data.batching import Batches
from tfllm.runtimes.predictor import BATCH_SIZE, Answer, Example, Progress, check_finite
from tfllm.tasks import Task
from tfllm.tasks.features import IGNORED
from tfllm.tasks.seq2seq import Seq2Seq, source_of, targets_of


@dataclass(frozen=True)
class SourcePredictor:
    """See Predictor. `scored` tells how likely the examples' targets are."""

    checkpoint: Checkpoint
    facts: dict[str, Any]

    @property
    def task(self) -> Task:
        return self.checkpoint.task

    @property
    def vocabulary(self) -> Sequence[str]:
        return self.checkpoint.tokenizer.target.vocabulary

    def describe(self) -> dict[str, Any]:
        return self.facts

    def settings(self, **given: Any) -> Any:
        """The GenerationConfig that `answers` takes: the checkpoint's with the `given` ones."""
        return self.generator.defaults(**given)

    def answers(
        self,
        examples: Sequence[Example],
        batch_size: int = BATCH_SIZE,
        progress: Progress | None = None,
        *,
        truncate: bool | None = None,
        **given: Any,
    ) -> list[Answer]:
        """See `generation.written`; `given` are fields of GenerationConfig."""
        from tfllm.generation.written import written

        return written(
            self.generator,
            [_with_source(example) for example in examples],
            self.settings(**given),
            truncate=truncate,
            batch_size=batch_size,
            progress=progress,
        )

    def scored(self, examples: Sequence[Example], batch_size: int = BATCH_SIZE) -> list[Answer]:
        """Per example `log_probability` (natural) of its first target with the end token,
        `token_count`, and how many of these tokens are the likeliest (`correct`).

        Of a target that is too long the first tokens count.
        """
        task = self.checkpoint.task.with_start_id(self.checkpoint.decoder_start_token_id)
        assert isinstance(task, Seq2Seq)
        first = [{**example, "target": targets_of(example)[0]} for example in examples]
        answers = [{"log_probability": 0.0, "token_count": 0, "correct": 0} for _ in examples]
        if not any(source_of(e).strip() and e["target"].strip() for e in first):
            return answers
        task = task.model_copy(update={"truncate": True})
        features = task.features(first, self.checkpoint.tokenizer)
        plan = Batches(
            features.lengths, features.units, batch_size, shuffle=False,
            source_lengths=features.source_lengths,
        ).epoch(0)  # fmt: skip
        for batch in plan:
            inputs, targets = features.batch(batch.rows, batch.length)
            logs, right = self._score(inputs, targets)
            counts = np.asarray(targets) != IGNORED
            for row, log, correct, count in zip(batch.rows, logs, right, counts, strict=True):
                answers[int(features.example[row])] = {
                    "log_probability": float(log[count].sum(dtype=np.float64)),
                    "token_count": int(count.sum()),
                    "correct": int(correct[count].sum()),
                }
        return answers

    @cached_property
    def generator(self) -> Any:
        """Writes texts with the checkpoint: a TextToText."""
        from tfllm.generation.seq2seq_generator import TextToText

        return TextToText(self.checkpoint)

    @cached_property
    def _forward(self) -> Any:
        import tensorflow as tf

        model = self.checkpoint.model
        ids = tf.TensorSpec([None, None], tf.int32)

        @tf.function(input_signature=[dict.fromkeys(model.input, ids), ids])
        def forward(inputs, targets):
            logits = model(inputs, training=False)
            safe = tf.maximum(targets, 0)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(safe, logits)
            return -losses, tf.equal(tf.argmax(logits, -1, output_type=tf.int32), safe)

        return forward

    def _score(self, inputs: dict[str, np.ndarray], targets: Any) -> tuple[np.ndarray, np.ndarray]:
        """Log-probability of every target and whether it is the likeliest, [B, T] each."""
        given = {name: inputs[name] for name in self.checkpoint.model.input}
        logs, best = (value.numpy() for value in self._forward(given, targets))
        check_finite(logs, self.facts.get("path"))
        return logs, best


def _with_source(example: Example) -> Example:
    """The example with a `source`; what is given to be answered may call it `text`."""
    return example if "source" in example else {**example, "source": example.get("text")}
