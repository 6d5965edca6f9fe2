"""Transformer language models on Keras 3, from a checkpoint to TF Serving and phones.

>>> import tfllm
>>> checkpoint = tfllm.load("runs/sst2")  # or a Hugging Face directory, or hf://org/name
>>> checkpoint.model  # a plain functional keras.Model

Importing this package imports nothing else: TensorFlow is loaded by the first call that needs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfllm.checkpoints.store import Checkpoint
    from tfllm.pipelines import Pipeline

__version__ = "0.1.0.dev0"
__all__ = ["load", "pipeline", "__version__"]


def load(source: str, **options: Any) -> Checkpoint:
    """Loads a checkpoint: see `tfllm.checkpoints.store.load`, which this calls."""
    from tfllm.checkpoints.store import load as load_checkpoint

    return load_checkpoint(source, **options)


def pipeline(task: str, model: Any = None, **options: Any) -> Pipeline:
    """A model by the name of transformers' pipelines: see `tfllm.pipelines.pipeline`."""
    from tfllm.pipelines import pipeline as made

    return made(task, model, **options)
