"""Gemma 1, 2 and 3 (Gemma Team, 2024 and 2025): decoders with a wide table and offset norms.

All three multiply embeddings by the root of their width and normalize with a gain of 1 + scale.
Gemma 2 normalizes the output of each part too, bounds scores and logits, and alternates layers with
a sliding window and without. Gemma 3 normalizes queries and keys instead of bounding scores, and
has five layers with a window, whose rotary positions turn faster, for one without.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import keras

from tfllm.errors import CheckpointError, SettingError, did_you_mean
from tfllm.layers import rotary
from tfllm.layers.causal import CausalBlock
from tfllm.layers.embeddings import ScaledEmbedding
from tfllm.layers.normalization import normalization_layer
from tfllm.layers.projections import truncated_normal
from tfllm.models import hf_config as hf
from tfllm.models.decoder_graph import (
    FULL,
    SLIDING,
    build_backbone,
    check_rotary_config,
    forward,
)
from tfllm.models.field_limits import check_positive
from tfllm.models.weight_map import WeightMap, decoder_heads, linear, rms_norm

__all__ = ["MODEL_TYPES", "WEIGHTS", "Config", "backbone", "forward", "from_hf", "to_hf", "windows"]

Variant = Literal["gemma", "gemma2", "gemma3_text"]
# Every so manieth layer has no window where config.json does not name the kind of each layer.
PATTERN = {"gemma": 1, "gemma2": 2, "gemma3_text": 6}


SIZES = (
    "vocabulary_size", "num_layers", "num_heads", "num_key_value_heads", "hidden_dim",
    "intermediate_dim", "head_dim",
)  # fmt: skip


@dataclass(frozen=True)
class Config:
    """Configuration of a decoder; the defaults are Gemma 3 with 270M parameters."""

    variant: Variant = "gemma3_text"
    """Hugging Face's model type."""
    vocabulary_size: int = 262144
    num_layers: int = 18
    num_heads: int = 4
    num_key_value_heads: int = 1
    """Heads of keys and values (grouped-query attention)."""
    hidden_dim: int = 640
    intermediate_dim: int = 2048
    head_dim: int = 256
    """Width of one head."""
    max_sequence_length: int = 32768
    """Tokens."""
    query_scalar: float = 256.0
    """Scores are divided by the root of this number; Gemma 1: `head_dim`."""
    attention_softcap: float = 0.0
    """Bound of the scores; 0: none."""
    logits_softcap: float = 0.0
    """Bound of the logits; 0: none."""
    rope_theta: float = 1e6
    """Base of the wavelengths of rotary positions, in layers without a window."""
    local_rope_theta: float = 1e4
    """The same in layers with a window; Gemma 1 and 2: `rope_theta`."""
    rope_scaling: Mapping[str, Any] = field(default_factory=dict)
    """Hugging Face's table for layers without a window; empty is none. See `layers.rotary`."""
    sliding_window: int = 512
    """How many tokens a layer with a window attends to, the query included."""
    layer_types: tuple[str, ...] = ()
    """`full_attention` or `sliding_attention` for each layer; empty: by the variant's pattern."""
    activation: str = "gelu_pytorch_tanh"
    layer_norm_epsilon: float = 1e-6
    attention_dropout: float = 0.0
    tie_embeddings: bool = True
    """Whether the token embeddings are also the output matrix."""
    initializer_range: float = 0.02
    pad_token_id: int | None = None
    classifier_pooling: ClassVar[str] = "last"

    def __post_init__(self) -> None:
        if self.variant not in PATTERN:
            known = did_you_mean(self.variant, PATTERN)
            raise SettingError(f"There is no variant '{self.variant}' of gemma. {known}")
        check_positive(self, SIZES)
        if self.variant == "gemma":
            object.__setattr__(self, "query_scalar", float(self.head_dim))
        if self.variant != "gemma3_text":
            object.__setattr__(self, "local_rope_theta", self.rope_theta)
        kinds = tuple(self.layer_types) or _pattern(self.variant, self.num_layers)
        if self.variant == "gemma" or not self.sliding_window:
            kinds = (FULL,) * self.num_layers
        object.__setattr__(self, "layer_types", kinds)
        if SLIDING not in kinds:
            object.__setattr__(self, "sliding_window", 0)
        object.__setattr__(self, "rope_scaling", rotary.normalize_scaling(self.rope_scaling))
        check_rotary_config(self)


def _pattern(variant: str, num_layers: int) -> tuple[str, ...]:
    period = PATTERN[variant]
    return tuple(FULL if (i + 1) % period == 0 else SLIDING for i in range(num_layers))


def windows(config: Config) -> tuple[int | None, ...]:
    """Return how many tokens each layer attends to, the query included; None: to the start."""
    return tuple(config.sliding_window if k == SLIDING else None for k in config.layer_types)


def create_layers(config: Config) -> dict[str, keras.layers.Layer]:
    """Create the layers, by name."""
    initializer_range, epsilon = config.initializer_range, config.layer_norm_epsilon
    attention = {
        "num_heads": config.num_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "dropout": config.attention_dropout,
        "norm_epsilon": epsilon if config.variant == "gemma3_text" else 0.0,
        "norm": "rms_offset",
        "max_sequence_length": config.max_sequence_length,
        "initializer_range": initializer_range,
        "residual_range": initializer_range,
        "query_scale": config.query_scalar**-0.5,
        "softcap": config.attention_softcap,
    }
    positions: dict[str, dict[str, Any]] = {
        FULL: {"rope_theta": config.rope_theta, "rope_scaling": config.rope_scaling},
        SLIDING: {"rope_theta": config.local_rope_theta},
    }
    embedding = ScaledEmbedding(
        config.vocabulary_size,
        config.hidden_dim,
        scale=config.hidden_dim**0.5,
        embeddings_initializer=truncated_normal(initializer_range),
        name="token_embedding",
    )
    blocks = [
        CausalBlock(
            {**attention, **positions[kind]},
            config.intermediate_dim,
            config.activation,
            "rms_offset",
            epsilon,
            gated=True,
            output_norms=config.variant != "gemma",
            name=f"layer_{i}",
        )
        for i, kind in enumerate(config.layer_types)
    ]
    final = normalization_layer("rms_offset", "final_norm", epsilon)
    return {layer.name: layer for layer in (embedding, *blocks, final)}


def backbone(config: Config) -> keras.Model:
    """Build the decoder's graph for training; see `decoder_graph.build_backbone`."""
    return build_backbone(create_layers(config), config, windows(config), config.variant)


# transformers' defaults of keys that are missing.
_GEMMA = {
    "vocabulary_size": 256000, "num_layers": 28, "num_heads": 16, "num_key_value_heads": 16,
    "hidden_dim": 3072, "intermediate_dim": 24576, "head_dim": 256, "max_sequence_length": 8192,
}  # fmt: skip
_GEMMA2 = {
    **_GEMMA, "num_layers": 26, "num_heads": 8, "num_key_value_heads": 4, "hidden_dim": 2304,
    "intermediate_dim": 9216, "sliding_window": 4096, "attention_softcap": 50.0,
    "logits_softcap": 30.0,
}  # fmt: skip
_GEMMA3 = {
    **_GEMMA2, "vocabulary_size": 262208, "max_sequence_length": 131072, "attention_softcap": 0.0,
    "logits_softcap": 0.0,
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "gemma": _GEMMA, "gemma2": _GEMMA2, "gemma3_text": _GEMMA3,
}  # fmt: skip
MODEL_TYPES = tuple(VARIANTS)
"""Hugging Face's model types that this family builds."""
THETA = {"gemma": 1e4, "gemma2": 1e4, "gemma3_text": 1e6}
LOCAL_THETA = 1e4

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
    "query_scalar": "query_pre_attn_scalar",
    "attention_softcap": "attn_logit_softcapping",
    "logits_softcap": "final_logit_softcapping",
    "sliding_window": "sliding_window",
    "activation": "hidden_activation",
    "layer_norm_epsilon": "rms_norm_eps",
    "attention_dropout": "attention_dropout",
    "tie_embeddings": "tie_word_embeddings",
    "initializer_range": "initializer_range",
    "pad_token_id": "pad_token_id",
}
UNSUPPORTED: hf.Unsupported = (
    ("attention_bias", False, "biases in the attention"),
    ("use_bidirectional_attention", False, "attention to later tokens"),
    ("partial_rotary_factor", 1.0, "partly rotated heads"),
)
# Keys that only some variants have.
ONLY = {
    "query_pre_attn_scalar": ("gemma2", "gemma3_text"),
    "attn_logit_softcapping": ("gemma2", "gemma3_text"),
    "final_logit_softcapping": ("gemma2", "gemma3_text"),
    "sliding_window": ("gemma2", "gemma3_text"),
}


def from_hf(hf_config: Mapping[str, Any]) -> Config:
    """Return the Config for a `config.json`. Raises CheckpointError for an unsupported graph."""
    variant = hf_config["model_type"]
    hf.check_supported(hf_config, variant, UNSUPPORTED)
    keys = {name: key for name, key in KEYS.items() if variant in ONLY.get(key, (variant,))}
    fields = hf.config_fields(hf_config, keys, VARIANTS[variant])
    for name in ("attention_softcap", "logits_softcap"):
        key = KEYS[name]
        if key in keys.values() and key in hf_config and hf_config[key] is None:
            fields[name] = 0.0  # null is none, a missing key is the default
    if variant == "gemma":
        fields |= {"query_scalar": float(fields["head_dim"]), "sliding_window": 0}
    fields |= _read_rope(hf_config, variant)
    if kinds := hf_config.get("layer_types"):
        if not isinstance(kinds, list):
            raise CheckpointError(f"config.json: layer_types is {kinds!r}; it must be a list.")
        fields["layer_types"] = tuple(map(str, kinds))
    elif pattern := hf_config.get(
        "sliding_window_pattern", hf_config.get("_sliding_window_pattern")
    ):
        hf.check_number("num_layers", pattern, "sliding_window_pattern")
        fields["layer_types"] = tuple(
            FULL if (i + 1) % pattern == 0 else SLIDING for i in range(fields["num_layers"])
        )
    return hf.build(Config, {"variant": variant, **fields})


def _read_rope(hf_config: Mapping[str, Any], variant: str) -> dict[str, Any]:
    """Read thetas and scaling, in the forms of transformers 4 and 5."""
    table = hf_config.get("rope_parameters") or {}
    if not isinstance(table, Mapping):
        raise CheckpointError(f"config.json: rope_parameters is {table!r}; it must be a table.")
    if variant == "gemma3_text" and table and FULL not in table:
        raise CheckpointError(
            "config.json: rope_parameters is one table for all layers; Gemma 3 has one for "
            f"'{FULL}' and one for '{SLIDING}'. Write both, or copy the file again."
        )
    full = dict(table.get(FULL, table))
    local = dict(table.get(SLIDING) or {})
    theta = hf_config.get("rope_theta", full.pop("rope_theta", None)) or THETA[variant]
    local_theta = hf_config.get("rope_local_base_freq", local.pop("rope_theta", None))
    if variant != "gemma3_text":
        local_theta = theta
    hf.check_number("rope_theta", theta, "rope_theta")
    hf.check_number("local_rope_theta", local_theta, "rope_local_base_freq")
    if rotary.rope_type(local) != "default":
        raise CheckpointError(
            "config.json: rotary positions of layers with a window are scaled, which tfllm does "
            "not build. Use another checkpoint."
        )
    scaling = hf_config.get("rope_scaling") or full
    return {
        "rope_theta": float(theta),
        "local_rope_theta": float(local_theta or LOCAL_THETA),
        "rope_scaling": {key: value for key, value in scaling.items() if key != "rope_theta"},
    }


def to_hf(config: Config) -> dict[str, Any]:
    """Return Hugging Face's `config.json` for this shape, without anything about a head.

    Raises:
        CheckpointError: Hugging Face has no such model.
    """
    result = {
        key: getattr(config, name)
        for name, key in KEYS.items()
        if config.variant in ONLY.get(key, (config.variant,))
    }
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if key in result:
            result[key] = result[key] or None
    scaling = dict(config.rope_scaling)
    full = {"rope_type": "default", "rope_theta": config.rope_theta, **scaling}
    result["rope_theta"] = config.rope_theta
    if config.variant == "gemma3_text":
        local = {"rope_type": "default", "rope_theta": config.local_rope_theta}
        result |= {
            "rope_local_base_freq": config.local_rope_theta,
            "rope_scaling": scaling or None,
            "rope_parameters": {FULL: full, SLIDING: local},
        }
    else:
        result["rope_parameters"] = full
    if config.variant != "gemma":
        result["layer_types"] = list(config.layer_types)
    if not config.sliding_window:
        result.pop("sliding_window", None)
    result = {"model_type": config.variant, "hidden_act": config.activation, **result}
    if from_hf(result) != config:
        raise CheckpointError(
            f"Hugging Face's {config.variant} does not support these bounds, windows and rotary "
            "positions. Keep the model in tfllm's own format."
        )
    return result


def _weights(variant: str, *architectures: str) -> WeightMap:
    layer = "model.layers.{i}"
    before_feedforward = (
        "post_attention_layernorm" if variant == "gemma" else "pre_feedforward_layernorm"
    )
    output_norms = (
        {}
        if variant == "gemma"
        else {
            **rms_norm("layer_{i}/attention_output_norm", f"{layer}.post_attention_layernorm"),
            **rms_norm("layer_{i}/feedforward_output_norm", f"{layer}.post_feedforward_layernorm"),
        }
    )
    return WeightMap(
        prefix="model.",
        backbone={
            "token_embedding/embeddings": "model.embed_tokens.weight",
            **rms_norm("layer_{i}/attention_norm", f"{layer}.input_layernorm"),
            **linear("layer_{i}/attention/query", f"{layer}.self_attn.q_proj"),
            **linear("layer_{i}/attention/key", f"{layer}.self_attn.k_proj"),
            **linear("layer_{i}/attention/value", f"{layer}.self_attn.v_proj"),
            **linear("layer_{i}/attention/attention_output", f"{layer}.self_attn.o_proj"),
            **rms_norm("layer_{i}/attention/query_norm", f"{layer}.self_attn.q_norm"),
            **rms_norm("layer_{i}/attention/key_norm", f"{layer}.self_attn.k_norm"),
            **rms_norm("layer_{i}/feedforward_norm", f"{layer}.{before_feedforward}"),
            **output_norms,
            **linear("layer_{i}/gate", f"{layer}.mlp.gate_proj"),
            **linear("layer_{i}/up", f"{layer}.mlp.up_proj"),
            **linear("layer_{i}/down", f"{layer}.mlp.down_proj"),
            **rms_norm("final_norm", "model.norm"),
        },
        **decoder_heads("lm_head.weight", *architectures),
        tied={"lm_head.weight": "model.embed_tokens.weight"},
    )


WEIGHTS = {
    "gemma": _weights("gemma", "GemmaForCausalLM", "GemmaModel", "GemmaForSequenceClassification"),
    "gemma2": _weights(
        "gemma2", "Gemma2ForCausalLM", "Gemma2Model", "Gemma2ForSequenceClassification"
    ),
    "gemma3_text": _weights(
        "gemma3_text",
        "Gemma3ForCausalLM",
        "Gemma3TextModel",
        "Gemma3TextForSequenceClassification",
    ),
}
