"""Low-rank adapters (LoRA): small trained matrices beside frozen ones.

Built on Keras' `enable_lora`: the layer computes x (W + B A * alpha / rank). Heads are trained in
full. Adapters are saved on their own (a few hundred kB), and merged into a model without adapters.

Source: Hu et al. 2021, "LoRA: Low-rank adaptation of large language models".
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tfllm.checkpoints.files import (
    atomic_directory,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
)
from tfllm.errors import CheckpointError, SettingError, did_you_mean
from tfllm.keras_internals import all_layers, stored_matrix
from tfllm.tasks import TASKS

if TYPE_CHECKING:
    import keras

WEIGHTS, SETTINGS = "adapter.safetensors", "adapter.json"
ADAPTED = ("lora_kernel_a", "lora_kernel_b", "lora_embeddings_a", "lora_embeddings_b")
# The layers after the backbone, which start untrained and so are trained in full.
HEADS = frozenset(layer for task in TASKS.values() for layer in task.head_layers)


def enable(
    model: keras.Model,
    rank: int = 8,
    targets: Sequence[str] = ("query", "value"),
    alpha: float | None = None,
) -> list[str]:
    """Add adapters to layers, and freeze all variables except those of adapters and heads.

    Args:
        model: The model, which is changed.
        rank: The rank of the adapters.
        targets: Names of the layers.
        alpha: Scales the product by alpha / rank; None: by 1.

    Returns:
        The paths of the adapted layers.

    Raises:
        SettingError: No layer has a name in `targets`.
    """
    able = [layer for layer in all_layers(model) if hasattr(layer, "enable_lora")]
    names = {layer.name for layer in able}
    for target in targets:
        if target not in names:
            raise SettingError(
                f"model.lora.targets: no layer '{target}' can have an adapter. "
                f"{did_you_mean(target, names)}"
            )
    chosen = [layer for layer in able if layer.name in targets and layer.name not in HEADS]
    for layer in chosen:
        layer.enable_lora(rank, lora_alpha=alpha)
    for variable in model.variables:
        parts = variable.path.split("/")
        variable.trainable = parts[-1] in ADAPTED or parts[0] in HEADS
    return [layer.path for layer in chosen]


def merge(adapted: keras.Model, plain: keras.Model) -> None:
    """Set the weights of a model without adapters to those of an adapted one.

    Args:
        adapted: A model with adapters.
        plain: A model of the same shape without adapters, which is changed.
    """
    layers = {layer.path: layer for layer in all_layers(plain) if layer.variables}
    for layer in all_layers(adapted):
        if not getattr(layer, "lora_enabled", False):
            continue
        name = "embeddings" if hasattr(layer, "lora_embeddings_a") else "kernel"
        # The property of this name is the frozen matrix plus the scaled product.
        matrix = stored_matrix(layers[layer.path], name)
        assert matrix is not None, "a layer with an adapter has a matrix"
        matrix.assign(getattr(layer, name))
    others = {variable.path: variable for variable in plain.variables}
    merged = {
        f"{layer.path}/{'embeddings' if hasattr(layer, 'lora_embeddings_a') else 'kernel'}"
        for layer in all_layers(adapted)
        if getattr(layer, "lora_enabled", False)
    }
    for variable in adapted.variables:
        if variable.path in others and variable.path not in merged:
            others[variable.path].assign(variable)


def save(model: keras.Model, directory: str | Path) -> Path:
    """Write only adapters and heads (adapter.safetensors, adapter.json), all or nothing.

    Args:
        model: A model with adapters.
        directory: New or empty, or an older adapter, which is replaced.

    Returns:
        `directory`.

    Raises:
        StorageError: The directory cannot be written.
    """
    adapted = [layer for layer in all_layers(model) if getattr(layer, "lora_enabled", False)]
    settings = {
        "format": 1,
        "rank": adapted[0].lora_rank,
        "alpha": float(adapted[0].lora_alpha),
        "targets": sorted({layer.name for layer in adapted}),
    }
    with atomic_directory(directory, replaces=WEIGHTS) as part:
        write_tensors(
            part / WEIGHTS,
            {variable.path: variable.numpy() for variable in model.trainable_variables},
        )
        write_json(part / SETTINGS, settings)
    return Path(directory)


def load(model: keras.Model, directory: str | Path) -> None:
    """Add the adapters of a directory to a model, and set their weights and those of the heads.

    Args:
        model: A model without adapters, which is changed.
        directory: What `save` wrote.

    Raises:
        CheckpointError: They belong to another model.
    """
    folder = Path(directory)
    settings = read_json(folder / SETTINGS)
    arrays = read_tensors(folder / WEIGHTS)
    try:
        rank, targets, alpha = settings["rank"], settings["targets"], settings["alpha"]
    except KeyError as error:
        raise CheckpointError(
            f"'{folder / SETTINGS}' lacks the key {error}. Give the adapter/ of a run."
        ) from None
    enable(model, rank, targets, alpha)
    variables = {variable.path: variable for variable in model.trainable_variables}
    if set(variables) != set(arrays):
        first = sorted(set(variables) ^ set(arrays))[0]
        raise CheckpointError(f"'{folder}' belongs to another model (first difference: {first}).")
    for path, variable in variables.items():
        if tuple(variable.shape) != arrays[path].shape:
            raise CheckpointError(
                f"'{folder}': {path} is {arrays[path].shape}, the model has {variable.shape}."
            )
        variable.assign(arrays[path])
