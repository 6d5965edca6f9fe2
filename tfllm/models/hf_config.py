"""From Hugging Face's `config.json` to a family's Config, by the family's tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from tfllm.errors import CheckpointError, SettingError
from tfllm.layers.activations import ACTIVATIONS
from tfllm.models import field_limits

ConfigType = TypeVar("ConfigType")

Unsupported = tuple[tuple[str, Any, str], ...]
"""Keys that change the graph: key, the value that the family builds, what other values mean."""


def config_fields(
    hf_config: Mapping[str, Any], keys: Mapping[str, str], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """Read config fields.

    Args:
        hf_config: `config.json`.
        keys: Field: Hugging Face's key.
        defaults: Values of fields whose key is missing or null.

    Raises:
        CheckpointError: A number is out of its field's range.
    """
    fields = {
        field: hf_config[key] for field, key in keys.items() if hf_config.get(key) is not None
    }
    for field, value in fields.items():
        check_number(field, value, keys[field])
    return {**defaults, **fields}


def check_number(field: str, value: Any, key: str) -> None:
    """Raise CheckpointError where the value of Hugging Face's `key` is not one of the field."""
    if expected := field_limits.expected(field, value):
        raise CheckpointError(
            f"config.json: {key} is {value!r}; it must be {expected}. Correct the key, or copy the "
            "file again."
        )


def check_supported(hf_config: Mapping[str, Any], name: str, unsupported: Unsupported) -> None:
    """Raise CheckpointError for a graph that the model type `name` does not have in tfllm."""
    for key, built, meaning in unsupported:
        value = hf_config.get(key, built)
        if isinstance(built, bool) and value is not None and not isinstance(value, bool):
            raise CheckpointError(f"config.json: {key} is {value!r}; it must be true or false.")
        if value not in (built, None):
            raise CheckpointError(
                f"config.json: {key} is {hf_config[key]!r}; tfllm builds {name} without "
                f"{meaning}. Use a checkpoint where {key} is {built!r}."
            )


def build(config: type[ConfigType], fields: Mapping[str, Any]) -> ConfigType:
    """Build a Config. Raises CheckpointError for fields that do not go together."""
    name = fields.get("activation")
    if name is not None and name not in ACTIVATIONS:
        raise CheckpointError(
            f"config.json: unknown activation '{name}'. Known: {', '.join(sorted(ACTIVATIONS))}."
        )
    for field, value in fields.items():  # those that are computed from other keys
        if expected := field_limits.expected(field, value):
            raise CheckpointError(
                f"config.json: {field} comes to {value!r}; it must be {expected}. Copy the file "
                "again."
            )
    try:
        return config(**fields)
    except SettingError as error:
        raise CheckpointError(f"config.json: {error.cli_message}") from None
    except TypeError:
        raise CheckpointError("config.json: a number of the model's shape is no number.") from None
