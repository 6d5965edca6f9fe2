"""The checkpoint that a name refers to. Imports nothing heavy: a wrong path fails at once."""

from __future__ import annotations

from pathlib import Path

from tfllm.checkpoints import hub
from tfllm.errors import CheckpointError

SETTINGS = "tfllm.json"
TENSORS = "model.safetensors"
LLAMA2C = ".bin"
GGUF = ".gguf"
PICKLE = "a torch pickle, which can run any code when it is opened"
# Pattern of files that other programs read -> what they are, and what to do.
FOREIGN_FORMS = {
    "consolidated*.safetensors": "holds the weights under the names of Mistral's own code. Copy "
    "the files model*.safetensors of the same repository beside it",
    "consolidated*.pth": "is a torch pickle in the layout of Meta's own code. Copy the files "
    "model*.safetensors of the repository for transformers",
    "*.gguf": "is a GGUF file. Give the file itself in place of the directory",
    "*.onnx": "is an ONNX graph. Use the checkpoint that it was made from, with safetensors",
    "*.pt": f"is {PICKLE}. Use a checkpoint with safetensors",
    "*.pth": f"is {PICKLE}. Use a checkpoint with safetensors",
    "*.ckpt": f"is {PICKLE}. Use a checkpoint with safetensors",
}
# Files that are given instead of a directory.
FILES = {
    ".tflite": "A .tflite file can be predicted and evaluated, not loaded.",
}


def find(source: str | Path) -> Path:
    """Return the checkpoint directory, or GGUF or llama2.c file, that `source` refers to.

    Args:
        source: A checkpoint or run directory, a file, or `hf://org/name`, which is downloaded.

    Raises:
        CheckpointError: There is none, or it cannot be downloaded.
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
        if path.suffix in (LLAMA2C, GGUF):
            return path
        raise CheckpointError(
            f"'{source}' is a file, and a checkpoint is a directory. "
            + FILES.get(path.suffix, "Give the directory that it lies in.")
        )
    for directory in (path, path / "checkpoint"):
        if (directory / SETTINGS).is_file() and (directory / TENSORS).is_file():
            return directory
    if (path / "config.json").is_file():
        return path
    raise CheckpointError(f"'{source}' is not a checkpoint: {_problem(path)}")


def _nested_model(path: Path) -> str:
    """The problem of a sentence-transformers directory of the old form: the model's own folder."""
    folders = sorted(file.parent.name for file in path.glob("*_Transformer/config.json"))
    inside = f"'{folders[0]}'" if folders else "the folder that modules.json names"
    return (
        f"it is one of sentence-transformers' old form. Copy the files of {inside} beside "
        "modules.json, and set the path of the module Transformer there to the empty text."
    )


def _problem(path: Path) -> str:
    """Why a directory is not a checkpoint, and what to do."""
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
    if (path / "modules.json").is_file():
        return _nested_model(path)
    for pattern, meaning in FOREIGN_FORMS.items():
        if files := sorted(path.glob(pattern)):
            return f"it has no config.json, and '{files[0].name}' {meaning}."
    if any(path.glob("*.safetensors")) or any(path.glob("pytorch_model*.bin")):
        return "there are weights, but no config.json. Copy it from where the weights came from."
    if files := sorted(path.glob("*.bin")):
        return f"it has no config.json. If it holds a llama2.c model, give the file: {files[0]}."
    return f"it has neither {SETTINGS} (tfllm) nor config.json (Hugging Face)."
