"""Model families, one file each: `Config`, `backbone(config)`, `from_hf`, `WEIGHTS`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from tfllm.errors import SettingError, did_you_mean
from tfllm.models import bart, bert, field_limits, gpt2, llama, t5, transformer
from tfllm.models.weight_map import Weights

FAMILIES: dict[str, Any] = {
    "bert": bert,
    "gpt2": gpt2,
    "llama": llama,
    "transformer": transformer,
    "t5": t5,
    "bart": bart,
}


def weight_map(family: str, config: Any) -> Weights:
    """The rows between a model of this shape and Hugging Face's tensors."""
    key = getattr(config, "layout", None) or getattr(config, "variant", family)
    return FAMILIES[family].WEIGHTS[key]


def config_from_hf(family: str, hf_config: Mapping[str, Any]) -> Any:
    """The config for a Hugging Face `config.json`. Raises CheckpointError."""
    return FAMILIES[family].from_hf(hf_config)


def is_encoder_decoder(family: str) -> bool:
    """Whether models of the family read a source and write a target."""
    return hasattr(FAMILIES[family], "cross_kv")


def build_config(family: str, fields: Mapping[str, Any], source: str = "model") -> Any:
    """The config of a family from plain data. Raises SettingError naming the nearest known key."""
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
            _check_kind(name, value, known[name], source)
        if wanted := field_limits.problem(name, value):
            raise SettingError(f"{source}: {name} is {value!r}; it must be {wanted}.")
    try:
        return config(**fields)
    except SettingError as error:
        raise SettingError(f"{source}: {error}") from None


# What a field of this kind may be given as, and how to say it.
KINDS: dict[type, tuple[tuple[type, ...], str]] = {
    float: ((int, float), "a number"),
    type(None): ((int, float), "a number"),
    tuple: ((list, tuple), "a list"),
    dict: ((dict,), "a mapping"),
    int: ((int,), "a whole number"),
    bool: ((bool,), "true or false"),
    str: ((str,), "a name"),
}


def _check_kind(name: str, value: Any, default: Any, source: str) -> None:
    expected, said = KINDS[type(default)]
    if not isinstance(value, expected) or (isinstance(value, bool) and bool not in expected):
        example = "" if default in (None, (), {}) else f" such as {default!r}"
        raise SettingError(f"{source}: {name} is {value!r}; expected {said}{example}.")
