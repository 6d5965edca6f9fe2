"""Rotary positions in Hugging Face's `config.json`, in the forms of transformers 4 and 5."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tfllm.errors import CheckpointError
from tfllm.layers import rotary
from tfllm.models import hf_config as hf

LONGROPE = "longrope"


def read_table(hf_config: Mapping[str, Any], theta_key: str = "rope_theta") -> dict[str, Any]:
    """Read theta and scaling: `rope_parameters` of transformers 5, or the keys of transformers 4.

    As in transformers 5, `rope_scaling` wins over `rope_parameters`, a theta inside the table over
    one beside it, and `original_max_position_embeddings` beside the table over the one inside.

    Args:
        hf_config: `config.json`.
        theta_key: The key beside the table that names theta.

    Returns:
        One table with `rope_theta`, where there is one, and the settings of the scaling.

    Raises:
        CheckpointError: There are several tables, or a value is no number above 0.
    """
    rope = hf_config.get("rope_scaling") or hf_config.get("rope_parameters") or {}
    if not isinstance(rope, Mapping) or any(isinstance(value, Mapping) for value in rope.values()):
        raise CheckpointError(
            f"config.json: rotary positions {rope!r} are not one table for all layers, which is "
            "what tfllm builds. Use another checkpoint."
        )
    theta = hf_config.get(theta_key)
    hf.check_number("rope_theta", theta, theta_key)
    if theta is not None:
        rope = {"rope_theta": theta, **rope}
    before = hf_config.get("original_max_position_embeddings")
    if before is not None and rotary.rope_type(rope) in ("llama3", "yarn", LONGROPE):
        rope = {**rope, "original_max_position_embeddings": before}
    for key, value in rope.items():
        numbers = value if key in ("short_factor", "long_factor") else [value]
        if not (isinstance(numbers, list) and all(map(_can_be, numbers))):
            raise CheckpointError(
                f"config.json: {key} of the rotary positions is {value!r}; it must be a finite "
                "number above 0, or a list of them for each pair of a head. Correct the key, or "
                "copy the file again."
            )
    return dict(rope)


def _can_be(value: Any) -> bool:
    if value is None or isinstance(value, bool | str):
        return True
    return isinstance(value, int | float) and math.isfinite(value) and value > 0


def rotary_fields(table: Mapping[str, Any], longest: int, theta: float = 10000.0) -> dict[str, Any]:
    """Return the fields of a Config for a table of rotary positions.

    Args:
        table: As `read_table` gives it.
        longest: `max_position_embeddings`.
        theta: Where the table has none.
    """
    scaling = dict(table)
    fields = {"rope_theta": scaling.pop("rope_theta", None) or theta, "rope_scaling": scaling}
    kind = rotary.rope_type(scaling)
    if kind == "yarn" and "factor" in scaling and scaling["factor"] is None:
        scaling["factor"] = longest / (scaling.get("original_max_position_embeddings") or longest)
    if kind == LONGROPE:
        original = scaling.setdefault("original_max_position_embeddings", longest)
        scaling["factor"] = scaling.get("factor") or longest / original
        fields["max_sequence_length"] = min(longest, original)  # see `layers.rotary`
    return fields


def write_tables(config: Any, theta_key: str = "rope_theta") -> dict[str, Any]:
    """Return the keys of `config.json` for the rotary positions of a Config."""
    scaling = dict(config.rope_scaling)
    result: dict[str, Any] = {theta_key: config.rope_theta, "rope_scaling": scaling or None}
    result["rope_parameters"] = {
        "rope_type": "default",
        "rope_theta": config.rope_theta,
        **scaling,
    }
    if rotary.rope_type(scaling) == LONGROPE:
        original = scaling["original_max_position_embeddings"]
        result["original_max_position_embeddings"] = original
        if config.max_sequence_length == original:
            result["max_position_embeddings"] = round(original * scaling["factor"])
    return result
