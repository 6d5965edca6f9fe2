"""What a checkpoint is once it is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tfllm.errors import SettingError
from tfllm.models import FAMILIES, is_decoder, is_encoder_decoder
from tfllm.tasks import TASKS, Task

if TYPE_CHECKING:
    import keras

    from tfllm.tokenizers.base import Tokenizer


@dataclass(frozen=True)
class Origin:
    """What a Hugging Face directory was like, so that the way back gives the same bytes.

    All names here are canonical: prefix before the backbone's tensors, norms with weight and bias.
    """

    kind: str
    """Of the task it was for; the layout is of no use to another task's head."""
    config: Mapping[str, Any]
    """Its `config.json`."""
    prefixed: bool = True
    old_norm_names: bool = False
    """`LayerNorm.gamma` and `.beta`, as files made from TensorFlow have it."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Tensors whose name the two flags do not explain."""
    dtype: str = "float32"
    dtypes: Mapping[str, str] = field(default_factory=dict)
    """Tensors of another dtype than most."""
    tied: tuple[str, ...] = ()
    """Tied tensors that were written out."""
    absent: tuple[str, ...] = ()
    """Optional tensors that it did not have."""


@dataclass(frozen=True)
class Checkpoint:
    """A model with all that belongs to it."""

    family: str
    config: Any
    tokenizer: Tokenizer
    task: Task
    model: keras.Model
    path: Path | None = None
    unused_tensors: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Known tensors that the task's graph has no use for, kept for the way back."""
    origin: Origin | None = None
    """The Hugging Face directory that it came from, if any."""
    generation_config: Mapping[str, Any] = field(default_factory=dict)
    """Hugging Face's `generation_config.json`, if there was one."""

    @property
    def eos_token_id(self) -> tuple[int, ...]:
        """Ids that end a generated text: as Hugging Face's files say, else the tokenizer's end."""
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
        """What Hugging Face's files say of generation under `key` (`forced_bos_token_id`,
        `num_beams`, `length_penalty`, `bad_words_ids`, ...), or None."""
        for settings in (self.generation_config, self.origin.config if self.origin else {}):
            if (named := settings.get(key)) is not None:
                return named
        return None


def check_sizes(tokenizer: Tokenizer, config: Any, source: str | Path) -> None:
    """Raises TokenizerError when a table of embeddings is too small for the tokenizer's ids: of
    targets, which all models write or have alone, and of sources."""
    from tfllm.tokenizers.loading import check_vocabulary_size

    check_vocabulary_size(tokenizer.target, config.vocabulary_size, source)
    rows = getattr(config, "source_vocabulary_size", config.vocabulary_size)
    check_vocabulary_size(tokenizer, rows, source)


def new_model(family: str, config: Any, task: Task) -> tuple[keras.Model, keras.Model]:
    """(backbone, whole model) of new variables. Raises SettingError for rows that are too
    long, and for a task that the family has no head for."""
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
            f"{' and '.join(decoders)} only. Use one of these, or the family bert."
        )
    backbone = FAMILIES[family].backbone(config)
    return backbone, task.model(backbone, config)
