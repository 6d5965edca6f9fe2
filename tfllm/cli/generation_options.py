"""Command-line options of generation: one for each field of GenerationConfig."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, TypeVar

import typer

from tfllm.errors import SettingError, did_you_mean
from tfllm.generation.config import (
    FIELDS,
    GenerationConfig,
    description_of,
    fields_in,
    generation_config,
)

F = TypeVar("F", bound=Callable[..., Any])

# Types on the command line, where they differ from the field's own. Texts that must not appear are
# given as texts: --bad-word.
TYPES: dict[str, Any] = {"early_stopping": str, "eos_token_id": list[int]}
WITHOUT_OPTION = ("bad_words_ids",)
EARLY_STOPPING: dict[str, bool | str] = {"true": True, "false": False, "never": "never"}
# Fields that are wrong only beside others, which the checkpoint may set.
CHECKED_TOGETHER = ("coverage_penalty", "num_return_sequences")

Stop = Annotated[
    list[str] | None, typer.Option(help="A stop string: the text ends before it. Repeatable.")
]
Precision = Annotated[
    str,
    typer.Option(
        help="Of a checkpoint's matrix products: float32, or bfloat16 (faster, other rounding)."
    ),
]


def with_generation_options(
    names: Iterable[str] = tuple(FIELDS), defaults: Mapping[str, Any] = {}
) -> Callable[[F], F]:
    """Return a decorator that gives a command an option for each field of GenerationConfig.

    The command takes them as `**settings`; those that the user does not set, and that have no
    default here, are None. Types, limits and help texts are those of the fields.

    Args:
        names: Which fields.
        defaults: Defaults of this command, by field.
    """

    def decorate(command: F) -> F:
        signature = inspect.signature(command, eval_str=True)
        own = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
        options = [
            _parameter(name, defaults.get(name)) for name in names if name not in WITHOUT_OPTION
        ]
        parameters = [each.replace(kind=each.KEYWORD_ONLY) for each in (*own, *options)]
        command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {each.name: each.annotation for each in parameters}
        return command

    return decorate


def _parameter(name: str, default: Any) -> inspect.Parameter:
    field = GenerationConfig.model_fields[name]
    kind: Any = TYPES.get(name, field.annotation)
    text = description_of(name)
    if default is None and type(field.default) in (int, float):
        text = f"{text.rstrip('.')}. Default: {field.default:g}."
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[kind | None, typer.Option(help=text)],
    )


def check_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that are set, as fields of GenerationConfig.

    Raises:
        SettingError: One of them is wrong for any model; it names the option. Whether they fit
            together depends on the model's own settings too.
    """
    fields = {name: value for name, value in settings.items() if value not in (None, [])}
    if (early := fields.get("early_stopping")) is not None:
        if early not in EARLY_STOPPING:
            raise SettingError(
                f"--early-stopping: '{early}' is not true, false or never. "
                f"{did_you_mean(early, EARLY_STOPPING)}"
            )
        fields["early_stopping"] = EARLY_STOPPING[early]
    if "eos_token_id" in fields:
        fields["eos_token_id"] = tuple(fields["eos_token_id"])
    for name, value in fields.items():
        if name not in CHECKED_TOGETHER:
            generation_config(**{name: value})
    return fields


SAMPLING_FIELDS = (
    "max_new_tokens",
    *fields_in("sampling"),
    *fields_in("penalty"),
)
"""Those of a conversation."""
