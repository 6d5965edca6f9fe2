"""The shapes of Llama, Mistral, Qwen2 and Qwen3, and how Hugging Face writes them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tfllm.errors import CheckpointError, SettingError, did_you_mean
from tfllm.layers import rotary
from tfllm.layers.activations import activation
from tfllm.models import hf_config as hf

Variant = Literal["llama", "mistral", "qwen2", "qwen3"]
FULL, SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True)
class Config:
    """The shape of one decoder; the defaults are near SmolLM2 with 135M parameters."""

    variant: Variant = "llama"
    """Under which name Hugging Face knows the graph."""
    vocabulary_size: int = 49152
    num_layers: int = 30
    num_heads: int = 9
    num_key_value_heads: int = 0
    """Heads of keys and values, each shared by as many queries; 0 is `num_heads`."""
    hidden_dim: int = 576
    intermediate_dim: int = 1536
    head_dim: int = 0
    """Width of one head; 0 is hidden_dim / num_heads."""
    max_sequence_length: int = 8192
    """Tokens."""
    rope_theta: float = 10000.0
    """Base of the wavelengths of rotary positions."""
    rope_scaling: Mapping[str, Any] = field(default_factory=dict)
    """Hugging Face's table: rope_type, factor, ...; empty is none. See `layers.rotary`."""
    sliding_window: int = 0
    """How many tokens a layer looks back, itself included; 0 is to the start."""
    layer_types: tuple[str, ...] = ()
    """`full_attention` or `sliding_attention` for each layer; empty: all use `sliding_window`."""
    activation: str = "silu"
    layer_norm_epsilon: float = 1e-5
    attention_dropout: float = 0.0
    qkv_bias: bool = False
    output_bias: bool = False
    query_key_norm: bool = False
    tie_embeddings: bool = True
    """Whether the token embeddings also give the logits."""
    initializer_range: float = 0.02
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            known = did_you_mean(self.variant, VARIANTS)
            raise SettingError(f"There is no variant '{self.variant}' of llama. {known}")
        for name in ("vocabulary_size", "num_layers", "num_heads", "hidden_dim"):
            if getattr(self, name) < 1:
                raise SettingError(f"{name} is {getattr(self, name)}; it must be 1 or more.")
        for name, value in (
            ("num_key_value_heads", self.num_heads),
            ("head_dim", self.hidden_dim // self.num_heads),
        ):
            if not getattr(self, name):
                object.__setattr__(self, name, value)
        kinds = tuple(self.layer_types) if self.sliding_window else ()
        window = 0 if kinds and set(kinds) == {FULL} else self.sliding_window
        object.__setattr__(self, "sliding_window", window)
        object.__setattr__(self, "layer_types", kinds if len(set(kinds)) > 1 else ())
        object.__setattr__(self, "rope_scaling", rotary.standard(self.rope_scaling))
        self._check()

    def _check(self) -> None:
        if self.num_heads % self.num_key_value_heads:
            raise SettingError(
                f"num_heads {self.num_heads} cannot share {self.num_key_value_heads} heads of keys "
                "and values equally; choose a num_key_value_heads that divides num_heads."
            )
        if self.head_dim % 2:
            raise SettingError(f"head_dim is {self.head_dim}; rotary positions need an even one.")
        if len(self.layer_types) not in (0, self.num_layers):
            raise SettingError(
                f"layer_types names {len(self.layer_types)} layers, and num_layers is "
                f"{self.num_layers}. Name every layer, or none."
            )
        for kind in self.layer_types:
            if kind not in (FULL, SLIDING):
                known = did_you_mean(kind, (FULL, SLIDING))
                raise SettingError(f"layer_types: there is no '{kind}'. {known}")
        rotary.frequencies(
            self.head_dim, self.rope_theta, self.rope_scaling, self.max_sequence_length
        )
        activation(self.activation)


def windows(config: Config) -> tuple[int | None, ...]:
    """How many tokens each layer looks back, itself included; None is to the start."""
    kinds = config.layer_types or (SLIDING,) * config.num_layers
    return tuple(config.sliding_window or None if kind == SLIDING else None for kind in kinds)


# What transformers takes where a key is not written.
SEVEN_BILLION = {
    "vocabulary_size": 32000, "num_layers": 32, "num_heads": 32, "num_key_value_heads": 0,
    "hidden_dim": 4096, "intermediate_dim": 11008, "max_sequence_length": 2048,
    "layer_norm_epsilon": 1e-6, "tie_embeddings": False,
}  # fmt: skip
QWEN = {
    **SEVEN_BILLION, "vocabulary_size": 151936, "intermediate_dim": 22016,
    "max_sequence_length": 32768,
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "llama": SEVEN_BILLION,
    "mistral": {
        **SEVEN_BILLION, "num_key_value_heads": 8, "intermediate_dim": 14336,
        "max_sequence_length": 131072,
    },
    "qwen2": {**QWEN, "qkv_bias": True},
    "qwen3": {**QWEN, "head_dim": 128, "query_key_norm": True},
}  # fmt: skip
MODEL_TYPES = tuple(VARIANTS)
"""Hugging Face's names for what this file builds."""

# Config field: Hugging Face key.
KEYS = {
    "vocabulary_size": "vocab_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_key_value_heads": "num_key_value_heads",
    "hidden_dim": "hidden_size",
    "intermediate_dim": "intermediate_size",
    "head_dim": "head_dim",
    "max_sequence_length": "max_position_embeddings",
    "activation": "hidden_act",
    "layer_norm_epsilon": "rms_norm_eps",
    "attention_dropout": "attention_dropout",
    "tie_embeddings": "tie_word_embeddings",
    "initializer_range": "initializer_range",
    "pad_token_id": "pad_token_id",
}
REFUSED: hf.Refused = (
    ("mlp_bias", False, "biases in the feed-forward part"),
    ("partial_rotary_factor", 1.0, "heads that are rotated in part"),
)


def from_hf(hf_config: Mapping[str, Any]) -> Config:
    """The config for a Hugging Face `config.json`. Raises CheckpointError for another graph."""
    variant = hf_config["model_type"]
    rope = _rope(hf_config)
    for table in (rope, hf_config):
        hf.refuse(table, variant, REFUSED)
    fields = hf.fields_of(hf_config, KEYS, VARIANTS[variant])
    hf.check_number("qkv_bias", hf_config.get("attention_bias"), "attention_bias")
    if hf_config.get("attention_bias") and variant in ("llama", "qwen3"):
        fields |= {"qkv_bias": True, "output_bias": True}
    if rotary.kind_of(rope) == "yarn" and "factor" in rope and rope["factor"] is None:
        longest = fields["max_sequence_length"]
        rope["factor"] = longest / (rope.get("original_max_position_embeddings") or longest)
    fields["rope_theta"] = rope.pop("rope_theta", None) or 10000.0
    fields["rope_scaling"] = rope
    fields |= _windows(hf_config, variant, fields["num_layers"])
    return hf.built(Config, {"variant": variant, **fields})


def _rope(hf_config: Mapping[str, Any]) -> dict[str, Any]:
    """Theta and scaling: `rope_parameters` of transformers 5, or the two keys of transformers 4.

    As transformers 5 has it, `rope_scaling` wins over `rope_parameters`, a theta inside the table
    over one beside it, and the length before scaling beside the table over one inside.
    """
    rope = hf_config.get("rope_scaling") or hf_config.get("rope_parameters") or {}
    if not isinstance(rope, Mapping) or any(isinstance(value, Mapping) for value in rope.values()):
        raise CheckpointError(
            f"config.json: rotary positions {rope!r} are not one table for all layers, which is "
            "what tfllm builds. Use another checkpoint."
        )
    theta = hf_config.get("rope_theta")
    hf.check_number("rope_theta", theta, "rope_theta")
    if theta is not None:
        rope = {"rope_theta": theta, **rope}
    before = hf_config.get("original_max_position_embeddings")
    if before is not None and rotary.kind_of(rope) in ("llama3", "yarn"):
        rope = {**rope, "original_max_position_embeddings": before}
    for key, value in rope.items():
        if not (value is None or isinstance(value, bool | str) or _positive(value)):
            raise CheckpointError(
                f"config.json: {key} of the rotary positions is {value!r}; it must be a finite "
                "number above 0. Correct the key, or copy the file again."
            )
    return dict(rope)


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value > 0


def _windows(hf_config: Mapping[str, Any], variant: str, num_layers: int) -> dict[str, Any]:
    """`sliding_window` and `layer_types`, which the variants put differently."""
    for key in ("sliding_window", "max_window_layers", "use_sliding_window"):
        hf.check_number(key, hf_config.get(key), key)
    if variant == "llama":
        return {}
    window = hf_config.get("sliding_window", 4096) or 0
    if variant == "mistral" or not window:
        return {"sliding_window": window}
    if not hf_config.get("use_sliding_window"):
        return {}
    full = hf_config.get("max_window_layers")
    full = 28 if full is None else full
    kinds = hf_config.get("layer_types") or [
        FULL if i < full else SLIDING for i in range(num_layers)
    ]
    if not isinstance(kinds, list):
        raise CheckpointError(f"config.json: layer_types is {kinds!r}; it must be a list of names.")
    return {"sliding_window": window, "layer_types": tuple(map(str, kinds))}


def to_hf(config: Config) -> dict[str, Any]:
    """The `config.json` of Hugging Face for this shape, without anything about a head.

    Rotary positions are written as transformers 4 and as transformers 5 have them. Raises
    CheckpointError for a graph that the variant has not in Hugging Face.
    """
    written = {key: getattr(config, field) for field, key in KEYS.items()}
    scaling = dict(config.rope_scaling)
    written |= {"rope_theta": config.rope_theta, "rope_scaling": scaling or None}
    written["rope_parameters"] = {
        "rope_type": "default",
        "rope_theta": config.rope_theta,
        **scaling,
    }
    if config.variant == "mistral":
        written["sliding_window"] = config.sliding_window or None
    elif config.variant in ("qwen2", "qwen3"):
        kinds = [FULL if window is None else SLIDING for window in windows(config)]
        written |= {
            "use_sliding_window": SLIDING in kinds,
            "sliding_window": config.sliding_window or None,
            "max_window_layers": kinds.index(SLIDING) if SLIDING in kinds else config.num_layers,
            "layer_types": kinds,
        }
    if config.variant in ("llama", "qwen3"):
        written["attention_bias"] = config.qkv_bias
    written = {"model_type": config.variant, **written}
    if from_hf(written) != config:
        raise CheckpointError(
            f"Hugging Face's {config.variant} has no place for this mixture of biases, norms of "
            "queries and keys, and windows. Keep the model in tfllm's own form."
        )
    return written
