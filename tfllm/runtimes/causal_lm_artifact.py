"""Language models in exported files, measured and asked as their checkpoint is.

SavedModel    the signatures `generate_tokens` and `tokens`
LiteRT        `prefill_N` and `decode`; or `generate`, which can write but not tell texts
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from tfllm.errors import ArtifactError, SettingError
from tfllm.generation.config import GenerationConfig, generation_config, signature_fields
from tfllm.generation.engine import Engine, OnToken, Result
from tfllm.generation.slots import padded
from tfllm.runtimes.causal_lm import LanguagePredictor
from tfllm.runtimes.token_log_probs import Score
from tfllm.tasks import Task
from tfllm.tasks.features import IGNORED
from tfllm.tokenizers.loading import load_tokenizer

STOPPED = 1  # in the output `finished`
# Settings that the signatures take; all others must have their defaults.
SETTINGS = signature_fields("generate")
SETTINGS_AND_CALLER = (*SETTINGS, "eos_token_id", "num_return_sequences")
ROWS = 32  # written at once
Logits = Callable[[np.ndarray], np.ndarray]
"""Token ids int32 [B, T] to the scores of the token after each, float32 [B, T, V]."""


@dataclass(frozen=True)
class LanguageArtifact(LanguagePredictor):
    """See LanguagePredictor."""

    engine: Any
    score: Score
    logits: Logits | None = None
    """None of a file that writes whole texts."""

    @cached_property
    def generator(self) -> Any:
        """Writes texts with the file: a TextGenerator."""
        from tfllm.generation.text_generator import TextGenerator

        return TextGenerator(self.checkpoint, engine=self.engine)

    def _score(self, ids: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.score(ids, targets)


def open_language_savedmodel(
    folder: Path, module: Any, description: dict[str, Any], task: Task, facts: dict[str, Any]
) -> LanguageArtifact:
    """Of a loaded SavedModel."""
    tokens = module.signatures["tokens"]
    (logits,) = tokens.structured_outputs.values()
    window = description.get("context") or description["config"]["max_sequence_length"]
    shape = SimpleNamespace(max_sequence_length=window, vocabulary_size=int(logits.shape[-1]))
    engine = SavedModelEngine(shape, module.signatures["generate_tokens"])

    def scores(ids: np.ndarray) -> np.ndarray:
        import tensorflow as tf

        (output,) = tokens(
            token_ids=tf.constant(ids), padding_mask=tf.constant(np.ones_like(ids))
        ).values()
        return output.numpy()

    def score(ids: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return told(scores(ids), targets)

    return _artifact(folder / "assets", description, task, facts, engine, score, scores)


def open_language_tflite(
    path: Path, description: dict[str, Any], task: Task, facts: dict[str, Any]
) -> LanguageArtifact:
    """Of a .tflite file. Raises ArtifactError."""
    engine: Engine
    if description.get("profile", {}).get("prompt_length"):
        from tfllm.runtimes.tflite_loop import LoopEngine

        engine = LoopEngine(path, description["config"]["vocabulary_size"])
        return _artifact(path.parent, description, task, facts, engine, _cannot_score)
    from tfllm.runtimes.tflite_engine import LiteEngine

    engine = LiteEngine(path)
    steps = engine.steps
    return _artifact(
        path.parent, description, task, facts, engine, _score_of(steps), _logits_of(steps)
    )


def open_bundle_model(source: Path) -> LanguageArtifact:
    """The model inside a .litertlm bundle, or of the directory of one. Raises ArtifactError."""
    from tfllm.runtimes import litertlm_file
    from tfllm.runtimes.artifact import read_description
    from tfllm.runtimes.tflite_engine import LiteEngine

    path = source / litertlm_file.FILE_NAME if source.is_dir() else source
    if not path.is_file():
        raise ArtifactError(f"There is no file '{path}'. Check the path.")
    bundle = litertlm_file.open_bundle(path)
    description, task = read_description(path.parent / "tfllm.json")
    facts = {
        "kind": "litertlm",
        "path": str(path),
        "family": description.get("family"),
        "task": task.kind,
        "size_bytes": path.stat().st_size,
    }
    engine = LiteEngine(path, bundle.read(litertlm_file.MODEL))
    steps = engine.steps
    return _artifact(
        path.parent, description, task, facts, engine, _score_of(steps), _logits_of(steps)
    )


def _artifact(
    folder: Path,
    description: dict[str, Any],
    task: Task,
    facts: dict[str, Any],
    engine: Engine,
    score: Score,
    logits: Logits | None = None,
) -> LanguageArtifact:
    window = engine.decoder.max_sequence_length
    checkpoint: Any = SimpleNamespace(
        task=task.model_copy(update={"max_length": min(task.max_length, window)}),
        tokenizer=load_tokenizer(folder),
        config=SimpleNamespace(vocabulary_size=engine.decoder.vocabulary_size),
        family=description.get("family"),
        eos_token_id=tuple(description.get("eos_token_id", ())),
        path=folder,
    )
    return LanguageArtifact(checkpoint, facts, engine, score, logits)


class SavedModelEngine(Engine):
    """Tokens from the signature `generate_tokens`: many rows at once, told when all are done."""

    def __init__(self, shape: Any, signature: Callable[..., Any]):
        super().__init__(shape, max_rows=ROWS)
        self.signature = signature

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        settings: GenerationConfig | Sequence[GenerationConfig],
        on_token: OnToken | None = None,
        *,
        steps: int | None = None,
        sources: Sequence[Sequence[int]] | None = None,
    ) -> list[Result]:
        """See Engine.generate. Raises SettingError for settings that the signature has not."""
        self.sources_of(prompts, sources)
        each = self.settings_of(prompts, settings)
        for one in each:
            check_settings(one)
        rows = list(zip(prompts, each, strict=True))
        results: list[Result] = []
        for start in range(0, len(rows), self.max_rows):
            results += self._written(rows[start : start + self.max_rows])
        return [heard(number, result, on_token) for number, result in enumerate(results)]

    def _written(self, rows: Sequence[tuple[Sequence[int], GenerationConfig]]) -> list[Result]:
        import tensorflow as tf

        token_ids, lengths = padded([prompt for prompt, _ in rows])
        given = {
            name: tf.constant([getattr(one, name) for _, one in rows], dtype)
            for name, dtype in SETTINGS.items()
        }
        found = self.signature(
            token_ids=tf.constant(token_ids), lengths=tf.constant(lengths), **given
        )
        return results_of({name: value.numpy() for name, value in found.items()})


def check_settings(settings: GenerationConfig, own: GenerationConfig | None = None) -> None:
    """Raises SettingError for what no signature takes; `own` settings are in the file."""
    plain = own or generation_config()
    for name in type(settings).model_fields:
        if name not in SETTINGS_AND_CALLER and getattr(settings, name) != getattr(plain, name):
            raise SettingError(
                f"--{name.replace('_', '-')}: an exported file takes {', '.join(SETTINGS)} only. "
                "Use the checkpoint for this."
            )
    if settings.num_return_sequences > 1:
        raise SettingError(
            "--num-return-sequences: an exported file writes one text per prompt. Repeat the "
            "prompt with other seeds."
        )


def heard(number: int, result: Result, on_token: OnToken | None) -> Result:
    """The result, cut where `on_token` ends it."""
    if on_token is None:
        return result
    for place, (token, value) in enumerate(
        zip(result.ids, result.log_probabilities, strict=True), start=1
    ):
        if on_token(number, token, value):
            return Result(result.ids[:place], result.log_probabilities[:place], "stop")
    return result


def results_of(found: dict[str, np.ndarray]) -> list[Result]:
    """Results from the outputs of a signature that writes token ids."""
    return [
        Result(
            ids[:count].tolist(), values[:count].tolist(), "stop" if end == STOPPED else "length"
        )
        for ids, count, values, end in zip(
            found["token_ids"],
            found["token_count"],
            found["log_probabilities"],
            found["finished"],
            strict=True,
        )
    ]


def told(logits: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities of targets [B, T], and whether each is the likeliest, from [B, T, V]."""
    largest = logits.max(axis=-1, keepdims=True)
    total = np.log(np.exp(logits - largest).sum(axis=-1, dtype=np.float64)) + largest[..., 0]
    safe = np.maximum(targets, 0)
    right = np.take_along_axis(logits, safe[..., None], axis=-1)[..., 0]
    return right - total, logits.argmax(axis=-1) == safe


def _logits_of(steps: Any) -> Logits:
    """Scores after every token by a file that keeps one text."""

    def logits(ids: np.ndarray) -> np.ndarray:
        rows = [[steps.step(int(one), place) for place, one in enumerate(row)] for row in ids]
        return np.array(rows, np.float32)

    return logits


def _score_of(steps: Any) -> Score:
    """Texts told token by token by a file that keeps one text."""

    def score(ids: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        values = np.zeros(ids.shape, np.float64)
        best = np.zeros(ids.shape, bool)
        for row, (tokens, wanted) in enumerate(zip(ids, targets, strict=True)):
            counted = np.flatnonzero(wanted != IGNORED)
            if not counted.size:
                continue
            first, last = int(counted[0]), int(counted[-1])
            steps.read(tokens[:first].tolist())
            for place in range(first, last + 1):
                logits = steps.step(int(tokens[place]), place)
                one = told(logits[None, None], wanted[None, None, place])
                values[row, place], best[row, place] = one[0][0, 0], one[1][0, 0]
        return values, best

    return score


def _cannot_score(ids: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    raise ArtifactError(
        "A file that writes whole texts gives no probabilities of given ones. Measure the "
        "checkpoint, or export it without prompt_length."
    )
