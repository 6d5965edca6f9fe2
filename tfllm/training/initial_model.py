"""The initial model of a run: the recipe's model, tokenizer and task, and how it is saved."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from tfllm import lora
from tfllm.checkpoints import store
from tfllm.checkpoints.store import Checkpoint
from tfllm.data.lines import resolve
from tfllm.errors import SettingError, StorageError
from tfllm.layers.types import ModelConfig
from tfllm.models import build_config
from tfllm.tasks import Task
from tfllm.tasks.features import Example
from tfllm.tokenizers.base import Tokenizer
from tfllm.tokenizers.loading import load_tokenizer
from tfllm.training import directory as files
from tfllm.training import vocabulary
from tfllm.training.recipe import LoraSettings, ModelSettings, Recipe, TokenizerSettings
from tfllm.training.vocabulary import is_trained, read_tokenizer


@dataclass(frozen=True)
class InitialModel:
    """A model to train, and the checkpoint that it is saved as."""

    checkpoint: Checkpoint
    """Trained in place; with LoRA a copy without adapters, filled when saving."""
    model: keras.Model
    """The functional Keras model to train."""
    lora: LoraSettings | None = None

    @property
    def task(self) -> Task:
        """The checkpoint's task."""
        return self.checkpoint.task

    @property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer."""
        return self.checkpoint.tokenizer

    def save(self, directory: Path) -> None:
        """Write checkpoint/ (and adapter/) of a run directory, each completely or not at all.

        Raises:
            StorageError: They cannot be written; what was there before is intact.
        """
        try:
            if self.lora is not None:
                lora.merge(self.model, self.checkpoint.model)
                lora.save(self.model, directory / files.ADAPTER)
            store.save(self.checkpoint, directory / files.CHECKPOINT)
        except OSError as error:
            raise StorageError(
                f"Cannot write '{directory / files.CHECKPOINT}': {error.strerror or error}. "
                "What was there before is intact. Free some space and resume with --resume."
            ) from None

    def resolved(self, recipe: Recipe) -> Recipe:
        """Return the recipe with what the data adds: the task's labels."""
        return recipe.model_copy(update={"task": self.task})


def build_model(
    recipe: Recipe, examples: Sequence[Example], tokenizer: Path | None = None
) -> InitialModel:
    """Load or create the model of a recipe.

    Args:
        recipe: The recipe.
        examples: The training examples, which give the labels where the recipe names none.
        tokenizer: The directory of the tokenizer that a run to resume has trained.

    Returns:
        The checkpoint, and what it is trained with.

    Raises:
        SettingError: The recipe and the data do not fit together.
        CheckpointError: `model.from` names no usable checkpoint.
    """
    if type(recipe.task).corpus_features is Task.corpus_features:
        _refuse_corpus(recipe.task, examples)
    task = recipe.task.infer_settings(examples)
    checkpoint = (
        _from_scratch(recipe, task, examples, tokenizer)
        if recipe.model.family
        else _load(recipe, task)
    )
    task = checkpoint.task.with_decoder_start_token_id(checkpoint.decoder_start_token_id)
    generation = {**checkpoint.generation_config, **recipe.evaluate.generation.to_huggingface()}
    checkpoint = dataclasses.replace(checkpoint, task=task, generation_config=generation)
    if recipe.model.lora is None:
        return InitialModel(checkpoint, checkpoint.model)
    adapted = store.create(
        checkpoint.family, checkpoint.config, checkpoint.tokenizer, checkpoint.task
    ).model
    adapted.set_weights(checkpoint.model.get_weights())
    settings = recipe.model.lora
    lora.enable(adapted, settings.rank, settings.targets, settings.alpha)
    return InitialModel(checkpoint, adapted, settings)


def _refuse_corpus(task: Task, examples: Sequence[Example]) -> None:
    """Refuse a corpus for a task that reads none. Raises SettingError."""
    if (corpus := getattr(examples, "corpus", None)) is not None:
        raise SettingError(
            f"data.train: '{corpus.directory}' is a prepared corpus, text alone, and the task "
            f"{task.kind} needs more. Name a file of examples."
        )


def _load(recipe: Recipe, task: Task) -> Checkpoint:
    if recipe.tokenizer is not None:
        raise SettingError("tokenizer: a checkpoint (model.from) brings its own. Remove this key.")
    source = str(recipe.model.source)
    return store.load(source if "://" in source else str(resolve(source)), task=task)


def _from_scratch(
    recipe: Recipe, task: Task, examples: Sequence[Example], trained: Path | None
) -> Checkpoint:
    if (corpus := getattr(examples, "corpus", None)) is not None:
        return _create(recipe, _corpus_tokenizer(corpus, recipe.tokenizer), task)
    if recipe.tokenizer is None:
        raise SettingError(
            "tokenizer: a model trained from scratch (model.family) needs one. Give a directory, "
            "or a vocab.txt, tokenizer: {path: vocab.txt}, or train one, tokenizer: "
            "{kind: characters}"
        )
    pairs = task.generates == "target"
    return _create(recipe, read_tokenizer(recipe.tokenizer, examples, trained, pairs=pairs), task)


def _create(recipe: Recipe, tokenizer: Tokenizer, task: Task) -> Checkpoint:
    family = str(recipe.model.family)
    config = family_config(recipe.model, tokenizer, task)
    return store.create(family, config, tokenizer, task)


def _corpus_tokenizer(corpus: Any, settings: TokenizerSettings | str | None) -> Tokenizer:
    """The tokenizer that a corpus was prepared with, or the named one, which is compared later."""
    if settings is None or is_trained(settings):
        tokenizer = load_tokenizer(corpus.tokenizer_directory)
        template = settings.chat_template if isinstance(settings, TokenizerSettings) else None
        return vocabulary.with_template(tokenizer, template)
    return read_tokenizer(settings)


def family_config(settings: ModelSettings, tokenizer: Tokenizer, task: Task) -> ModelConfig:
    """Create the family's Config from the recipe's shape and the tokenizer's vocabulary.

    Args:
        settings: `model` of the recipe.
        tokenizer: The tokenizer.
        task: The task, whose rows need positions.

    Raises:
        SettingError: The shape is not valid, or does not fit the task or the tokenizer.
    """
    vocabulary = {
        "vocabulary_size": tokenizer.vocabulary_size,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if task.generates == "target" and tokenizer.pad_token_id is None:
        raise SettingError(
            "tokenizer: the vocabulary has no padding token, which a model of sources and targets "
            "needs. Add <pad> to its special tokens."
        )
    config = build_config(str(settings.family), {**vocabulary, **settings.shape})
    if task.max_length > config.max_sequence_length:
        raise SettingError(
            f"task.max_length is {task.max_length}, but model.max_sequence_length is "
            f"{config.max_sequence_length}. Lower the first or raise the second."
        )
    if config.vocabulary_size < tokenizer.vocabulary_size:
        raise SettingError(
            f"model.vocabulary_size is {config.vocabulary_size}, but the tokenizer has "
            f"{tokenizer.vocabulary_size} tokens. Leave the key out."
        )
    return config
