"""Model families, one file each: `Config`, `backbone(config)`, `from_hf`, `WEIGHTS`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from tfllm.errors import SettingError, did_you_mean
from tfllm.models import bert, gpt2

FAMILIES = {"bert": bert, "gpt2": gpt2}


def configured(family: str, fields: Mapping[str, Any], source: str = "model") -> Any:
    """The config of a family from plain data. Raises SettingError naming the nearest known key."""
    if family not in FAMILIES:
        raise SettingError(
            f"{source}: there is no family '{family}'. {did_you_mean(family, FAMILIES)}"
        )
    config = FAMILIES[family].Config
    known = {field.name: field.default for field in dataclasses.fields(config)}
    for name, value in fields.items():
        if name not in known:
            raise SettingError(f"{source}: unknown key '{name}'. {did_you_mean(name, known)}")
        kind = type(known[name])
        expected = (int, float) if kind is float or known[name] is None else kind
        if value is not known[name] and (
            not isinstance(value, expected) or (isinstance(value, bool) and kind is not bool)
        ):
            raise SettingError(
                f"{source}: {name} is {value!r}; "
                f"expected a {kind.__name__} such as {known[name]!r}."
            )
    try:
        return config(**fields)
    except SettingError as error:
        raise SettingError(f"{source}: {error}") from None
