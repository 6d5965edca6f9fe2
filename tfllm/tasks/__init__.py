"""What models are for: one file per task, wired in TASKS."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Union

from pydantic import Discriminator, GetCoreSchemaHandler, TypeAdapter, ValidationInfo
from pydantic_core import core_schema

from tfllm import config
from tfllm.errors import SettingError, did_you_mean
from tfllm.tasks.base import Task
from tfllm.tasks.causal_lm import CausalLM
from tfllm.tasks.classification import Classification
from tfllm.tasks.embedding import Embedding
from tfllm.tasks.features import Features
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
    """Build a task from plain data, `{"kind": "classification", ...}`.

    Args:
        data: Settings by name; `kind` is a key of TASKS.
        source: Where the data is from, for messages.
        lines: The line of every key, for messages.

    Raises:
        SettingError: There is no such task or setting, or a value is not valid.
    """
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


# Outside of type checkers, which see a Task, a union that knows every task's settings.
_Union: Any = Annotated[Union[tuple(TASKS.values())], Discriminator("kind")]  # noqa: UP007


class _TaskByKind:
    """Looks `kind` up in TASKS when a value is validated, so that TASKS is the only list of tasks.

    The union of the tasks gives the JSON Schema and the errors.
    """

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        known = set(TASKS.values())
        union: TypeAdapter[Any] = TypeAdapter(_Union)

        def validate(
            value: Any, inner: core_schema.ValidatorFunctionWrapHandler, info: ValidationInfo
        ) -> Task:
            kind = TASKS.get(value.get("kind", "")) if isinstance(value, Mapping) else type(value)
            added = kind in TASKS.values() and kind not in known
            settings: TypeAdapter[Any] = TypeAdapter(kind) if added else union  # type: ignore[arg-type]
            if info.mode == "json":  # in which a list may stand for a tuple
                return settings.validate_json(json.dumps(value))
            return settings.validate_python(value)

        def serialize(task: Task, info: core_schema.SerializationInfo) -> dict[str, Any]:
            return task.model_dump(
                mode=info.mode,
                exclude_none=info.exclude_none,
                exclude_unset=info.exclude_unset,
                exclude_defaults=info.exclude_defaults,
            )

        return core_schema.with_info_wrap_validator_function(
            validate,
            handler(source),
            serialization=core_schema.plain_serializer_function_ser_schema(
                serialize, info_arg=True
            ),
        )


if TYPE_CHECKING:
    AnyTask = Task
else:
    # The type of a `task:` key in other settings: `task: AnyTask`.
    AnyTask = Annotated[_Union, _TaskByKind()]
