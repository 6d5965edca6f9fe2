"""Description of a checkpoint without loading its weights."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from tfllm.checkpoints import (
    gguf,
    hf_directory,
    hf_tasks,
    llama2c,
    locate,
    store,
    tensor_names,
    tied_weights,
)
from tfllm.checkpoints.files import read_json, read_tensors, tensor_shapes
from tfllm.models import config_from_hf, get_weight_map
from tfllm.models.weight_map import TensorLayout
from tfllm.tasks.causal_lm import CausalLM
from tfllm.tokenizers.base import Tokenizer
from tfllm.tokenizers.loading import load_tokenizer

Shapes = dict[str, tuple[tuple[int, ...], str]]


def describe(directory: Path) -> dict[str, Any]:
    """Describe a checkpoint: form, family, task, shape, parameters, vocabulary and files.

    Args:
        directory: A checkpoint directory, or a GGUF or llama2.c file.

    Raises:
        CheckpointError: It is damaged or not supported.
    """
    vocabulary = directory
    files = {}
    tokenizer = None
    if directory.suffix == gguf.SUFFIX:
        file = gguf.open_file(directory)
        form, (family, config, task, shapes) = "GGUF file", _gguf(file)
        tokenizer = gguf.read_tokenizer(file)
        files = {directory.name: directory.stat().st_size}
    elif directory.is_file():
        form, (family, config, task, shapes) = "llama2.c file", _llama2c(directory)
        vocabulary = llama2c.find_tokenizer(directory, config.vocabulary_size)
        files = {file.name: file.stat().st_size for file in (directory, vocabulary)}
    elif (directory / locate.SETTINGS).is_file():
        form, (family, config, task, shapes) = "tfllm checkpoint", _own(directory)
    else:
        form, (family, config, task, shapes) = "Hugging Face directory", _hugging_face(directory)
    if tokenizer is None:
        tokenizer = load_tokenizer(vocabulary)
    return {
        "form": form,
        "family": family,
        "task": task,
        "shape": dataclasses.asdict(config),
        "parameters": sum(math.prod(shape) for shape, _ in shapes.values()),
        "dtypes": dict(Counter(dtype for _, dtype in shapes.values())),
        "vocabulary": {
            "kind": tokenizer.kind,
            "tokens": tokenizer.vocabulary_size,
            **_targets(tokenizer),
            **({"lowercase": tokenizer.lowercase} if hasattr(tokenizer, "lowercase") else {}),
        },
        "files": files or file_sizes(directory),
    }


def _targets(tokenizer: Tokenizer) -> dict[str, int]:
    """The number of targets' tokens, where they have ids of their own."""
    same = tokenizer.target.vocabulary == tokenizer.vocabulary
    return {} if same else {"target_tokens": tokenizer.target.vocabulary_size}


def file_sizes(directory: Path) -> dict[str, int]:
    """Return the size in bytes of every file below a directory."""
    files = sorted(file for file in directory.rglob("*") if file.is_file())
    return {str(file.relative_to(directory)): file.stat().st_size for file in files}


def _own(directory: Path) -> tuple[str, Any, dict[str, Any], Shapes]:
    family, config, task, _ = store.read_settings(directory)
    return family, config, task.model_dump(mode="json"), tensor_shapes(directory / locate.TENSORS)


def _llama2c(path: Path) -> tuple[str, Any, dict[str, Any], Shapes]:
    config = llama2c.read_config(path)
    task = llama2c.default_task(config).model_dump(mode="json")
    return "llama", config, task, llama2c.tensor_shapes(config)


def _gguf(file: gguf.File) -> tuple[str, Any, dict[str, Any], Shapes]:
    family, config, _ = gguf.read_config(file)
    task = CausalLM(max_length=config.max_sequence_length).model_dump(mode="json")
    return family, config, task, gguf.tensor_shapes(file)


def _hugging_face(directory: Path) -> tuple[str, Any, dict[str, Any], Shapes]:
    """Parameters are counted once: without tied tensors and counters."""
    source = directory / "config.json"
    hf_config = read_json(source)
    family, _ = hf_directory.find_family(hf_config, str(source))
    shapes = hf_directory.read_shapes(directory)
    table = get_weight_map(family, config_from_hf(family, hf_config))
    weights = tensor_names.drop_ignored(shapes, table)
    ties = tied_weights.resolve(
        config_from_hf(family, hf_config),
        table,
        tensor_names.canonical(weights, table),
        lambda *pair: _are_equal(directory, shapes, pair),
        str(directory),
    )
    kind = hf_tasks.find_kind(hf_config, family, table, directory)
    row = table.heads.get(kind, {}).get("classifier/kernel")
    size = shapes[row.name][0][0] if isinstance(row, TensorLayout) and row.name in shapes else None
    longest = ties.config.max_sequence_length
    task = hf_tasks.build_task(kind, hf_config, directory, size, longest)
    uncounted = {*ties.equal, *table.buffers}
    counted = {name: shapes[name] for name in weights if ties.canonical[name] not in uncounted}
    return family, ties.config, task.model_dump(mode="json"), counted


def _are_equal(directory: Path, shapes: Shapes, pair: tuple[str, str]) -> bool:
    """Whether two tensors are equal. They are read only where their shapes are equal."""
    if shapes[pair[0]] != shapes[pair[1]]:
        return False
    tensors: dict[str, np.ndarray] = {}
    for file in hf_directory.tensor_files(directory):
        tensors |= read_tensors(file, pair)
    return np.array_equal(tensors[pair[0]], tensors[pair[1]], equal_nan=True)
