"""A checkpoint in memory: the model with its config, tokenizer and task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tfllm.errors import SettingError
from tfllm.models import FAMILIES, is_decoder, is_encoder_decoder
from tfllm.tasks import TASKS, Task

if TYPE_CHECKING:
    import keras

    from tfllm.tokenizers.base import Tokenizer


class FamilyConfig(Protocol):
    """The fields that the Config of every family has."""

    @property
    def vocabulary_size(self) -> int:
        """Rows of the embedding table, of targets where a family has two."""
        ...

    @property
    def hidden_dim(self) -> int:
        """The size of the hidden states."""
        ...

    @property
    def max_sequence_length(self) -> int:
        """Tokens of a row at most."""
        ...


@dataclass(frozen=True)
class Origin:
    """The layout of a Hugging Face directory, with which it is written back byte for byte.

    Names of tensors are canonical: the backbone's with prefix, norms with weight and bias.
    """

    kind: str
    """The kind of its task; the layout is not used for another task's head."""
    config: Mapping[str, Any]
    """Its `config.json`."""
    prefixed: bool = True
    """Whether the names of the backbone's tensors have a prefix."""
    old_norm_names: bool = False
    """Whether norms have `LayerNorm.gamma` and `.beta`, as in files converted from TensorFlow."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Canonical name -> name in the file, where it does not follow from the two flags."""
    dtype: str = "float32"
    """The dtype of most tensors."""
    dtypes: Mapping[str, str] = field(default_factory=dict)
    """Name -> dtype of the other tensors."""
    tied: tuple[str, ...] = ()
    """Tied tensors that the file has."""
    absent: tuple[str, ...] = ()
    """Optional tensors that the file lacks."""


@dataclass(frozen=True)
class Checkpoint:
    """A model with its config, tokenizer and task."""

    family: str
    """A key of `tfllm.models.FAMILIES`."""
    config: Any
    """The family's Config."""
    tokenizer: Tokenizer
    task: Task
    model: keras.Model
    path: Path | None = None
    """The directory or file that it was loaded from."""
    unused_tensors: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Known tensors that the task's graph does not use, kept to be written back."""
    origin: Origin | None = None
    """The layout of the Hugging Face directory that it came from, if any."""
    generation_config: Mapping[str, Any] = field(default_factory=dict)
    """Hugging Face's `generation_config.json`, if any."""

    @property
    def eos_token_id(self) -> tuple[int, ...]:
        """Ids that end a generated text: of Hugging Face's files, else of the tokenizer."""
        if (named := self.generation_setting("eos_token_id")) is not None:
            return tuple(named) if isinstance(named, list) else (named,)
        end = self.tokenizer.target.eos_token_id
        return () if end is None else (end,)

    @property
    def decoder_start_token_id(self) -> int | None:
        """The decoder's first token of an encoder-decoder; None for any other model."""
        named = self.generation_setting("decoder_start_token_id")
        return getattr(self.config, "decoder_start_token_id", None) if named is None else named

    def generation_setting(self, key: str) -> Any:
        """Return a setting of generation in Hugging Face's files, or None.

        Args:
            key: For example `forced_bos_token_id`, `num_beams` or `bad_words_ids`.
        """
        for settings in (self.generation_config, self.origin.config if self.origin else {}):
            if (named := settings.get(key)) is not None:
                return named
        return None


def check_sizes(tokenizer: Tokenizer, config: FamilyConfig, source: str | Path) -> None:
    """Check that the embedding tables of sources and targets have a row for each token.

    Args:
        tokenizer: The tokenizer.
        config: The family's Config.
        source: The checkpoint, for messages.

    Raises:
        TokenizerError: A table is too small.
    """
    from tfllm.tokenizers.loading import check_vocabulary_size

    check_vocabulary_size(tokenizer.target, config.vocabulary_size, source)
    rows = getattr(config, "source_vocabulary_size", config.vocabulary_size)
    check_vocabulary_size(tokenizer, rows, source)


def new_model(family: str, config: FamilyConfig, task: Task) -> tuple[keras.Model, keras.Model]:
    """Build a backbone and the complete model with its head, with new variables.

    Args:
        family: A key of `tfllm.models.FAMILIES`.
        config: The family's Config.
        task: The task.

    Returns:
        The backbone and the complete model.

    Raises:
        SettingError: The task's rows are too long, or the family has no head for the task.
    """
    if task.max_length > config.max_sequence_length:
        raise SettingError(
            f"task.max_length is {task.max_length}, and the model has positions for "
            f"{config.max_sequence_length} tokens. Lower it to that."
        )
    if is_encoder_decoder(family) != ("encoder_decoder" in task.backbones):
        able = [name for name in FAMILIES if is_encoder_decoder(name)]
        raise SettingError(
            f"task.kind is {task.kind}, and the family is {family}. Families that read a source "
            f"and write a target ({', '.join(able)}) go with task.kind: seq2seq, and no others do."
        )
    if is_decoder(family) and "decoder" not in task.backbones:
        decoders = sorted(kind for kind, known in TASKS.items() if "decoder" in known.backbones)
        raise SettingError(
            f"task.kind is {task.kind}, and the decoders of the family {family} have heads for "
            f"{', '.join(decoders)} only. Use one of these, or the family bert."
        )
    backbone = FAMILIES[family].backbone(config)
    return backbone, task.model(backbone, config)
