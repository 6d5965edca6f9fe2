"""Checkpoints: loading of any format, saving in tfllm's own, creating new ones.

A tfllm checkpoint is a directory of `tfllm.json` (format, family, config, task), the weights in
`model.safetensors` by Keras variable path, source tensors that the model does not use in
`unused_tensors.safetensors`, and the tokenizer's files in Hugging Face's form.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfllm import keras_internals, tasks
from tfllm.checkpoints import gguf, huggingface, llama2c, weights
from tfllm.checkpoints.base import Checkpoint, Origin, check_sizes, new_model
from tfllm.checkpoints.files import (
    atomic_directory,
    open_tensors,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
)
from tfllm.checkpoints.hf_directory import GENERATION, read_generation
from tfllm.checkpoints.locate import SETTINGS, TENSORS, find
from tfllm.errors import CheckpointError, SettingError
from tfllm.models import build_config
from tfllm.models.weight_map import TensorLayout
from tfllm.tokenizers.base import Tokenizer

__all__ = ["FORMAT", "Checkpoint", "create", "find", "load", "save", "read_settings"]

FORMAT = 1  # incremented when older versions cannot read the directory
UNUSED = "unused_tensors.safetensors"


def load(
    source: str | Path,
    *,
    task: tasks.Task | None = None,
    seed: int | None = None,
    tokenizer: str | Path | None = None,
) -> Checkpoint:
    """Load a checkpoint.

    With `task`, the backbone must be complete; a head that the task does not use is dropped, and
    variables that the source lacks are initialized with `seed`. Variables are created under Keras'
    current dtype policy, so set `mixed_bfloat16` before.

    Args:
        source: A tfllm or Hugging Face directory, a run, `hf://org/name`, a GGUF or llama2.c file.
        task: The task; None: the source's own.
        seed: Of new variables.
        tokenizer: The tokenizer's file of a llama2.c model; None: the one beside it.

    Raises:
        CheckpointError: The checkpoint is missing, damaged or not supported.
        SettingError: `tokenizer` does not go with the source, or `task` not with the family.
    """
    directory = find(source)
    _set_seed(seed)
    if directory.suffix == gguf.SUFFIX and tokenizer is None:
        return gguf.read(directory, task)
    if directory.is_file() and directory.suffix != gguf.SUFFIX:
        return llama2c.read(directory, tokenizer, task)
    if tokenizer is not None:
        raise SettingError(
            f"--tokenizer goes with a llama2.c file; '{source}' brings its own. Leave it out."
        )
    if (directory / SETTINGS).is_file():
        return _load_own(directory, task)
    return huggingface.read(directory, task)


def create(
    family: str,
    config: Any,
    tokenizer: Tokenizer,
    task: tasks.Task,
    *,
    seed: int | None = None,
) -> Checkpoint:
    """Create a checkpoint with random weights.

    Args:
        family: A key of `tfllm.models.FAMILIES`.
        config: The family's Config, or its fields.
        tokenizer: The tokenizer.
        task: The task.
        seed: Of the weights.

    Raises:
        SettingError: The config has fewer embeddings than the tokenizer tokens, or a wrong field.
    """
    config = build_config(family, config) if isinstance(config, Mapping) else config
    sides = [("vocabulary_size", tokenizer.target)]
    if hasattr(config, "source_vocabulary_size"):
        sides.append(("source_vocabulary_size", tokenizer))
    for name, side in sides:
        if side.vocabulary_size > getattr(config, name):
            raise SettingError(
                f"model.{name} is {getattr(config, name)}, and the tokenizer has "
                f"{side.vocabulary_size} tokens. Make it at least that many."
            )
    _set_seed(seed)
    _, model = new_model(family, config, task)
    return Checkpoint(family=family, config=config, tokenizer=tokenizer, task=task, model=model)


def save(checkpoint: Checkpoint, directory: str | Path) -> Path:
    """Write a tfllm directory, all or nothing; an older checkpoint there is replaced.

    Raises:
        StorageError: The directory cannot be written; an older checkpoint there is unchanged.
    """
    with atomic_directory(directory, replaces=SETTINGS) as part:
        values = weights.variables_of(checkpoint.model)
        write_tensors(
            part / TENSORS, {path: weights.array_of(value) for path, value in values.items()}
        )
        if checkpoint.unused_tensors:
            write_tensors(part / UNUSED, checkpoint.unused_tensors)
        if checkpoint.generation_config:
            write_json(part / GENERATION, checkpoint.generation_config)
        checkpoint.tokenizer.save(part)
        write_json(part / SETTINGS, _settings(checkpoint))
    return Path(directory)


def _settings(checkpoint: Checkpoint) -> dict[str, Any]:
    settings = {
        "format": FORMAT,
        "family": checkpoint.family,
        "config": dataclasses.asdict(checkpoint.config),
        "task": checkpoint.task.model_dump(mode="json"),
    }
    if checkpoint.origin is not None:
        settings["huggingface"] = dataclasses.asdict(checkpoint.origin)
    return settings


def read_settings(directory: Path) -> tuple[str, Any, tasks.Task, Origin | None]:
    """Read the (family, config, task, origin) in the `tfllm.json` of a directory.

    Raises:
        CheckpointError: The file is damaged, or of a newer version.
    """
    path = directory / SETTINGS
    data = read_json(path)
    number = data.get("format")
    if not isinstance(number, int) or number > FORMAT:
        raise CheckpointError(
            f"{path}: format {number!r}; this version of tfllm reads up to {FORMAT}. "
            "Install a newer one: pip install --upgrade tfllm."
        )
    try:
        family = data["family"]
        config = build_config(family, data["config"], f"{path}: config")
        task = tasks.build(data["task"], source=f"{path}: task")
        kept = data.get("huggingface")
        origin = Origin(**{**kept, "tied": tuple(kept["tied"])}) if kept else None
    except KeyError as error:
        raise CheckpointError(f"{path}: the key {error} is missing. Copy the file again.") from None
    except SettingError as error:
        raise CheckpointError(f"{error.cli_message} Copy the file again.") from None
    except (TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: {error}. Copy the file again.") from None
    return family, config, task, origin


def _load_own(directory: Path, task: tasks.Task | None) -> Checkpoint:
    from tfllm.tokenizers.loading import load_tokenizer

    family, config, own, origin = read_settings(directory)
    tensors = open_tensors(directory / TENSORS)
    tokenizer = load_tokenizer(directory)
    check_sizes(tokenizer, config, directory)
    with keras_internals.deferred_values() as new:
        backbone, model = new_model(family, config, task or own)
    variables = weights.variables_of(model)
    assigned = set(variables)
    changed = task is not None and not huggingface.same_head(task, own)
    if task is not None and changed:
        encoder = set(weights.variables_of(backbone))
        reusable = huggingface.reusable_head(set(variables) - encoder, task, own)
        assigned = {
            path for path in variables if path in encoder or path in reusable & set(tensors)
        }
    rows = {path: TensorLayout(path, inputs=-1) for path in assigned}  # names are variable paths
    dropped = set(tensors) - assigned if changed else set()
    weights.check(rows, variables, tensors.shapes, dropped, str(directory / TENSORS))
    weights.to_variables(rows, variables, tensors)
    unused_tensors = read_tensors(directory / UNUSED) if (directory / UNUSED).is_file() else {}
    if changed:
        untrained = set(variables) - assigned
        untrained -= huggingface.fill_from_unused(
            {path: variables[path] for path in untrained},
            unused_tensors,
            family,
            config,
            (task or own).kind,
        )
        huggingface.log_head_changes(str(directory), untrained, dropped)
    keras_internals.initialize(new)
    return Checkpoint(
        family=family,
        config=config,
        tokenizer=tokenizer,
        task=task or own,
        model=model,
        path=directory,
        unused_tensors={} if changed else unused_tensors,
        origin=None if changed else origin,
        generation_config=read_generation(directory),
    )


def _set_seed(seed: int | None) -> None:
    if seed is not None:
        import keras

        keras.utils.set_random_seed(seed)
