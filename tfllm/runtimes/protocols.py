"""What every open model offers: a Predictor, and where it generates text a Generator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from tfllm.tasks import Task
from tfllm.tokenizers.base import Tokenizer

if TYPE_CHECKING:  # TensorFlow is not needed for a TFLite file
    from tfllm.generation.config import GenerationConfig
    from tfllm.generation.text_generator import GeneratedText, OnText, Truncate
    from tfllm.generation.token_generator import TokenGenerator

BATCH_SIZE = 32

Example = dict[str, Any]
Prediction = dict[str, Any]
Facts = dict[str, Any]
"""What `Predictor.describe` returns: kind, path, family, task, size_bytes."""
Progress = Callable[[float], None]
"""Called with the number of examples done since the last call."""


class Predictor(Protocol):
    """A model that is open for prediction: a checkpoint, SavedModel, TFLite or LiteRT-LM file."""

    @property
    def task(self) -> Task:
        """What the model is for, with its settings."""
        ...

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer; of an encoder-decoder that of sources (`target`: that of targets)."""
        ...

    @property
    def vocabulary(self) -> Sequence[str]:
        """The tokens by id."""
        ...

    def describe(self) -> Facts:
        """Return kind, path, family, task, size_bytes."""
        ...

    def predict(
        self,
        examples: Sequence[Example],
        batch_size: int = BATCH_SIZE,
        progress: Progress | None = None,
    ) -> list[Prediction]:
        """Predict one dict per example, in their order: the JSON lines of `tfllm predict`.

        Args:
            examples: Dicts with the fields that the task reads (`text`, `question`, ...).
            batch_size: Rows that the model is given at once.
            progress: Called as examples are done, with how many.

        Raises:
            DataError: An example lacks a field; the message names file and line.
        """
        ...


class Generator(Protocol):
    """A model that is open for text generation.

    There are two: `generation.text_generator.TextGenerator` and
    `generation.seq2seq_generator.Seq2SeqGenerator`; runtimes differ in their `engine`.
    """

    engine: TokenGenerator

    def generation_config(self, **overrides: object) -> GenerationConfig:
        """Return the model's own settings with overrides."""
        ...

    def generate(
        self,
        prompts: Sequence[str],
        config: GenerationConfig,
        *,
        stop: Sequence[str] = (),
        truncate: Truncate | None = None,
        on_text: OnText | None = None,
    ) -> list[GeneratedText]:
        """Generate texts after prompts, or from sources.

        Args:
            prompts: The prompts or sources.
            config: The settings.
            stop: Texts that end a generated text; they are not part of it.
            truncate: The end of a prompt that is dropped where it is too long; None: an error.
            on_text: Called with parts of texts as they are generated.

        Returns:
            `num_return_sequences` texts for each prompt, in order.

        Raises:
            SettingError: A setting is not supported, or a prompt is too long.
        """
        ...
