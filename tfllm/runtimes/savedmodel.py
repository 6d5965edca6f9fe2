"""Predictions of a SavedModel, through the signature that TF Serving would call.

Texts go in as strings and come back as labels, spans or vectors; here they only get the form that
`tfllm predict` writes. TensorFlow and TensorFlow Text are all that runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tensorflow as tf
import tensorflow_text  # noqa: F401  registers the tokenizer's operations

from tfllm.errors import ArtifactError, SettingError
from tfllm.runtimes.protocols import BATCH_SIZE, Example, Facts, Prediction, Progress
from tfllm.runtimes.token_predictor import TokenPredictor, check_finite
from tfllm.tasks import Task
from tfllm.tasks.features import text_field
from tfllm.tokenizers.base import Tokenizer
from tfllm.tokenizers.loading import load_tokenizer

SIGNATURE, SCORE = "serving_default", "score"
Outputs = Mapping[str, Any]
"""Name -> one example's part of an output, a NumPy value."""


class LoadedSavedModel(Protocol):
    """What `tf.saved_model.load` returns."""

    @property
    def signatures(self) -> Mapping[str, tf.types.experimental.ConcreteFunction]:
        """The signatures by name."""
        ...


def load_savedmodel(folder: Path) -> LoadedSavedModel:
    """Load the SavedModel in a version's folder.

    Raises:
        ArtifactError: It is no complete SavedModel.
    """
    try:
        module = tf.saved_model.load(str(folder))
    except (OSError, ValueError, RuntimeError, tf.errors.OpError) as error:
        first = str(error).strip().splitlines()[0]
        raise ArtifactError(
            f"'{folder}' is not a complete SavedModel ({first}). Export again."
        ) from None
    if SIGNATURE not in module.signatures:
        known = ", ".join(module.signatures) or "none"
        raise ArtifactError(
            f"'{folder}' has no signature {SIGNATURE} (it has: {known}). Export it with tfllm."
        )
    return module


@dataclass(frozen=True)
class SavedModelPredictor:
    """A Predictor with a SavedModel whose signature takes texts."""

    task: Task
    facts: Facts
    folder: Path
    module: LoadedSavedModel

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """See Predictor.tokenizer."""
        return load_tokenizer(self.folder / "assets")

    @property
    def vocabulary(self) -> Sequence[str]:
        """The tokens by id."""
        return self.tokenizer.vocabulary

    def describe(self) -> Facts:
        """See Predictor.describe."""
        return self.facts

    def predict(
        self,
        examples: Sequence[Example],
        batch_size: int = BATCH_SIZE,
        progress: Progress | None = None,
    ) -> list[Prediction]:
        """Predict through the signature `serving_default`. See Predictor.predict."""
        if self.task.encodes_pairs_apart and any("text_pair" in example for example in examples):
            return self._pairs(examples, batch_size, progress)
        texts = [self._texts(example) for example in examples]
        return [
            self.task.answer_from_signature(example, outputs)
            for example, outputs in zip(
                examples, self._run(texts, batch_size, progress), strict=True
            )
        ]

    def masked_token_log_probs(
        self,
        examples: Sequence[Example],
        batch_size: int = BATCH_SIZE,
        progress: Progress | None = None,
    ) -> list[Prediction]:
        """Score masked tokens through the signature `tokens`. See TokenPredictor."""
        tokens = self.module.signatures["tokens"]
        names = list(tokens.structured_input_signature[1])

        def call(inputs: dict[str, np.ndarray]) -> np.ndarray:
            (output,) = tokens(**{name: tf.constant(inputs[name]) for name in names}).values()
            return output.numpy()

        predictor = TokenPredictor(self.task, self.tokenizer, self.facts, 0, call)
        return predictor.masked_token_log_probs(examples, batch_size, progress)

    def score(
        self,
        examples: Sequence[Example],
        batch_size: int = BATCH_SIZE,
        progress: Progress | None = None,
        *,
        stride: int | None = None,
        measure: str = "all",
    ) -> list[Prediction]:
        """Score texts of a language model through the signature `score`. See CausalLMPredictor.

        A text is scored as the signature does it, in one window.

        Raises:
            ArtifactError: There is no such signature.
            SettingError: `stride` or `measure` is set.
        """
        if SCORE not in self.module.signatures:
            raise ArtifactError(
                f"'{self.folder}' has no signature {SCORE}, for log-probabilities of texts. "
                "Measure the checkpoint that it was exported from."
            )
        if stride is not None or measure != "all":
            raise SettingError(
                "--set: stride and measure need a checkpoint; a SavedModel scores whole texts. "
                "Leave them out, or measure the checkpoint that it was exported from."
            )
        texts = [text_field(example) for example in examples]
        inputs = [{"text": text} for text in texts]
        outputs = self._run(inputs, batch_size, progress, SCORE)
        return [
            {
                "log_probability": float(output["log_probability"]),
                "token_count": int(output["token_count"]),
                "byte_count": len(text.encode()),
                "character_count": len(text),
            }
            for text, output in zip(texts, outputs, strict=True)
        ]

    def _run(
        self,
        texts: Sequence[dict[str, str]],
        batch_size: int,
        progress: Progress | None,
        name: str = SIGNATURE,
    ) -> list[Outputs]:
        """A signature's outputs for every example. Texts of like length share a batch."""
        signature = self.module.signatures[name]
        order = sorted(range(len(texts)), key=lambda i: -sum(map(len, texts[i].values())))
        results: list[Outputs] = [{}] * len(texts)
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            feeds = {name: tf.constant([texts[row][name] for row in rows]) for name in texts[0]}
            outputs = {name: value.numpy() for name, value in signature(**feeds).items()}
            for value in outputs.values():
                if value.dtype.kind == "f":
                    check_finite(value, self.folder)
            for position, row in enumerate(rows):
                results[row] = {name: value[position] for name, value in outputs.items()}
            if progress:
                progress(len(rows))
        return results

    def _texts(self, example: Example) -> dict[str, str]:
        """The signature's inputs for one example."""
        names = list(self.module.signatures[SIGNATURE].structured_input_signature[1])
        if "text_pair" in example and "text_pair" not in names:
            raise ArtifactError(
                f"{example.get('_where', 'input')}: has a text_pair, but the signature of "
                f"'{self.folder}' takes {', '.join(names)} only. Remove the field text_pair."
            )
        if names == ["prompt"]:
            return {"prompt": str(example.get("prompt", example.get("text", "")))}
        if "words" in example and names == ["text"]:
            return {"text": " ".join(example["words"])}
        return {name: example[name] for name in names}

    def _pairs(
        self, examples: Sequence[Example], batch_size: int, progress: Progress | None
    ) -> list[Prediction]:
        texts = [{"text": e[name]} for e in examples for name in ("text", "text_pair")]
        half = (lambda amount: progress(amount / 2)) if progress else None
        vectors = [outputs["embedding"] for outputs in self._run(texts, batch_size, half)]
        return [self.task.pair_answer(*vectors[row : row + 2]) for row in range(0, len(vectors), 2)]
