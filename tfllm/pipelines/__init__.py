"""Models by the names of transformers' pipelines: the same arguments, the same results.

    translate = tfllm.pipeline("translation_en_to_de", model="Helsinki-NLP/opus-mt-en-de")
    translate("A dog runs.")        # [{"translation_text": "Ein Hund läuft."}]

`docs/migration.md` has a table of them and says where results differ.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tfllm import tasks
from tfllm.checkpoints.base import Checkpoint
from tfllm.errors import SettingError, did_you_mean
from tfllm.model import InferenceModel
from tfllm.pipelines import encoders, text_generation, token_classification
from tfllm.runtimes.checkpoint import open_checkpoint
from tfllm.runtimes.opening import open_model
from tfllm.runtimes.protocols import Predictor

__all__ = ["TASKS", "Pipeline", "pipeline"]

TRANSLATION = re.compile(r"translation_(\w+)_to_(\w+)")

ModelSource = str | Path | Checkpoint | InferenceModel
PipelineModel = Predictor | encoders.BackbonePredictor


def open_predictor(model: ModelSource) -> Predictor:
    """Open a model for prediction.

    Args:
        model: See `pipeline`.

    Raises:
        CheckpointError: The checkpoint cannot be read.
        ArtifactError: The exported file cannot be read.
    """
    if isinstance(model, InferenceModel):
        return model.predictor
    if isinstance(model, Checkpoint):
        return open_checkpoint(model)
    return open_model(model)


@dataclass(frozen=True)
class PipelineTask:
    """How the pipelines of one name answer."""

    run: Callable[..., Any]
    """run(predictor, *inputs, task=name of the task, **options) -> results."""
    options: tuple[str, ...]
    """Keyword arguments of a call."""
    open: Callable[[ModelSource], PipelineModel] = open_predictor


SOURCE_TO_TEXT = PipelineTask(
    text_generation.generate_from_sources, text_generation.SOURCE_TO_TEXT_OPTIONS
)
TASKS: dict[str, PipelineTask] = {
    "translation": SOURCE_TO_TEXT,
    "summarization": SOURCE_TO_TEXT,
    "text2text-generation": SOURCE_TO_TEXT,
    "text-generation": PipelineTask(
        text_generation.continue_prompts, text_generation.CONTINUATION_OPTIONS
    ),
    "text-classification": PipelineTask(
        encoders.classify_texts, encoders.TEXT_CLASSIFICATION_OPTIONS
    ),
    "token-classification": PipelineTask(
        token_classification.classify_tokens, token_classification.OPTIONS
    ),
    "question-answering": PipelineTask(
        encoders.answer_questions, encoders.QUESTION_ANSWERING_OPTIONS
    ),
    "fill-mask": PipelineTask(encoders.fill_masks, encoders.FILL_MASK_OPTIONS),
    "feature-extraction": PipelineTask(
        encoders.extract_features, encoders.FEATURE_EXTRACTION_OPTIONS, encoders.open_backbone
    ),
}
ALIASES = {"sentiment-analysis": "text-classification", "ner": "token-classification"}


@dataclass(frozen=True)
class Pipeline:
    """A model that is called with texts. `pipeline` returns one."""

    task: str
    """The name that `pipeline` was called with."""
    model: PipelineModel
    """The open model."""
    pipeline_task: PipelineTask
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Options of every call that does not set them itself."""

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """Answer a text, or every text of a list.

        Args:
            *inputs: What the pipeline of that name takes in transformers.
            **options: Keyword arguments of that pipeline.

        Returns:
            The results under transformers' names; of a list, one entry for each text.

        Raises:
            SettingError: The task does not have such an option.
        """
        options = {**self.defaults, **options}
        _check_options(options, self.pipeline_task, self.task)
        return self.pipeline_task.run(self.model, *inputs, task=self.task, **options)


def pipeline(task: str, model: ModelSource | None = None, **options: Any) -> Pipeline:
    """Open a model for a task by its name in transformers.

    Args:
        task: The name, such as "text-classification".
        model: A checkpoint, a run, a Hugging Face directory, `hf://org/name`, an exported file, or
            a model that `tfllm.load` or `tfllm.open` returned.
        **options: Keyword arguments of every call.

    Raises:
        SettingError: There is no such task or option, or the model is for something else.
        CheckpointError: The checkpoint cannot be read.
        ArtifactError: The exported file cannot be read.
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
    pipeline_task = TASKS[name]
    _check_options(options, pipeline_task, task)
    predictor = pipeline_task.open(model)
    if name not in predictor.task.pipelines:
        kinds = [kind for kind, known in tasks.TASKS.items() if name in known.pipelines]
        raise SettingError(
            f"pipeline('{task}') needs a model for {' or '.join(kinds)}, and this one is for "
            f"{predictor.task.kind}. Give another model, or another task."
        )
    return Pipeline(task, predictor, pipeline_task, options)


def _check_options(options: Mapping[str, Any], pipeline_task: PipelineTask, task: str) -> None:
    for name in options:
        if name not in pipeline_task.options:
            raise SettingError(
                f"pipeline('{task}') has no option '{name}'. "
                f"{did_you_mean(name, pipeline_task.options)}"
            )
