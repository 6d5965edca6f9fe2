"""From Hugging Face's `config.json` to a family's Config, by the family's own tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from tfllm.errors import CheckpointError, SettingError
from tfllm.layers.activations import ACTIVATIONS
from tfllm.models import field_limits

ConfigType = TypeVar("ConfigType")

Refused = tuple[tuple[str, Any, str], ...]
"""What would make another graph: key, the value that the family builds, what others mean."""


def fields_of(
    hf_config: Mapping[str, Any], keys: Mapping[str, str], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """Config fields from `keys` (field: Hugging Face's key), else from `defaults`. Raises
    CheckpointError for a number that is out of its range."""
    found = {field: hf_config[key] for field, key in keys.items() if hf_config.get(key) is not None}
    for field, value in found.items():
        check_number(field, value, keys[field])
    return {**defaults, **found}


def check_number(field: str, value: Any, key: str) -> None:
    """Raises CheckpointError where Hugging Face's `key` holds no number for the field."""
    if wanted := field_limits.problem(field, value):
        raise CheckpointError(
            f"config.json: {key} is {value!r}; it must be {wanted}. Correct the key, or copy the "
            "file again."
        )


def refuse(hf_config: Mapping[str, Any], name: str, refused: Refused) -> None:
    """Raises CheckpointError for a graph that the family `name` does not build."""
    for key, built, meaning in refused:
        value = hf_config.get(key, built)
        if isinstance(built, bool) and value is not None and not isinstance(value, bool):
            raise CheckpointError(f"config.json: {key} is {value!r}; it must be true or false.")
        if value not in (built, None):
            raise CheckpointError(
                f"config.json: {key} is {hf_config[key]!r}; tfllm builds {name} without "
                f"{meaning}. Use a checkpoint where {key} is {built!r}."
            )


def built(config: type[ConfigType], fields: Mapping[str, Any]) -> ConfigType:
    """The Config of these fields. Raises CheckpointError where they make no sense."""
    name = fields.get("activation")
    if name is not None and name not in ACTIVATIONS:
        raise CheckpointError(
            f"config.json: unknown activation '{name}'. Known: {', '.join(sorted(ACTIVATIONS))}."
        )
    for field, value in fields.items():  # those that are computed from other keys
        if wanted := field_limits.problem(field, value):
            raise CheckpointError(
                f"config.json: {field} comes to {value!r}; it must be {wanted}. Copy the file "
                "again."
            )
    try:
        return config(**fields)
    except SettingError as error:
        raise CheckpointError(f"config.json: {error}") from None
    except TypeError:
        raise CheckpointError("config.json: a number of the model's shape is no number.") from None
