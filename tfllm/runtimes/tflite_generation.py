"""Generation with .tflite files.

Two kinds: `prefill_N` and `decode` (and `encode`), steps that keep one text, with the samplers of
the engine here; or `generate`, which generates whole texts.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfllm.errors import ArtifactError, SettingError
from tfllm.generation.checkpoint_config import checkpoint_config
from tfllm.generation.config import (
    BatchedConfig,
    GenerationConfig,
    GraphFlags,
    batch_configs,
    batched_config_specs,
    graph_flags,
)
from tfllm.generation.penalties import apply_penalties
from tfllm.generation.sampling import choose_token
from tfllm.generation.scheduler import pad_batch
from tfllm.generation.token_generator import (
    GenerationInputs,
    GenerationResult,
    ModelLimits,
    OnToken,
    TokenGenerator,
    stop_at,
)
from tfllm.runtimes import causal_lm, seq2seq
from tfllm.runtimes.causal_lm import CausalLMPredictor
from tfllm.runtimes.description import ExportedConfig, exported_generator
from tfllm.runtimes.protocols import Facts
from tfllm.runtimes.savedmodel_generation import check_settings, results_of
from tfllm.runtimes.seq2seq import Seq2SeqPredictor
from tfllm.runtimes.tflite_interpreter import open_interpreter
from tfllm.runtimes.tflite_steps import TFLiteSteps
from tfllm.runtimes.token_log_probs import LogProbs, target_log_probs
from tfllm.tasks import Task
from tfllm.tasks.features import IGNORED

GENERATE = "generate"
# What the file's outputs are called in a SavedModel.
OUTPUT_NAMES = {"ids": "token_ids", "counts": "token_count"}


def open_causal_lm(
    path: Path,
    description: Mapping[str, Any],
    task: Task,
    facts: Facts,
    content: bytes | None = None,
) -> CausalLMPredictor:
    """Open a .tflite file of a causal language model.

    Args:
        path: The file; its tokenizer's files are beside it.
        description: Its `tfllm.json`.
        task: Its task.
        facts: What `describe` returns.
        content: The model's bytes, where it is inside of the file.

    Raises:
        ArtifactError: The file cannot be run.
    """
    engine: TFLiteLoopEngine | TFLiteStepEngine
    log_probs: LogProbs
    logits: causal_lm.Logits | None
    if _has_loop(description):
        engine = TFLiteLoopEngine(path, description["config"]["vocabulary_size"])
        log_probs, logits = _no_log_probs, None
    else:
        engine = TFLiteStepEngine(TFLiteSteps(path, content))
        log_probs, logits = _log_probs_of(engine.steps), _logits_of(engine.steps)
    limits = engine.limits
    task = task.model_copy(update={"max_length": min(task.max_length, limits.max_sequence_length)})
    config = ExportedConfig(limits.max_sequence_length, limits.vocabulary_size)
    model = exported_generator(path.parent, description, task, config)
    return CausalLMPredictor(model, facts, log_probs, engine, logits)


def open_seq2seq(
    path: Path, description: Mapping[str, Any], task: Task, facts: Facts
) -> Seq2SeqPredictor:
    """Open a .tflite file of an encoder-decoder.

    Args:
        path: The file; its tokenizer's files are beside it.
        description: Its `tfllm.json`.
        task: Its task.
        facts: What `describe` returns.

    Raises:
        ArtifactError: The file cannot be run.
    """
    vocabulary_size = description["config"]["vocabulary_size"]
    config = ExportedConfig(description["context"], vocabulary_size)
    model = exported_generator(path.parent, description, task, config)
    if _has_loop(description):
        engine = TFLiteLoopEngine(path, vocabulary_size, checkpoint_config(model))
        return Seq2SeqPredictor(model, facts, engine)
    steps = TFLiteSteps(path)
    return Seq2SeqPredictor(model, facts, TFLiteStepEngine(steps), _source_logits_of(steps))


def _has_loop(description: Mapping[str, Any]) -> bool:
    return bool(description.get("profile", {}).get("prompt_length"))


class TFLiteStepEngine(TokenGenerator):
    """A TokenGenerator that generates one text after the other, step by step."""

    def __init__(self, steps: TFLiteSteps):
        self.steps = steps
        self.limits = ModelLimits(
            steps.context, steps.vocabulary_size, max_source_length=steps.source_length or None
        )
        self.max_batch_size = 1

    def generate_checked(
        self,
        inputs: Sequence[GenerationInputs],
        on_token: OnToken | None = None,
        steps: int | None = None,
    ) -> list[GenerationResult]:
        """Generate step by step. See TokenGenerator.generate_checked.

        Raises:
            SettingError: `num_beams` is above 1: beam search needs many caches.
        """
        results: list[GenerationResult] = []
        for row in inputs:
            if row.source:
                self.steps.encode(row.source)
            if row.config.num_beams > 1:
                raise SettingError(
                    "--num-beams: a .tflite file keeps one text at a time. Use the checkpoint."
                )
            for sequence_index in range(row.config.num_return_sequences):
                results.append(self._text(len(results), row, sequence_index, on_token))
        return results

    def _text(
        self, index: int, inputs: GenerationInputs, sequence_index: int, on_token: OnToken | None
    ) -> GenerationResult:
        prompt, config = inputs.prompt, inputs.config
        max_length = self.limits.max_length(prompt, config)
        flags = replace(graph_flags(config), token_ranges=self.token_ranges)
        row = batch_configs([config], [max_length], [sequence_index])
        ids = np.zeros([1, self.steps.context], np.int32)
        ids[0, : len(prompt)] = prompt
        values: list[float] = []
        self.steps.read(prompt[:-1])
        for length in range(len(prompt), max_length):
            logits = self.steps.step(int(ids[0, length - 1]), length - 1)
            choose = _choose_graph(flags, len(logits))
            tokens, logs = choose(logits[None], ids, [length], [len(prompt)], row)
            token, value = int(tokens[0]), float(logs[0])
            if token in config.eos_token_id:
                return GenerationResult(ids[0, len(prompt) : length].tolist(), values, "stop")
            ids[0, length] = token
            values.append(value)
            if on_token and on_token(index, token, value):
                return GenerationResult(ids[0, len(prompt) : length + 1].tolist(), values, "stop")
        return GenerationResult(ids[0, len(prompt) : max_length].tolist(), values, "length")


@functools.cache
def _choose_graph(
    flags: GraphFlags, vocabulary_size: int
) -> Callable[..., tuple[tf.Tensor, tf.Tensor]]:
    """A graph: logits float32 [1, V], ids int32 [1, C], lengths and prompt lengths [1], config ->
    the next token and its log-probability, each [1]."""
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
    def choose(
        logits: tf.Tensor,
        ids: tf.Tensor,
        lengths: tf.Tensor,
        prompt_lengths: tf.Tensor,
        config: BatchedConfig,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        processed = apply_penalties(logits, ids, lengths, prompt_lengths, config, flags)
        token = choose_token(processed, config, lengths - prompt_lengths, flags)
        value = tf.gather(logits, token, batch_dims=1) - tf.reduce_logsumexp(logits, axis=-1)
        return token, value

    return choose


class TFLiteLoopEngine(TokenGenerator):
    """A TokenGenerator with `generate` and `generate_batch_N`, which generate whole texts.

    Args:
        path: The file.
        vocabulary_size: V.
        own_config: The settings in the file of an encoder-decoder, which reads sources in place of
            prompts; unset: a causal language model's file.
    """

    def __init__(
        self, path: Path, vocabulary_size: int, own_config: GenerationConfig | None = None
    ):
        interpreter = open_interpreter(path)
        runners = [
            interpreter.get_signature_runner(name)
            for name in interpreter.get_signature_list()
            if name.startswith(GENERATE)
        ]
        self._runners = {
            int(runner.get_input_details()["token_ids"]["shape"][0]): runner for runner in runners
        }
        """Batch size -> signature."""
        runner = self._runners[min(self._runners)]
        inputs, outputs = runner.get_input_details(), runner.get_output_details()
        self._dtypes = {name: details["dtype"] for name, details in inputs.items()}
        self._width = int(inputs["token_ids"]["shape"][1])
        max_new_tokens = int(outputs["ids"]["shape"][1])
        self._own_config = own_config
        if own_config is None:
            self.limits = ModelLimits(
                self._width + max_new_tokens, vocabulary_size, max_prompt_length=self._width
            )
        else:
            self.limits = ModelLimits(
                max_new_tokens + 1, vocabulary_size, max_source_length=self._width
            )
        self.max_batch_size = max(self._runners)

    def generate_checked(
        self,
        inputs: Sequence[GenerationInputs],
        on_token: OnToken | None = None,
        steps: int | None = None,
    ) -> list[GenerationResult]:
        """Generate through the file's own loop. See TokenGenerator.generate_checked.

        `on_token` gets the tokens of whole texts.
        """
        for each in inputs:
            check_settings(each.config, self._own_config)
        results: list[GenerationResult] = []
        while len(results) < len(inputs):
            remaining = inputs[len(results) :]
            full = [size for size in self._runners if size <= len(remaining)]
            size = max(full, default=min(self._runners))
            results += self._generate_batch(remaining[:size], size)
        return stop_at(results, on_token)

    def _generate_batch(
        self, inputs: Sequence[GenerationInputs], size: int
    ) -> list[GenerationResult]:
        """The texts of one call; where there are fewer than `size`, the last one is repeated."""
        rows = [*inputs, *[inputs[-1]] * (size - len(inputs))]
        ids = [each.prompt if self._own_config is None else each.source for each in rows]
        token_ids, lengths = pad_batch(ids, self._width)
        feeds = {"token_ids": token_ids, "lengths": lengths}
        for name, dtype in self._dtypes.items():
            if name not in feeds:
                feeds[name] = np.array([getattr(each.config, name) for each in rows], dtype)
        outputs = self._runners[size](**feeds)
        named = {OUTPUT_NAMES.get(name, name): value for name, value in outputs.items()}
        return results_of(named)[: len(inputs)]


def _logits_of(steps: TFLiteSteps) -> causal_lm.Logits:
    """The logits after every token, step by step."""

    def logits(ids: np.ndarray) -> np.ndarray:
        rows = [
            [steps.step(int(token), position) for position, token in enumerate(row)] for row in ids
        ]
        return np.array(rows, np.float32)

    return logits


def _source_logits_of(steps: TFLiteSteps) -> seq2seq.Logits:
    """The logits after every token of a target, step by step."""

    def logits(source: Sequence[int], target: Sequence[int]) -> np.ndarray:
        steps.encode(source)
        rows = [steps.step(int(token), position) for position, token in enumerate(target)]
        return np.array(rows, np.float32)

    return logits


def _log_probs_of(steps: TFLiteSteps) -> LogProbs:
    """Log-probabilities, step by step."""

    def log_probs(ids: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        values = np.zeros(ids.shape, np.float64)
        best = np.zeros(ids.shape, bool)
        for row, (tokens, row_targets) in enumerate(zip(ids, targets, strict=True)):
            counted = np.flatnonzero(row_targets != IGNORED)
            if not counted.size:
                continue
            first, last = int(counted[0]), int(counted[-1])
            steps.read(tokens[:first].tolist())
            for position in range(first, last + 1):
                logits = steps.step(int(tokens[position]), position)
                value, is_best = target_log_probs(
                    logits[None, None], row_targets[None, None, position]
                )
                values[row, position], best[row, position] = value[0, 0], is_best[0, 0]
        return values, best

    return log_probs


def _no_log_probs(ids: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    raise ArtifactError(
        "A file that writes whole texts gives no probabilities of given ones. Measure the "
        "checkpoint, or export it without prompt_length."
    )
