"""Transformer language models on Keras 3, from a checkpoint to TF Serving and phones.

>>> import tfllm
>>> model = tfllm.load("runs/sst2")  # or a Hugging Face directory, or hf://org/name
>>> model.keras  # a plain functional keras.Model

Importing this package imports nothing else: TensorFlow is loaded when a name is first used.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tfllm.version import __version__

if TYPE_CHECKING:
    from tfllm.generation.config import GenerationConfig
    from tfllm.model import InferenceModel, Model, evaluate, export, load, open, train
    from tfllm.pipelines import pipeline
    from tfllm.training.recipe import Recipe

__all__ = [
    "GenerationConfig", "InferenceModel", "Model", "Recipe", "__version__", "evaluate", "export",
    "load", "open", "pipeline", "train",
]  # fmt: skip

# Where the public names are defined.
MODULES = {
    "GenerationConfig": "tfllm.generation.config",
    "InferenceModel": "tfllm.model",
    "Model": "tfllm.model",
    "Recipe": "tfllm.training.recipe",
    "evaluate": "tfllm.model",
    "export": "tfllm.model",
    "load": "tfllm.model",
    "open": "tfllm.model",
    "pipeline": "tfllm.pipelines",
    "train": "tfllm.model",
}


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        raise AttributeError(f"module 'tfllm' has no attribute '{name}'")
    value = getattr(importlib.import_module(MODULES[name]), name)
    return globals().setdefault(name, value)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _ExportPackage(ModuleType):
    """The package `tfllm.export`, which is also the function of that name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__wrapped__(*args, **kwargs)

    @property
    def __wrapped__(self) -> Any:
        """The function; `inspect` and editors take its signature from here."""
        from tfllm.model import export

        return export


class _Package(ModuleType):
    """This package: the import of a package inside it sets an attribute, `export` among them."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "export" and isinstance(value, ModuleType):
            value.__class__ = _ExportPackage
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
