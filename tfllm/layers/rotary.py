"""Rotary positions (Su et al. 2021), with the scalings that stretch them over longer texts.

Pairs are the two halves of a head, (i, i + head_dim / 2), as Hugging Face's files have it. Angles
and products are float32 in every precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from keras import ops

from tfllm.errors import SettingError, did_you_mean

Scaling = Mapping[str, Any]


def frequencies(
    head_dim: int, theta: float, scaling: Scaling | None, max_sequence_length: int
) -> tuple[np.ndarray, float]:
    """Radians per position of every pair, float32 (head_dim / 2), and a factor for cos and sin.

    `theta` is the base of the wavelengths; `scaling` is Hugging Face's table: `rope_type`,
    `factor` and what else its kind has. Raises SettingError for an unknown kind or a missing key.
    """
    plain = theta ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    kind = kind_of(scaling)
    if kind not in SCALINGS:
        known = did_you_mean(kind, SCALINGS)
        raise SettingError(f"rope_scaling: there is no kind '{kind}'. {known}")
    given = {"original_max_position_embeddings": max_sequence_length, **(scaling or {})}
    try:
        scaled, factor = SCALINGS[kind](plain, theta, given)
    except KeyError as error:
        raise SettingError(f"rope_scaling: the kind '{kind}' needs the key {error}.") from None
    except (TypeError, ValueError, ZeroDivisionError):
        raise SettingError(f"rope_scaling: {dict(given)} has a value that is no number.") from None
    return scaled.astype(np.float32), factor


def kind_of(scaling: Scaling | None) -> str:
    """`rope_type`, or `type` as older files call it."""
    scaling = scaling or {}
    return str(scaling.get("rope_type") or scaling.get("type") or "default")


def standard(scaling: Scaling | None) -> dict[str, Any]:
    """The table with today's key `rope_type`; empty for the plain form."""
    kind = kind_of(scaling)
    rest = {
        key: value for key, value in (scaling or {}).items() if key not in ("type", "rope_type")
    }
    return {} if kind == "default" else {"rope_type": kind, **rest}


def _default(plain: np.ndarray, theta: float, given: Scaling) -> tuple[np.ndarray, float]:
    return plain, 1.0


def _linear(plain: np.ndarray, theta: float, given: Scaling) -> tuple[np.ndarray, float]:
    """Positions divided by a factor (Chen et al. 2023)."""
    return plain / given["factor"], 1.0


def _llama3(plain: np.ndarray, theta: float, given: Scaling) -> tuple[np.ndarray, float]:
    """Llama 3.1: long wavelengths are divided, short ones stay, between them it is mixed."""
    low, high, factor = given["low_freq_factor"], given["high_freq_factor"], given["factor"]
    turns = given["original_max_position_embeddings"] * plain / (2 * math.pi)
    kept = np.clip((turns - low) / (high - low), 0, 1)  # 1 where a pair turns `high` times or more
    return (1 - kept) * plain / factor + kept * plain, 1.0


def _yarn(plain: np.ndarray, theta: float, given: Scaling) -> tuple[np.ndarray, float]:
    """YaRN (Peng et al. 2023): as llama3 with a ramp over the pairs, and sharper attention."""
    factor, original = given["factor"], given["original_max_position_embeddings"]
    head_dim = 2 * len(plain)

    def pair(turns: float) -> float:
        return head_dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair(given.get("beta_fast") or 32), pair(given.get("beta_slow") or 1)
    if given.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    width = high - low or 0.001
    divided = np.clip((np.arange(len(plain)) - low) / width, 0, 1)

    def sharpness(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    attention = given.get("attention_factor")
    if attention is None:
        every, some = given.get("mscale_all_dim"), given.get("mscale")
        attention = sharpness(some) / sharpness(every) if some and every else sharpness(1)
    return divided * plain / factor + (1 - divided) * plain, float(attention)


SCALINGS: dict[str, Callable[[np.ndarray, float, Scaling], tuple[np.ndarray, float]]] = {
    "default": _default,
    "linear": _linear,
    # It differs from the plain form only beyond max_sequence_length, where no model here goes.
    "dynamic": _default,
    "llama3": _llama3,
    "yarn": _yarn,
}


def angles(positions: Any, radians: np.ndarray, factor: float = 1.0) -> tuple[Any, Any]:
    """Positions int32 (B, S) to cos and sin, float32 (B, S, 1, head_dim / 2)."""
    turned = ops.expand_dims(ops.cast(positions, "float32"), -1) * radians
    cos, sin = ops.expand_dims(ops.cos(turned), 2), ops.expand_dims(ops.sin(turned), 2)
    return (cos, sin) if factor == 1.0 else (cos * factor, sin * factor)


def rotated(x: Any, cos: Any, sin: Any) -> Any:
    """Heads (B, S, N, head_dim) turned by their angles, in their own dtype."""
    first, second = ops.split(ops.cast(x, "float32"), 2, axis=-1)
    turned = ops.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return ops.cast(turned, x.dtype)
