"""Encoder-decoders in exported files, asked and measured as their checkpoint is.

SavedModel    the signatures `generate_tokens` and `beam_tokens`
LiteRT        `encode` and `decode`, or `generate`: one token after another, no beams
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from tfllm.errors import SettingError
from tfllm.generation.config import GenerationConfig, signature_fields
from tfllm.generation.defaults import defaults_of
from tfllm.generation.engine import Engine, OnToken, Result
from tfllm.generation.slots import padded
from tfllm.runtimes.causal_lm_artifact import heard, results_of
from tfllm.runtimes.seq2seq import SourcePredictor
from tfllm.tasks import Task
from tfllm.tokenizers.loading import load_tokenizer

SAMPLED, SEARCHED = signature_fields("generate"), signature_fields("beam")
ROWS = 32  # written at once


@dataclass(frozen=True)
class SourceArtifact(SourcePredictor):
    """See SourcePredictor."""

    engine: Any = None
    scored: Any = None
    """An exported file writes, and does not tell how likely given texts are."""
    logits: Callable[[Sequence[int], Sequence[int]], np.ndarray] | None = None
    """Ids of a source and of a target, the start token first, to the scores of the token after
    each, float32 [T, V]. None of a file that writes whole texts."""

    @cached_property
    def generator(self) -> Any:
        """Writes texts with the file: a TextToText."""
        from tfllm.generation.seq2seq_generator import TextToText

        return TextToText(self.checkpoint, engine=self.engine)


def open_source_savedmodel(
    folder: Path, module: Any, description: dict[str, Any], task: Task, facts: dict[str, Any]
) -> SourceArtifact:
    """Of a loaded SavedModel."""
    checkpoint: Any = described(folder / "assets", description, task)
    shape = SimpleNamespace(
        max_sequence_length=description["context"],
        vocabulary_size=description["config"]["vocabulary_size"],
        source_vocabulary_size=checkpoint.tokenizer.vocabulary_size,
        encode=None,  # it reads sources
    )
    engine = SavedModelSources(shape, module.signatures, checkpoint, description["num_beams"])

    def logits(source: Sequence[int], target: Sequence[int]) -> np.ndarray:
        given = {"source_ids": source, "token_ids": target}
        rows = {name: np.array([ids], np.int32) for name, ids in given.items()}
        masks = {"source_padding_mask": rows["source_ids"], "padding_mask": rows["token_ids"]}
        rows |= {name: np.ones_like(ids) for name, ids in masks.items()}
        (found,) = module.signatures["tokens"](**rows).values()
        return found.numpy()[0]

    return SourceArtifact(checkpoint, facts, engine, logits=logits)


def open_source_tflite(
    path: Path, description: dict[str, Any], task: Task, facts: dict[str, Any]
) -> SourceArtifact:
    """Of a .tflite file. Raises ArtifactError."""
    checkpoint: Any = described(path.parent, description, task)
    engine: Engine
    if description.get("profile", {}).get("prompt_length"):
        from tfllm.runtimes.tflite_loop import LoopEngine

        size = description["config"]["vocabulary_size"]
        engine = LoopEngine(path, size, defaults_of(checkpoint))
    else:
        from tfllm.runtimes.tflite_engine import LiteEngine

        engine = LiteEngine(path)
        return SourceArtifact(checkpoint, facts, engine, logits=_logits_of(engine.steps))
    return SourceArtifact(checkpoint, facts, engine)


def _logits_of(steps: Any) -> Callable[[Sequence[int], Sequence[int]], np.ndarray]:
    def logits(source: Sequence[int], target: Sequence[int]) -> np.ndarray:
        steps.encode(source)
        rows = [steps.step(int(one), place) for place, one in enumerate(target)]
        return np.array(rows, np.float32)

    return logits


def described(folder: Path, description: dict[str, Any], task: Task) -> Any:
    """What stands for the checkpoint that the file in `folder` came from."""
    generation = description.get("generation", {})
    return SimpleNamespace(
        task=task,
        tokenizer=load_tokenizer(folder),
        config=SimpleNamespace(
            max_sequence_length=description["context"],
            vocabulary_size=description["config"]["vocabulary_size"],
        ),
        family=description.get("family"),
        eos_token_id=tuple(description.get("eos_token_id", ())),
        decoder_start_token_id=description["start_id"],
        generation_config=generation,
        generation_setting=generation.get,
        path=folder,
    )


class SavedModelSources(Engine):
    """Tokens from the signatures: many rows at once, told when all are done."""

    def __init__(self, shape: Any, signatures: Any, checkpoint: Any, num_beams: int):
        super().__init__(shape, max_rows=ROWS)
        self.signatures, self.num_beams = signatures, num_beams
        self.own = defaults_of(checkpoint)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        settings: GenerationConfig | Sequence[GenerationConfig],
        on_token: OnToken | None = None,
        *,
        steps: int | None = None,
        sources: Sequence[Sequence[int]] | None = None,
    ) -> list[Result]:
        """See Engine.generate. Raises SettingError for settings that no signature has."""
        each = self.settings_of(prompts, settings)
        given = self.sources_of(prompts, sources)
        results: list[Result] = []
        for start in range(0, len(given), self.max_rows):
            some = slice(start, start + self.max_rows)
            results += self._written(given[some], each[some])
        return [heard(number, result, on_token) for number, result in enumerate(results)]

    def _written(
        self, given: Sequence[Sequence[int]], each: Sequence[GenerationConfig]
    ) -> list[Result]:
        import tensorflow as tf

        searched = each[0].num_beams > 1
        names = SEARCHED if searched else SAMPLED
        for one in each:
            self._check(one, names, searched)
        token_ids, lengths = padded(given)
        settings = {
            name: tf.constant([getattr(one, name) for one in each], dtype)
            for name, dtype in names.items()
        }
        signature: Callable[..., Any] = self.signatures[
            "beam_tokens" if searched else "generate_tokens"
        ]
        found = signature(
            token_ids=tf.constant(token_ids), lengths=tf.constant(lengths), **settings
        )
        arrays = {name: np.asarray(value) for name, value in found.items()}
        results = results_of(arrays)
        if not searched:
            return results
        return [
            Result(one.ids, one.log_probabilities, one.finish_reason, float(score))
            for one, score in zip(results, arrays["score"], strict=True)
        ]

    def _check(self, settings: GenerationConfig, names: Iterable[str], searched: bool) -> None:
        if searched and settings.num_beams != self.num_beams:
            raise SettingError(
                f"--num-beams {settings.num_beams}: the exported file searches with "
                f"{self.num_beams} beams, or with 1. Use the checkpoint, or export it with "
                f"generation.num_beams: {settings.num_beams}."
            )
        free = {*names, *SAMPLED, *SEARCHED, "num_beams", "eos_token_id"}
        for name in type(settings).model_fields:
            if name not in free and getattr(settings, name) != getattr(self.own, name):
                raise SettingError(
                    f"--{name.replace('_', '-')}: an exported file takes {', '.join(names)} only, "
                    "and keeps the checkpoint's own settings else. Use the checkpoint for this."
                )
