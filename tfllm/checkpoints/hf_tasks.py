"""The task of a Hugging Face directory; see `sentence_transformers` for embedding models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfllm.checkpoints import sentence_transformers
from tfllm.checkpoints.files import read_json
from tfllm.errors import CheckpointError
from tfllm.models import is_decoder, is_encoder_decoder
from tfllm.models.weight_map import WeightMap
from tfllm.tasks import TASKS, Task
from tfllm.tasks.embedding import Embedding
from tfllm.tasks.huggingface import HuggingFaceHead


def find_kind(
    hf_config: Mapping[str, Any], family: str, weights: WeightMap, directory: Path
) -> str:
    """Return the kind of task of a Hugging Face directory.

    Args:
        hf_config: Its config.json.
        family: A key of `tfllm.models.FAMILIES`.
        weights: The family's weight map.
        directory: The directory.

    Raises:
        CheckpointError: Its head has no task; names the known heads.
    """
    source = f"{directory / 'config.json'}"
    if (directory / sentence_transformers.MODULES).is_file():
        if is_encoder_decoder(family):
            raise CheckpointError(
                f"{directory / sentence_transformers.MODULES}: an embedding model, and in tfllm "
                f"the family {family} generates text only. Use one whose model is an encoder or a "
                "decoder."
            )
        return Embedding().kind
    kinds = {name: kind for kind, names in weights.architectures.items() for name in names}
    named = hf_config.get("architectures") or []
    if not isinstance(named, list):
        raise CheckpointError(f"{source}: 'architectures' is no list of names. Correct it.")
    for name in named:
        if name in kinds:
            return kinds[name]
    known = f"Known: {', '.join(kinds)}."
    if named:
        raise CheckpointError(
            f"{source}: '{named[0]}' has no task in tfllm. {known} {_next_step(family)}"
        )
    raise CheckpointError(
        f"{source}: the key 'architectures' is missing, which names the head. "
        f'Add it, for example: "architectures": ["{next(iter(kinds))}"]. {known}'
    )


def _next_step(family: str) -> str:
    """What can be done with a model whose head has no task."""
    if is_encoder_decoder(family):
        return "Use a checkpoint of one of these: the family is for seq2seq alone."
    if is_decoder(family):
        return (
            "To use its decoder without this head, train a recipe with model.from and task.kind: "
            "causal_lm, classification or embedding."
        )
    return "To use its encoder under a new head, train a recipe with model.from."


def build_task(
    kind: str, hf_config: Mapping[str, Any], directory: Path, size: int | None, positions: int
) -> Task:
    """Build the task of a Hugging Face directory.

    Args:
        kind: Its kind.
        hf_config: The config.json.
        directory: The directory.
        size: Rows of the classifier's weight in the file, if there is one.
        positions: The longest input of the model, in tokens.

    Raises:
        CheckpointError: The config does not describe such a task.
    """
    length = longest_row(directory, positions)
    if issubclass(TASKS[kind], Embedding):
        return sentence_transformers.read_task(directory, length)
    return TASKS[kind].from_hf(
        HuggingFaceHead(hf_config, str(directory), positions, length, outputs=size)
    )


def longest_row(directory: Path, positions: int) -> int:
    """Return the longest row in tokens, to which transformers' pipelines truncate.

    That is the tokenizer's `model_max_length`, at most the model's `positions`.
    """
    path = directory / "tokenizer_config.json"
    named = read_json(path).get("model_max_length") if path.is_file() else None
    if isinstance(named, int | float) and not isinstance(named, bool) and 3 <= named < positions:
        return int(named)
    return positions
