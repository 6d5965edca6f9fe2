"""Model families, one file each.

A family's file defines four names:

    Config      a frozen dataclass with a default for every field, and KerasHub's field names
    backbone    (config) -> keras.Model: inputs by name to hidden states (B, T, hidden_dim)
    from_hf     (config.json as a mapping) -> Config; raises CheckpointError for another graph
    WEIGHTS     model type: weight_map.WeightMap

and is one line of `FAMILIES`. Optional names: `to_hf`, the inverse of `from_hf`; `MODEL_TYPES`,
where the keys of WEIGHTS are not Hugging Face's model types (`Config.layout` gives the key then).
Decoders have `forward` and `windows` (see `decoder`), encoder-decoders `encode`, `cross_kv` and
`forward` (see `encoder_decoder`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from tfllm.errors import SettingError, did_you_mean
from tfllm.models import (
    bart,
    bert,
    field_limits,
    gemma,
    gpt2,
    gpt_neox,
    llama,
    modernbert,
    opt,
    t5,
    transformer,
)
from tfllm.models.weight_map import WeightMap

# The values are modules, or in tests anything with the same names.
FAMILIES: dict[str, Any] = {
    "bert": bert,
    "modernbert": modernbert,
    "gpt2": gpt2,
    "llama": llama,
    "gemma": gemma,
    "gpt_neox": gpt_neox,
    "opt": opt,
    "transformer": transformer,
    "t5": t5,
    "bart": bart,
}


def get_weight_map(family: str, config: Any) -> WeightMap:
    """Return the map between a model's variables and Hugging Face's tensors."""
    key = getattr(config, "layout", None) or getattr(config, "variant", family)
    weights: WeightMap = FAMILIES[family].WEIGHTS[key]
    return weights.for_config(config)


def model_types() -> dict[str, str]:
    """Return the family of every Hugging Face `model_type`."""
    return {
        model_type: name
        for name, family in FAMILIES.items()
        for model_type in getattr(family, "MODEL_TYPES", tuple(family.WEIGHTS))
    }


def config_from_hf(family: str, hf_config: Mapping[str, Any]) -> Any:
    """Return the Config for a Hugging Face `config.json`.

    Raises:
        CheckpointError: The family does not build that graph.
    """
    return FAMILIES[family].from_hf(hf_config)


def is_decoder(family: str) -> bool:
    """Return whether models of the family generate text from a prompt alone."""
    return hasattr(FAMILIES[family], "windows")


def is_encoder_decoder(family: str) -> bool:
    """Return whether models of the family read a source and generate a target."""
    return hasattr(FAMILIES[family], "cross_kv")


def build_config(family: str, fields: Mapping[str, Any], source: str = "model") -> Any:
    """Build a family's Config from plain data.

    Args:
        family: A key of FAMILIES.
        fields: Values of fields by name; the others have their defaults.
        source: Where the data is from, for messages.

    Raises:
        SettingError: An unknown family, field or value; the message names the nearest known key.
    """
    if family not in FAMILIES:
        raise SettingError(
            f"{source}: there is no family '{family}'. {did_you_mean(family, FAMILIES)}"
        )
    config = FAMILIES[family].Config
    known = {field.name: getattr(config(), field.name) for field in dataclasses.fields(config)}
    for name, value in fields.items():
        if name not in known:
            raise SettingError(f"{source}: unknown key '{name}'. {did_you_mean(name, known)}")
        if value is not None or known[name] is not None:
            _check_type(name, value, known[name], source)
        if expected := field_limits.expected(name, value):
            raise SettingError(f"{source}: {name} is {value!r}; it must be {expected}.")
    try:
        return config(**fields)
    except SettingError as error:
        raise SettingError(f"{source}: {error.cli_message}") from None


# The type of a default: the types of accepted values, and what messages call them.
TYPES: dict[type, tuple[tuple[type, ...], str]] = {
    float: ((int, float), "a number"),
    type(None): ((int, float), "a number"),
    tuple: ((list, tuple), "a list"),
    dict: ((dict,), "a mapping"),
    int: ((int,), "a whole number"),
    bool: ((bool,), "true or false"),
    str: ((str,), "a name"),
}


def _check_type(name: str, value: Any, default: Any, source: str) -> None:
    expected, description = TYPES[type(default)]
    if not isinstance(value, expected) or (isinstance(value, bool) and bool not in expected):
        example = "" if default in (None, (), {}) else f" such as {default!r}"
        raise SettingError(f"{source}: {name} is {value!r}; expected {description}{example}.")
