"""Generation with SavedModels, through signatures that take and return token ids.

Causal language models: `generate_tokens`, and `tokens` for logits. Encoder-decoders:
`generate_tokens`, `beam_tokens`, and `tokens`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfllm.errors import SettingError
from tfllm.generation.checkpoint_config import checkpoint_config
from tfllm.generation.config import FIELDS, GenerationConfig, signature_fields
from tfllm.generation.decode_state import STOPPED
from tfllm.generation.scheduler import pad_batch
from tfllm.generation.token_generator import (
    GenerationInputs,
    GenerationResult,
    Ids,
    ModelLimits,
    OnToken,
    TokenGenerator,
    stop_at,
)
from tfllm.runtimes.causal_lm import CausalLMPredictor
from tfllm.runtimes.description import ExportedConfig, exported_generator
from tfllm.runtimes.protocols import Facts
from tfllm.runtimes.savedmodel import LoadedSavedModel
from tfllm.runtimes.seq2seq import Seq2SeqPredictor
from tfllm.runtimes.token_log_probs import target_log_probs
from tfllm.tasks import Task

SAMPLING_FIELDS, BEAM_FIELDS = signature_fields("generate"), signature_fields("beam")
CALLER_FIELDS = ("eos_token_id", "num_return_sequences")
"""Fields that callers set themselves: stop ids are in the file, and one text per row is checked."""

Signature = Callable[..., Mapping[str, tf.Tensor]]


def open_causal_lm(
    folder: Path,
    module: LoadedSavedModel,
    description: Mapping[str, Any],
    task: Task,
    facts: Facts,
) -> CausalLMPredictor:
    """Open a loaded SavedModel of a causal language model.

    Args:
        folder: The version's folder.
        module: The loaded SavedModel.
        description: Its `tfllm.json`.
        task: Its task.
        facts: What `describe` returns.
    """
    signature = module.signatures["tokens"]
    (output,) = signature.structured_outputs.values()
    window = description.get("context") or description["config"]["max_sequence_length"]
    config = ExportedConfig(window, int(output.shape[-1]))
    task = task.model_copy(update={"max_length": min(task.max_length, window)})
    model = exported_generator(folder / "assets", description, task, config)
    engine = SavedModelEngine(
        ModelLimits(window, config.vocabulary_size), module.signatures["generate_tokens"]
    )

    def logits(ids: np.ndarray) -> np.ndarray:
        mask = tf.constant(np.ones_like(ids))
        (output,) = signature(token_ids=tf.constant(ids), padding_mask=mask).values()
        return output.numpy()

    def log_probs(ids: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return target_log_probs(logits(ids), targets)

    return CausalLMPredictor(model, facts, log_probs, engine, logits)


def open_seq2seq(
    folder: Path,
    module: LoadedSavedModel,
    description: Mapping[str, Any],
    task: Task,
    facts: Facts,
) -> Seq2SeqPredictor:
    """Open a loaded SavedModel of an encoder-decoder.

    Args:
        folder: The version's folder.
        module: The loaded SavedModel.
        description: Its `tfllm.json`.
        task: Its task.
        facts: What `describe` returns.
    """
    config = ExportedConfig(description["context"], description["config"]["vocabulary_size"])
    model = exported_generator(folder / "assets", description, task, config)
    limits = ModelLimits(
        config.max_sequence_length,
        config.vocabulary_size,
        max_source_length=config.max_sequence_length,
        source_vocabulary_size=model.tokenizer.vocabulary_size,
    )
    engine = SavedModelSeq2SeqEngine(
        limits, module.signatures, checkpoint_config(model), description["num_beams"]
    )

    def logits(source: Sequence[int], target: Sequence[int]) -> np.ndarray:
        ids = {"source_ids": source, "token_ids": target}
        inputs = {name: np.array([row], np.int32) for name, row in ids.items()}
        inputs["source_padding_mask"] = np.ones_like(inputs["source_ids"])
        inputs["padding_mask"] = np.ones_like(inputs["token_ids"])
        (output,) = module.signatures["tokens"](**inputs).values()
        return output.numpy()[0]

    return Seq2SeqPredictor(model, facts, engine, logits)


class SavedModelEngine(TokenGenerator):
    """A TokenGenerator with the signature `generate_tokens` of a causal language model."""

    def __init__(self, limits: ModelLimits, signature: Signature):
        self.limits = limits
        self.signature = signature

    def generate_checked(
        self,
        inputs: Sequence[GenerationInputs],
        on_token: OnToken | None = None,
        steps: int | None = None,
    ) -> list[GenerationResult]:
        """Generate through the signature `generate_tokens`. See TokenGenerator.generate_checked.

        `on_token` gets the tokens of whole texts.
        """
        for each in inputs:
            check_settings(each.config)
        results: list[GenerationResult] = []
        for start in range(0, len(inputs), self.max_batch_size):
            batch = inputs[start : start + self.max_batch_size]
            rows = [each.prompt for each in batch]
            configs = [each.config for each in batch]
            results += results_of(_call(self.signature, rows, configs, SAMPLING_FIELDS))
        return stop_at(results, on_token)


class SavedModelSeq2SeqEngine(TokenGenerator):
    """A TokenGenerator with the signatures of an encoder-decoder.

    Args:
        limits: What ids the model takes.
        signatures: `generate_tokens` and `beam_tokens`.
        own_config: The settings in the file.
        num_beams: The number of beams of `beam_tokens`.
    """

    def __init__(
        self,
        limits: ModelLimits,
        signatures: Mapping[str, Signature],
        own_config: GenerationConfig,
        num_beams: int,
    ):
        self.limits = limits
        self.signatures, self.own_config, self.num_beams = signatures, own_config, num_beams

    def generate_checked(
        self,
        inputs: Sequence[GenerationInputs],
        on_token: OnToken | None = None,
        steps: int | None = None,
    ) -> list[GenerationResult]:
        """Generate through the signature `generate_tokens`. See TokenGenerator.generate_checked.

        `on_token` gets the tokens of whole texts.
        """
        results: list[GenerationResult] = []
        for start in range(0, len(inputs), self.max_batch_size):
            results += self._generate_batch(inputs[start : start + self.max_batch_size])
        return stop_at(results, on_token)

    def _generate_batch(self, inputs: Sequence[GenerationInputs]) -> list[GenerationResult]:
        searches = inputs[0].config.num_beams > 1
        fields = BEAM_FIELDS if searches else SAMPLING_FIELDS
        for each in inputs:
            self._check(each.config, fields, searches)
        signature = self.signatures["beam_tokens" if searches else "generate_tokens"]
        rows = [each.source for each in inputs]
        outputs = _call(signature, rows, [each.config for each in inputs], fields)
        results = results_of(outputs)
        if not searches:
            return results
        return [
            replace(result, score=float(score))
            for result, score in zip(results, outputs["score"], strict=True)
        ]

    def _check(
        self, config: GenerationConfig, fields: Mapping[str, np.dtype], searches: bool
    ) -> None:
        if searches and config.num_beams != self.num_beams:
            raise SettingError(
                f"--num-beams {config.num_beams}: the exported file searches with "
                f"{self.num_beams} beams, or with 1. Use the checkpoint, or export it with "
                f"generation.num_beams: {config.num_beams}."
            )
        free = {*SAMPLING_FIELDS, *BEAM_FIELDS, "num_beams", "eos_token_id"}
        for name in FIELDS:
            if name not in free and getattr(config, name) != getattr(self.own_config, name):
                raise SettingError(
                    f"--{name.replace('_', '-')}: an exported file takes {', '.join(fields)} only, "
                    "and keeps the checkpoint's own settings else. Use the checkpoint for this."
                )


def check_settings(config: GenerationConfig, own_config: GenerationConfig | None = None) -> None:
    """Check that a signature without beam search can honour the settings.

    Args:
        config: The settings.
        own_config: The settings in the file; unset: the defaults.

    Raises:
        SettingError: A setting differs that is no input of the signature.
    """
    own_config = own_config or GenerationConfig()
    for name in FIELDS:
        if name in SAMPLING_FIELDS or name in CALLER_FIELDS:
            continue
        if getattr(config, name) != getattr(own_config, name):
            raise SettingError(
                f"--{name.replace('_', '-')}: an exported file takes "
                f"{', '.join(SAMPLING_FIELDS)} only. Use the checkpoint for this."
            )
    if config.num_return_sequences > 1:
        raise SettingError(
            "--num-return-sequences: an exported file writes one text per prompt. Repeat the "
            "prompt with other seeds."
        )


def results_of(outputs: Mapping[str, np.ndarray]) -> list[GenerationResult]:
    """Return the results in the outputs of a signature that generates token ids."""
    return [
        GenerationResult(
            ids[:count].tolist(), logs[:count].tolist(), "stop" if reason == STOPPED else "length"
        )
        for ids, count, logs, reason in zip(
            outputs["token_ids"],
            outputs["token_count"],
            outputs["log_probabilities"],
            outputs["finished"],
            strict=True,
        )
    ]


def _call(
    signature: Signature,
    rows: Sequence[Ids],
    configs: Sequence[GenerationConfig],
    fields: Mapping[str, np.dtype],
) -> dict[str, np.ndarray]:
    token_ids, lengths = pad_batch(rows)
    settings = {
        name: tf.constant([getattr(config, name) for config in configs], dtype)
        for name, dtype in fields.items()
    }
    outputs = signature(token_ids=tf.constant(token_ids), lengths=tf.constant(lengths), **settings)
    return {name: value.numpy() for name, value in outputs.items()}
