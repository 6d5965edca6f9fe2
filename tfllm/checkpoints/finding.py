"""Which checkpoint a name means. Nothing heavy is imported: a wrong path is told at once."""

from __future__ import annotations

from pathlib import Path

from tfllm.checkpoints import hub
from tfllm.errors import CheckpointError

SETTINGS = "tfllm.json"
TENSORS = "model.safetensors"
LLAMA2C = ".bin"


def find(source: str | Path) -> Path:
    """The checkpoint directory, or llama2.c file, that `source` means.

    It is fetched from the hub where `source` says so. Raises CheckpointError.
    """
    if str(source).startswith(hub.SCHEME):
        return hub.fetch(str(source))
    path = Path(source)
    if not path.exists():
        hint = (
            f" For the Hugging Face hub write {hub.SCHEME}{source}."
            if len(path.parts) == 2 and not path.is_absolute()
            else ""
        )
        raise CheckpointError(f"There is no '{source}'. Check the path.{hint}")
    if not path.is_dir():
        if path.suffix == LLAMA2C:
            return path
        raise CheckpointError(
            f"'{source}' is a file, and a checkpoint is a directory. "
            + (
                "A .tflite file can be predicted and evaluated, not loaded."
                if path.suffix == ".tflite"
                else "Give the directory that it lies in."
            )
        )
    for directory in (path, path / "checkpoint"):
        if (directory / SETTINGS).is_file() and (directory / TENSORS).is_file():
            return directory
    if (path / "config.json").is_file():
        return path
    raise CheckpointError(f"'{source}' is not a checkpoint: {_what_it_lacks(path)}")


def _what_it_lacks(path: Path) -> str:
    if any(path.glob("saved_model.pb")) or any(path.glob("*/saved_model.pb")):
        return (
            "it is an exported SavedModel, which can be predicted, evaluated and served. "
            "Load the checkpoint that it was made from."
        )
    if (path / SETTINGS).is_file():
        return f"{SETTINGS} is there, but {TENSORS} is not. Copy the checkpoint again."
    if (path / "recipe.yaml").is_file():
        return "the run has no checkpoint yet. Finish it: tfllm train --resume."
    if (path / "adapter_config.json").is_file():
        return "it holds only adapters. Merge them into their base model, and load that."
    if any(path.glob("*.safetensors")) or any(path.glob("pytorch_model*.bin")):
        return "there are weights, but no config.json. Copy it from where the weights came from."
    if files := sorted(path.glob("*.bin")):
        return f"it has no config.json. If it holds a llama2.c model, give the file: {files[0]}."
    return f"it has neither {SETTINGS} (tfllm) nor config.json (Hugging Face)."
