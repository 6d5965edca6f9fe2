"""Open any model that predicts: a checkpoint, a SavedModel, a TFLite file, a LiteRT-LM bundle."""

from __future__ import annotations

from pathlib import Path

from tfllm.errors import ArtifactError
from tfllm.runtimes.description import read_description
from tfllm.runtimes.protocols import Predictor

# Each runtime is imported when it is needed: a TFLite file of a classifier needs no TensorFlow.


def open_model(source: str | Path) -> Predictor:
    """Open a model for prediction and, where it generates text, for generation.

    Args:
        source: A tfllm checkpoint, a run, a Hugging Face directory or hub id, a SavedModel (its
            directory, or the one of its versions), a .tflite or .litertlm file, or the directory of
            one.

    Returns:
        A Predictor. Of a model that generates text it has a `generator` too.

    Raises:
        CheckpointError: A checkpoint cannot be read.
        ArtifactError: An exported file cannot be read.
    """
    path = Path(source)
    if path.suffix == ".litertlm" or (path / "model.litertlm").is_file():
        from tfllm.runtimes.litertlm import open_litertlm

        return open_litertlm(path)
    if path.suffix == ".tflite" or (path / "model.tflite").is_file():
        return open_tflite(path)
    if folder := version_folder(path):
        return open_savedmodel(folder)
    from tfllm.runtimes.checkpoint import open_checkpoint

    return open_checkpoint(str(source))


def open_tflite(source: Path) -> Predictor:
    """Open a .tflite file, or a directory with a model.tflite.

    Raises:
        ArtifactError: There is no such file, or it cannot be run.
        MissingExtra: ai-edge-litert is not installed.
    """
    if not source.exists():
        raise ArtifactError(f"There is no file '{source}'. Check the path.")
    path = source / "model.tflite" if source.is_dir() else source
    description, task = read_description(path.parent / "tfllm.json")
    facts = {
        "kind": "tflite",
        "path": str(path),
        "family": description.get("family"),
        "task": task.kind,
        "size_bytes": path.stat().st_size,
    }
    if task.generates:
        from tfllm.runtimes import tflite_generation

        if task.generates == "continuation":
            return tflite_generation.open_causal_lm(path, description, task, facts)
        return tflite_generation.open_seq2seq(path, description, task, facts)
    from tfllm.runtimes import tflite

    return tflite.open_predictor(path, description, task, facts)


def open_savedmodel(folder: Path) -> Predictor:
    """Open the SavedModel in a version's folder. Raises ArtifactError."""
    from tfllm.runtimes import savedmodel, savedmodel_generation

    description, task = read_description(folder / "assets" / "tfllm.json")
    module = savedmodel.load_savedmodel(folder)
    names = set(module.signatures)
    facts = {
        "kind": "savedmodel",
        "path": str(folder),
        "family": description.get("family"),
        "task": task.kind,
        "size_bytes": sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
        "signatures": sorted(names),
    }
    if task.generates == "continuation" and {"tokens", "generate_tokens"} <= names:
        return savedmodel_generation.open_causal_lm(folder, module, description, task, facts)
    if task.generates == "target" and {"beam_tokens", "generate_tokens"} <= names:
        return savedmodel_generation.open_seq2seq(folder, module, description, task, facts)
    return savedmodel.SavedModelPredictor(task, facts, folder, module)


def version_folder(path: Path) -> Path | None:
    """Return the folder with `saved_model.pb`: `path` or its highest version; None without one."""
    if (path / "saved_model.pb").is_file():
        return path
    versions = [
        folder
        for folder in (path.iterdir() if path.is_dir() else ())
        if folder.name.isdecimal() and (folder / "saved_model.pb").is_file()
    ]
    return max(versions, key=lambda folder: int(folder.name), default=None)
