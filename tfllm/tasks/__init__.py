"""What models are for: one file per task, wired in TASKS."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Discriminator

from tfllm import config
from tfllm.errors import SettingError, did_you_mean
from tfllm.tasks.base import Features, Task
from tfllm.tasks.causal_lm import CausalLM
from tfllm.tasks.classification import Classification
from tfllm.tasks.embedding import Embedding
from tfllm.tasks.masked_lm import MaskedLM
from tfllm.tasks.next_sentence import NextSentence
from tfllm.tasks.pretraining import Pretraining
from tfllm.tasks.question_answering import QuestionAnswering
from tfllm.tasks.seq2seq import Seq2Seq
from tfllm.tasks.token_classification import TokenClassification

__all__ = ["METHODS", "TASKS", "AnyTask", "Features", "Task", "build"]

TASKS: dict[str, type[Task]] = {
    "classification": Classification,
    "token_classification": TokenClassification,
    "question_answering": QuestionAnswering,
    "embedding": Embedding,
    "masked_lm": MaskedLM,
    "next_sentence": NextSentence,
    "pretraining": Pretraining,
    "causal_lm": CausalLM,
    "seq2seq": Seq2Seq,
}

# The SignatureDef method_name that TF Serving asks of these signatures; all others are predict.
METHODS = {
    "classify": "tensorflow/serving/classify",
    "regress": "tensorflow/serving/regress",
}


def build(data: Any, source: str = "task", lines: config.Lines | None = None) -> Task:
    """A task from plain data, `{"kind": "classification", ...}`. Raises SettingError."""
    if not isinstance(data, Mapping):
        raise SettingError(f"{source}: expected a mapping of settings, found {data!r}.")
    problem = _problem(data)
    if problem:
        raise SettingError(f"{source}: {problem}")
    return config.build(data, TASKS[data["kind"]], source=source, lines=lines)


def _problem(data: Mapping[str, Any]) -> str:
    """What is wrong with the key `kind`, or nothing."""
    if "kind" not in data:
        return f"the key 'kind' is missing. Known kinds: {', '.join(TASKS)}."
    if data["kind"] not in TASKS:
        return f"unknown task '{data['kind']}'. {did_you_mean(data['kind'], TASKS)}"
    return ""


# The type of a `task:` key in other settings: `task: AnyTask`.
AnyTask = Annotated[
    Classification
    | TokenClassification
    | QuestionAnswering
    | Embedding
    | MaskedLM
    | NextSentence
    | Pretraining
    | CausalLM
    | Seq2Seq,
    Discriminator("kind"),
]
