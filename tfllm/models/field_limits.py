"""Types and ranges of the fields of model configurations, by field name.

Python's JSON accepts NaN and Infinity, and a damaged or edited file may hold any number: each is
checked before a layer is created from it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from tfllm.errors import SettingError

MOST = 2**31 - 1
LAYERS, HEADS, WIDTH, TOKENS = 4096, 2**16, 2**20, 2**24

# Field: smallest and largest whole number.
WHOLE: dict[str, tuple[int, int]] = {
    "vocabulary_size": (1, TOKENS),
    "source_vocabulary_size": (0, TOKENS),
    "num_layers": (1, LAYERS),
    "num_groups": (0, LAYERS),
    "num_encoder_layers": (0, LAYERS),
    "num_heads": (1, HEADS),
    "num_encoder_heads": (0, HEADS),
    "num_key_value_heads": (0, HEADS),
    "hidden_dim": (1, WIDTH),
    "embedding_dim": (0, WIDTH),
    "head_dim": (0, WIDTH),
    "intermediate_dim": (0, WIDTH),
    "encoder_intermediate_dim": (0, WIDTH),
    "max_sequence_length": (1, MOST),
    "sliding_window": (0, MOST),
    "max_window_layers": (0, LAYERS),
    "num_buckets": (2, TOKENS),
    "max_distance": (1, MOST),
    "num_segments": (0, TOKENS),
    "pad_token_id": (-MOST, MOST),
    "decoder_start_token_id": (0, MOST),
}
# Field: smallest and largest number, and whether the smallest itself is excluded.
REAL: dict[str, tuple[float, float, bool]] = {
    "dropout": (0.0, 1.0, False),
    "embedding_dropout": (0.0, 1.0, False),
    "attention_dropout": (0.0, 1.0, False),
    "inner_dropout": (0.0, 1.0, False),
    "classifier_dropout": (0.0, 1.0, False),
    "layer_norm_epsilon": (0.0, 1.0, False),
    "initializer_range": (0.0, 1e6, False),
    "rope_theta": (0.0, 1e15, True),
    "local_rope_theta": (0.0, 1e15, True),
    "partial_rotary_factor": (0.0, 1.0, True),
    "query_scalar": (0.0, 1e6, True),
    "attention_softcap": (0.0, 1e6, False),
    "logits_softcap": (0.0, 1e6, False),
    "embedding_scale": (0.0, 1e6, True),
    "query_scale": (0.0, 1e6, False),
    "residual_scale": (0.0, 1e6, True),
    "logits_scale": (0.0, 1e6, True),
}
FLAGS = (
    "tie_embeddings", "share_embeddings", "scale_embeddings", "scale_logits", "pre_norm",
    "logits_bias", "qkv_bias", "output_bias", "query_key_norm", "gated", "use_sliding_window",
    "parallel_residual", "attention_bias", "bias",
    "norm_bias", "feedforward_bias", "head_bias",
)  # fmt: skip


def check_positive(config: Any, fields: Iterable[str]) -> None:
    """Raise SettingError where one of a Config's sizes is below 1; fields it has not are passed."""
    for name in fields:
        if getattr(config, name, 1) < 1:
            raise SettingError(f"{name} is {getattr(config, name)}; it must be 1 or more.")


def expected(field: str, value: Any) -> str:
    """Describe what a field's value must be, where it is not, else "". None always passes."""
    if value is None:
        return ""
    if field in WHOLE:
        low, high = WHOLE[field]
        if isinstance(value, bool) or not isinstance(value, int):
            return "a whole number"
        return "" if low <= value <= high else f"a whole number from {low} to {high}"
    if field in REAL:
        least, most, open_below = REAL[field]
        if isinstance(value, bool) or not isinstance(value, int | float):
            return "a number"
        if (
            not math.isfinite(value)
            or not least <= value <= most
            or (open_below and value == least)
        ):
            return f"a number {'above' if open_below else 'from'} {least:g} to {most:g}"
    if field in FLAGS and not isinstance(value, bool):
        return "true or false"
    return ""
