"""Tokens from a .tflite file with `prefill_N` and `decode`, behind the engine's interface."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfllm.errors import SettingError
from tfllm.generation.config import (
    GenerationConfig,
    GraphFlags,
    batch_configs,
    batched_config_specs,
)
from tfllm.generation.engine import Engine, OnToken, Result
from tfllm.generation.penalties import penalised
from tfllm.generation.sampling import choose
from tfllm.runtimes.tflite_steps import LiteSteps


@dataclass(frozen=True)
class Shape:
    """What an engine's callers ask of its model."""

    max_sequence_length: int
    vocabulary_size: int


@dataclass(frozen=True)
class SourceShape(Shape):
    """The same of a model that reads sources."""

    longest_source: int
    source_vocabulary_size: int = 2**31 - 1  # the tokenizer beside the file knows it
    encode: None = None


class LiteEngine(Engine):
    """Writes one text after the other; the same samplers and random numbers as the engine."""

    def __init__(self, path: Path, content: bytes | None = None):
        """`content` is the file's where it lies inside of another one."""
        self.steps = LiteSteps(path, content)
        shape: Any = Shape(self.steps.context, self.steps.vocabulary_size)
        if self.steps.source_length:
            shape = SourceShape(
                self.steps.context, self.steps.vocabulary_size, self.steps.source_length
            )
        super().__init__(shape, max_rows=1)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        settings: GenerationConfig | Sequence[GenerationConfig],
        on_token: OnToken | None = None,
        *,
        steps: int | None = None,
        sources: Sequence[Sequence[int]] | None = None,
    ) -> list[Result]:
        """See Engine.generate. Raises SettingError for beam search, which needs many caches."""
        given = self.sources_of(prompts, sources)
        results: list[Result] = []
        each = self.settings_of(prompts, settings)
        for prompt, one, source in zip(prompts, each, given, strict=True):
            if source:
                self.steps.encode(source)
            if one.num_beams > 1:
                raise SettingError(
                    "--num-beams: a .tflite file keeps one text at a time. Use the checkpoint."
                )
            for sequence in range(one.num_return_sequences):
                results.append(self._text(len(results), prompt, one, sequence, on_token))
        return results

    def _text(
        self,
        number: int,
        prompt: Sequence[int],
        settings: GenerationConfig,
        sequence: int,
        on_token: OnToken | None,
    ) -> Result:
        limit, needs = self.limit(prompt, settings), self.needs(settings)
        row = batch_configs([settings], [limit], [sequence])
        ids = np.zeros([1, self.steps.context], np.int32)
        ids[0, : len(prompt)] = prompt
        values: list[float] = []
        self.steps.read(prompt[:-1])
        for length in range(len(prompt), limit):
            logits = self.steps.step(int(ids[0, length - 1]), length - 1)
            found = _chosen(needs, len(logits))(logits[None], ids, [length], [len(prompt)], row)
            token, value = int(found[0][0]), float(found[1][0])
            if token in settings.eos_token_id:
                return Result(ids[0, len(prompt) : length].tolist(), values, "stop")
            ids[0, length] = token
            values.append(value)
            if on_token and on_token(number, token, value):
                return Result(ids[0, len(prompt) : length + 1].tolist(), values, "stop")
        return Result(ids[0, len(prompt) : limit].tolist(), values, "length")


@functools.cache
def _chosen(needs: GraphFlags, vocabulary_size: int) -> Any:
    """logits float32 [1, V], ids int32 [1, C], lengths and prompt lengths [1], settings -> the next
    token and its log-probability, each [1]."""
    integers = tf.TensorSpec([None], tf.int32)

    @tf.function(
        autograph=False,
        input_signature=[
            tf.TensorSpec([None, vocabulary_size], tf.float32),
            tf.TensorSpec([None, None], tf.int32),
            integers,
            integers,
            batched_config_specs(),
        ],
    )
    def chosen(logits, ids, lengths, prompt_lengths, settings):
        changed = penalised(logits, ids, lengths, prompt_lengths, settings, needs)
        token = choose(changed, settings, lengths - prompt_lengths, needs)
        value = tf.gather(logits, token, batch_dims=1) - tf.reduce_logsumexp(logits, axis=-1)
        return token, value

    return chosen
