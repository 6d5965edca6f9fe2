"""Opens whatever can answer: a checkpoint, a SavedModel, a LiteRT file, a LiteRT-LM bundle."""

from __future__ import annotations

from pathlib import Path

from tfllm.errors import ArtifactError
from tfllm.runtimes.predictor import Predictor


def open_model(source: str | Path) -> Predictor:
    """A predictor for a tfllm checkpoint, a run, a Hugging Face directory or hub id, a SavedModel
    (its directory, or the one of its versions), or a .tflite file or the directory of one.

    Raises CheckpointError or ArtifactError naming what does not fit.
    """
    path = Path(source)
    if path.suffix == ".litertlm" or (path / "model.litertlm").is_file():
        from tfllm.runtimes.causal_lm_artifact import open_bundle_model

        return open_bundle_model(path)
    if path.suffix == ".tflite" or (path / "model.tflite").is_file():
        from tfllm.runtimes.tflite import open_tflite

        if not path.exists():
            raise ArtifactError(f"There is no file '{path}'. Check the path.")
        return open_tflite(path)
    from tfllm.runtimes.savedmodel import open_savedmodel, version_folder

    if folder := version_folder(path):
        return open_savedmodel(folder)
    from tfllm.runtimes.checkpoint import open_checkpoint

    return open_checkpoint(str(source))
