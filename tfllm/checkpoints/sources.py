"""Finding out what a directory is, and where its weights lie."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfllm.checkpoints.files import read_json, tensor_shapes
from tfllm.checkpoints.weights import listed
from tfllm.errors import CheckpointError, did_you_mean
from tfllm.models import FAMILIES

TENSORS = "model.safetensors"
INDEX = "model.safetensors.index.json"
# Weights in a form that is not read: file, how to say what it is.
OTHER_FORMS = {
    "pytorch_model.bin": "a torch pickle, which can run any code when it is opened",
    "pytorch_model.bin.index.json": "torch pickles, which can run any code when they are opened",
    "tf_model.h5": "a TensorFlow 1-style HDF5 file",
    "flax_model.msgpack": "a Flax file",
}


def model_type_of(hf_config: Mapping[str, Any], source: str) -> tuple[str, str]:
    """(family, model type) of a `config.json`. Raises CheckpointError naming the known ones."""
    families = {kind: name for name, module in FAMILIES.items() for kind in module.MODEL_TYPES}
    model_type = hf_config.get("model_type")
    if model_type is None:
        raise CheckpointError(
            f"{source}: the key 'model_type' is missing. Add it; known: {', '.join(families)}."
        )
    if model_type not in families:
        raise CheckpointError(
            f"{source}: model_type '{model_type}' is not a family that tfllm has. "
            f"{did_you_mean(model_type, families)} Known: {', '.join(families)}."
        )
    return families[model_type], model_type


def tensor_files(directory: Path) -> list[Path]:
    """The safetensors files of a directory. Raises CheckpointError where there are none."""
    if (directory / TENSORS).is_file():
        return [directory / TENSORS]
    if (directory / INDEX).is_file():
        shards = read_json(directory / INDEX).get("weight_map")
        if not isinstance(shards, Mapping) or not shards:
            raise CheckpointError(f"{directory / INDEX}: 'weight_map' is missing. Copy it again.")
        files = [directory / name for name in dict.fromkeys(shards.values())]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise CheckpointError(
                f"'{directory}' lacks {listed(missing)}, which {INDEX} names. "
                "Copy the missing files."
            )
        return files
    for name, meaning in OTHER_FORMS.items():
        if (directory / name).is_file():
            raise CheckpointError(
                f"'{directory / name}' is {meaning}. Convert it once, where transformers and torch "
                f"are installed, with: {_conversion(directory, name)}"
            )
    raise CheckpointError(
        f"'{directory}' has no {TENSORS}. Copy the weights of the checkpoint into it."
    )


def _conversion(directory: Path, name: str) -> str:
    """One line of Python that writes safetensors beside another form."""
    named = read_json(directory / "config.json").get("architectures") or ["AutoModel"]
    option = {"tf_model.h5": ", from_tf=True", "flax_model.msgpack": ", from_flax=True"}
    return (
        f'python -c "import transformers as t; '
        f"t.{named[0]}.from_pretrained('{directory}'{option.get(name, '')})"
        f".save_pretrained('{directory}', safe_serialization=True)\""
    )


def shapes_of(directory: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """(shape, dtype) of every tensor, without reading them."""
    shapes: dict[str, tuple[tuple[int, ...], str]] = {}
    for file in tensor_files(directory):
        shapes |= tensor_shapes(file)
    return shapes
