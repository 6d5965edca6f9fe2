"""Rotary position embeddings (Su et al. 2021), and their scalings for longer contexts.

Pairs are the two halves of a head, (i, i + head_dim / 2), as in Hugging Face's checkpoints. Angles
and products are float32 in every precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from keras import ops

from tfllm.errors import SettingError, did_you_mean
from tfllm.layers.types import Tensor

Scaling = Mapping[str, Any]


def frequencies(
    head_dim: int, theta: float, scaling: Scaling | None, max_sequence_length: int
) -> tuple[np.ndarray, float]:
    """Compute the rotary frequencies of a head.

    Args:
        head_dim: Width of a head, or of the part of it that is rotated; even.
        theta: Base of the wavelengths.
        scaling: Hugging Face's table `rope_scaling`: `rope_type`, `factor` and the further keys of
            its type; None or empty: no scaling.
        max_sequence_length: Tokens; the default of `original_max_position_embeddings`.

    Returns:
        Radians per position of every pair, float32 (head_dim / 2), and a factor of cos and sin.

    Raises:
        SettingError: An unknown type, a missing key or a value that is not a number.
    """
    inverse = theta ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    kind = rope_type(scaling)
    if kind not in SCALINGS:
        known = did_you_mean(kind, SCALINGS)
        raise SettingError(f"rope_scaling: there is no kind '{kind}'. {known}")
    settings = {"original_max_position_embeddings": max_sequence_length, **(scaling or {})}
    try:
        scaled, factor = SCALINGS[kind](inverse, theta, settings)
    except KeyError as error:
        raise SettingError(f"rope_scaling: the kind '{kind}' needs the key {error}.") from None
    except (TypeError, ValueError, ZeroDivisionError):
        raise SettingError(
            f"rope_scaling: {dict(settings)} has a value that is no number."
        ) from None
    return scaled.astype(np.float32), factor


def rope_type(scaling: Scaling | None) -> str:
    """Return a table's `rope_type`, or `type` as older files call it; without both "default"."""
    scaling = scaling or {}
    return str(scaling.get("rope_type") or scaling.get("type") or "default")


def normalize_scaling(scaling: Scaling | None) -> dict[str, Any]:
    """Return the table with the key `rope_type` in place of `type`; empty for "default"."""
    kind = rope_type(scaling)
    rest = {
        key: value for key, value in (scaling or {}).items() if key not in ("type", "rope_type")
    }
    return {} if kind == "default" else {"rope_type": kind, **rest}


def _default(inverse: np.ndarray, theta: float, settings: Scaling) -> tuple[np.ndarray, float]:
    return inverse, 1.0


def _linear(inverse: np.ndarray, theta: float, settings: Scaling) -> tuple[np.ndarray, float]:
    """Divide positions by a factor (Chen et al. 2023)."""
    return inverse / settings["factor"], 1.0


def _llama3(inverse: np.ndarray, theta: float, settings: Scaling) -> tuple[np.ndarray, float]:
    """Llama 3.1: divide low frequencies, keep high ones, and interpolate between them."""
    low, high, factor = (
        settings["low_freq_factor"],
        settings["high_freq_factor"],
        settings["factor"],
    )
    turns = settings["original_max_position_embeddings"] * inverse / (2 * math.pi)
    keep = np.clip((turns - low) / (high - low), 0, 1)  # 1 where a pair turns `high` times or more
    return (1 - keep) * inverse / factor + keep * inverse, 1.0


def _yarn(inverse: np.ndarray, theta: float, settings: Scaling) -> tuple[np.ndarray, float]:
    """YaRN (Peng et al. 2023): interpolate over the pairs, and sharpen the attention."""
    factor, original = settings["factor"], settings["original_max_position_embeddings"]
    head_dim = 2 * len(inverse)

    def pair(turns: float) -> float:
        return head_dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair(settings.get("beta_fast") or 32), pair(settings.get("beta_slow") or 1)
    if settings.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    width = high - low or 0.001
    divide = np.clip((np.arange(len(inverse)) - low) / width, 0, 1)

    def sharpness(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    attention = settings.get("attention_factor")
    if attention is None:
        all_dim, mscale = settings.get("mscale_all_dim"), settings.get("mscale")
        attention = sharpness(mscale) / sharpness(all_dim) if mscale and all_dim else sharpness(1)
    return divide * inverse / factor + (1 - divide) * inverse, float(attention)


def _longrope(inverse: np.ndarray, theta: float, settings: Scaling) -> tuple[np.ndarray, float]:
    """LongRoPE (Ding et al. 2024): divide each frequency by a factor of its own.

    There are two lists of factors. transformers takes the long one for every token of a batch with
    a text longer than `original_max_position_embeddings`, and computes cached keys anew when a text
    grows beyond that. No model here is longer: the short list always holds.
    """
    divisors, _ = (np.asarray(settings[key], np.float64) for key in ("short_factor", "long_factor"))
    if divisors.shape != inverse.shape:
        raise SettingError(
            f"rope_scaling: short_factor has {divisors.size} factors, and {len(inverse)} pairs of "
            "a head are rotated. Give one factor for each pair."
        )
    attention = settings.get("attention_factor")
    if attention is None:
        factor, original = settings["factor"], settings["original_max_position_embeddings"]
        attention = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    return inverse / divisors, float(attention)


SCALINGS: dict[str, Callable[[np.ndarray, float, Scaling], tuple[np.ndarray, float]]] = {
    "default": _default,
    "linear": _linear,
    # It differs from "default" only beyond max_sequence_length, which no model here exceeds.
    "dynamic": _default,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}


def cos_sin(positions: Tensor, radians: np.ndarray, factor: float = 1.0) -> tuple[Tensor, Tensor]:
    """Compute cosines and sines of rotary positions.

    Args:
        positions: int32 (B, S).
        radians: Frequencies (head_dim / 2); see `frequencies`.
        factor: Multiplies both.

    Returns:
        Cosines and sines, each float32 (B, S, 1, head_dim / 2).
    """
    angles = ops.expand_dims(ops.cast(positions, "float32"), -1) * radians
    cos, sin = ops.expand_dims(ops.cos(angles), 2), ops.expand_dims(ops.sin(angles), 2)
    return (cos, sin) if factor == 1.0 else (cos * factor, sin * factor)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs of heads (B, S, N, head_dim) by their angles, computed in float32.

    Args:
        x: Queries or keys.
        cos: float32 (B, S, 1, pairs); where these are less than head_dim / 2, the first values of
            each head are rotated and the others are left as they are.
        sin: The same.

    Returns:
        The shape and dtype of `x`.
    """
    width = 2 * cos.shape[-1]
    if width < x.shape[-1]:
        rotated = rotate(x[..., :width], cos, sin)
        return ops.concatenate([rotated, x[..., width:]], axis=-1)
    first, second = ops.split(ops.cast(x, "float32"), 2, axis=-1)
    rotated = ops.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return ops.cast(rotated, x.dtype)
