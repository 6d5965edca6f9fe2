"""Models by the names of transformers' pipelines: the same arguments, the same results.

    translate = tfllm.pipeline("translation_en_to_de", model="Helsinki-NLP/opus-mt-en-de")
    translate("A dog runs.")        # [{"translation_text": "Ein Hund läuft."}]

`docs/migration.md` has a table of them and says where results differ.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tfllm.errors import SettingError, did_you_mean
from tfllm.pipelines import answering, tagging, writing
from tfllm.tasks import TASKS as MODELS

__all__ = ["TASKS", "Pipeline", "pipeline"]

TRANSLATION = re.compile(r"translation_(\w+)_to_(\w+)")


@dataclass(frozen=True)
class Kind:
    """What one name stands for."""

    answer: Callable[..., Any]
    """answer(predictor, inputs..., name of the task, options) -> results."""
    options: tuple[str, ...]
    """Keyword arguments of a call."""
    opened: Callable[[Any], Any] | None = None
    """What makes its model of a checkpoint's path, where that is no predictor."""


WRITES = Kind(writing.rewritten, writing.REWRITING)
TASKS: dict[str, Kind] = {
    "translation": WRITES,
    "summarization": WRITES,
    "text2text-generation": WRITES,
    "text-generation": Kind(writing.continued, writing.CONTINUING),
    "text-classification": Kind(answering.classified, answering.CLASSIFYING),
    "token-classification": Kind(tagging.tagged, tagging.TAGGING),
    "question-answering": Kind(answering.answered, answering.ANSWERING),
    "fill-mask": Kind(answering.filled, answering.FILLING),
    "feature-extraction": Kind(
        answering.extracted,
        answering.EXTRACTING,
        answering.backbone_of,
    ),
}
ALIASES = {"sentiment-analysis": "text-classification", "ner": "token-classification"}


@dataclass(frozen=True)
class Pipeline:
    """A model that is called with texts. Made by `pipeline`."""

    task: str
    """The name that it was asked for by."""
    model: Any
    """A `tfllm.runtimes.protocols.Predictor`."""
    kind: Kind
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Options of every call that does not say otherwise."""

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """Results for a text, or a list of them for a list. Raises SettingError for an option that
        the task does not have."""
        options = {**self.defaults, **options}
        _known(options, self.kind, self.task)
        return self.kind.answer(self.model, *inputs, task=self.task, **options)


def pipeline(task: str, model: Any = None, **options: Any) -> Pipeline:
    """What answers `task`, a name of transformers' pipelines.

    `model`: a checkpoint, a run, a Hugging Face directory, `hf://org/name`, an exported file, or a
    model that `tfllm.load` or `tfllm.open` returned. `options` are those of a call, for every call.
    Raises SettingError for names that do not exist and for a model that is for something else.
    """
    name = ALIASES.get(task, "translation" if TRANSLATION.fullmatch(task) else task)
    if name not in TASKS:
        raise SettingError(
            f"There is no pipeline '{task}'. {did_you_mean(task, (*TASKS, *ALIASES))}"
        )
    if model is None:
        raise SettingError(
            f"pipeline('{task}') needs a model: a checkpoint's directory, hf://org/name, or an "
            "exported file. tfllm chooses none by itself."
        )
    kind = TASKS[name]
    _known(options, kind, task)
    predictor = (kind.opened or _opened)(model)
    if name not in predictor.task.pipelines:
        able = " or ".join(kind for kind, known in MODELS.items() if name in known.pipelines)
        raise SettingError(
            f"pipeline('{task}') needs a model for {able}, and this one is for "
            f"{predictor.task.kind}. Give another model, or another task."
        )
    return Pipeline(task, predictor, kind, options)


def _known(options: Mapping[str, Any], kind: Kind, task: str) -> None:
    for name in options:
        if name not in kind.options:
            raise SettingError(
                f"pipeline('{task}') has no option '{name}'. {did_you_mean(name, kind.options)}"
            )


def _opened(model: Any) -> Any:
    from tfllm.checkpoints.base import Checkpoint
    from tfllm.model import InferenceModel

    if isinstance(model, InferenceModel):
        return model.predictor
    if isinstance(model, Checkpoint):
        from tfllm.runtimes.checkpoint import open_checkpoint

        return open_checkpoint(model)
    if hasattr(model, "answers"):
        return model
    from tfllm.runtimes.opening import open_model

    return open_model(model)
