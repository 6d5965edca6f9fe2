"""The `tfllm.json` of an artifact: what it was made from and what it is for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tfllm import tasks
from tfllm.errors import ArtifactError, SettingError
from tfllm.tasks import Task
from tfllm.tokenizers.base import Tokenizer
from tfllm.tokenizers.loading import load_tokenizer

FILE_NAME = "tfllm.json"


def read_description(path: Path) -> tuple[dict[str, Any], Task]:
    """Read an artifact's `tfllm.json`.

    Returns:
        The whole description, and its task.

    Raises:
        ArtifactError: It names the file and what is wrong.
    """
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(
            f"There is no '{path}', which says what the model is for. "
            "Keep the files that tfllm export wrote together, or export again."
        ) from None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: cannot be read as JSON ({error}). Export again.") from None
    if not isinstance(description, dict) or "task" not in description:
        raise ArtifactError(f"{path}: the key 'task' is missing. Export again.")
    try:
        return description, tasks.build(description["task"], source=f"{path}: task")
    except SettingError as error:
        raise ArtifactError(
            f"{error.cli_message} Export again with this version of tfllm."
        ) from None


@dataclass(frozen=True)
class ExportedConfig:
    """The size of an exported model that generates text."""

    max_sequence_length: int
    vocabulary_size: int


@dataclass(frozen=True)
class ExportedGenerator:
    """An exported model that generates text, by its description.

    It is a `generation.checkpoint_config.GenerationSource`, as a checkpoint is.
    """

    path: Path
    """The folder of its tokenizer's files."""
    family: str | None
    task: Task
    tokenizer: Tokenizer
    config: ExportedConfig
    eos_token_id: tuple[int, ...]
    decoder_start_token_id: int | None = None
    """The decoder's first token of an encoder-decoder."""
    generation_config: Mapping[str, Any] = field(default_factory=dict)
    """Settings under Hugging Face's names."""

    def generation_setting(self, key: str) -> Any:
        """Return the value of a key of generation_config.json, or None."""
        return self.generation_config.get(key)


def exported_generator(
    folder: Path, description: Mapping[str, Any], task: Task, config: ExportedConfig
) -> ExportedGenerator:
    """Build the model that a description describes.

    Args:
        folder: Where its tokenizer's files are.
        description: See `read_description`.
        task: Its task.
        config: Its size, of which the artifact itself may know more than the description.
    """
    return ExportedGenerator(
        path=folder,
        family=description.get("family"),
        task=task,
        tokenizer=load_tokenizer(folder),
        config=config,
        eos_token_id=tuple(description.get("eos_token_id", ())),
        decoder_start_token_id=description.get("decoder_start_token_id"),
        generation_config=description.get("generation", {}),
    )
