"""Llama (Touvron et al. 2023) and its relatives: pre-norm decoders with rotary positions.

Llama 2 and 3, SmolLM2 and TinyLlama are one graph. Mistral (Jiang et al. 2023) has a sliding
window; Qwen2 (Yang et al. 2024) has biases on queries, keys and values; Qwen3 (2025) normalizes
queries and keys instead. SmolLM3 (2025) does not rotate in every fourth layer. Granite 3 (IBM 2024)
scales embeddings, scores, residual connections and logits. OLMo 2 (2024) normalizes the output of
each part of a block, not its input, and all queries and all keys of a token at once. Phi-3 and
Phi-4-mini (Microsoft 2024) store queries, keys and values as one matrix, and gate and up as one.
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
from tfllm.models import hf_rope
from tfllm.models.decoder_graph import (
    FULL,
    SLIDING,
    build_backbone,
    check_rotary_config,
    forward,
    rotary_dim,
)
from tfllm.models.field_limits import check_positive
from tfllm.models.weight_map import (
    TensorLayout,
    WeightMap,
    decoder_heads,
    fused,
    linear,
    rms_norm,
)

__all__ = ["MODEL_TYPES", "WEIGHTS", "Config", "backbone", "forward", "from_hf", "to_hf", "windows"]

Variant = Literal["llama", "mistral", "qwen2", "qwen3", "smollm3", "granite", "olmo2", "phi3"]


SIZES = ("vocabulary_size", "num_layers", "num_heads", "hidden_dim", "intermediate_dim")


@dataclass(frozen=True)
class Config:
    """Configuration of a decoder; the defaults are near SmolLM2 with 135M parameters."""

    variant: Variant = "llama"
    """Hugging Face's model type."""
    vocabulary_size: int = 49152
    num_layers: int = 30
    num_heads: int = 9
    num_key_value_heads: int = 0
    """Heads of keys and values (grouped-query attention); 0 is `num_heads`."""
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
    partial_rotary_factor: float = 1.0
    """How much of a head is rotated (Phi-4-mini); the rest is left as it is."""
    sliding_window: int = 0
    """How many tokens a layer attends to, the query included; 0: to the start."""
    layer_types: tuple[str, ...] = ()
    """`full_attention` or `sliding_attention` for each layer; empty: all use `sliding_window`."""
    rotary_layers: tuple[bool, ...] = ()
    """Whether each layer has rotary positions; empty: all have. SmolLM3: all but every fourth."""
    activation: str = "silu"
    layer_norm_epsilon: float = 1e-5
    dropout: float = 0.0
    """Rate, on the output of each part of a block."""
    attention_dropout: float = 0.0
    qkv_bias: bool = False
    output_bias: bool = False
    query_key_norm: bool = False
    embedding_scale: float = 1.0
    """Multiplies the token embeddings (Granite)."""
    query_scale: float = 0.0
    """Multiplies the scores of the attention; 0: 1 / sqrt(head_dim)."""
    residual_scale: float = 1.0
    """Multiplies the output of each part of a block before the sum."""
    logits_scale: float = 1.0
    """Multiplies the logits."""
    tie_embeddings: bool = True
    """Whether the token embeddings are also the output matrix."""
    initializer_range: float = 0.02
    pad_token_id: int | None = None
    classifier_pooling: ClassVar[str] = "last"

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            known = did_you_mean(self.variant, VARIANTS)
            raise SettingError(f"There is no variant '{self.variant}' of llama. {known}")
        check_positive(self, SIZES)
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
        object.__setattr__(self, "rope_scaling", rotary.normalize_scaling(self.rope_scaling))
        rotates = tuple(map(bool, self.rotary_layers))
        if len(rotates) not in (0, self.num_layers):
            raise SettingError(
                f"rotary_layers names {len(rotates)} layers, and num_layers is {self.num_layers}. "
                "Name every layer, or none."
            )
        object.__setattr__(self, "rotary_layers", () if all(rotates) else rotates)
        check_rotary_config(self)


def windows(config: Config) -> tuple[int | None, ...]:
    """Return how many tokens each layer attends to, the query included; None: to the start."""
    kinds = config.layer_types or (SLIDING,) * config.num_layers
    return tuple(config.sliding_window or None if kind == SLIDING else None for kind in kinds)


def create_layers(config: Config) -> dict[str, keras.layers.Layer]:
    """Create the layers, by name."""
    initializer_range, epsilon = config.initializer_range, config.layer_norm_epsilon
    attention = {
        "num_heads": config.num_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "dropout": config.attention_dropout,
        "qkv_bias": config.qkv_bias,
        "output_bias": config.output_bias,
        "norm_epsilon": epsilon if config.query_key_norm else 0.0,
        "norm_whole": config.variant == "olmo2",
        "query_scale": config.query_scale,
        "rope_scaling": config.rope_scaling,
        "max_sequence_length": config.max_sequence_length,
        "rotary_dim": rotary_dim(config) if config.partial_rotary_factor != 1.0 else 0,
        "initializer_range": initializer_range,
        "residual_range": initializer_range,
    }
    embedding = ScaledEmbedding(
        config.vocabulary_size,
        config.hidden_dim,
        scale=config.embedding_scale,
        embeddings_initializer=truncated_normal(initializer_range),
        name="token_embedding",
    )
    rotates = config.rotary_layers or (True,) * config.num_layers
    blocks = [
        CausalBlock(
            {**attention, "rope_theta": config.rope_theta if rotates[i] else 0.0},
            config.intermediate_dim,
            config.activation,
            "rms",
            epsilon,
            gated=True,
            dropout=config.dropout,
            input_norms=config.variant != "olmo2",
            output_norms=config.variant == "olmo2",
            residual_scale=config.residual_scale,
            name=f"layer_{i}",
        )
        for i in range(config.num_layers)
    ]
    final = normalization_layer("rms", "final_norm", epsilon)
    return {layer.name: layer for layer in (embedding, *blocks, final)}


def backbone(config: Config) -> keras.Model:
    """Build the decoder's graph for training; see `decoder_graph.build_backbone`."""
    return build_backbone(create_layers(config), config, windows(config), config.variant)


# transformers' defaults of keys that are missing.
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
    "smollm3": {
        **SEVEN_BILLION, "vocabulary_size": 128256, "num_layers": 36, "num_heads": 16,
        "num_key_value_heads": 4, "hidden_dim": 2048, "max_sequence_length": 32768,
        "tie_embeddings": True,
    },
    "granite": {**SEVEN_BILLION, "query_scale": 1.0},
    "olmo2": {
        **SEVEN_BILLION, "vocabulary_size": 50304, "layer_norm_epsilon": 1e-5,
        "query_key_norm": True,
    },
    "phi3": {
        **SEVEN_BILLION, "vocabulary_size": 32064, "hidden_dim": 3072, "intermediate_dim": 8192,
        "max_sequence_length": 4096, "layer_norm_epsilon": 1e-5,
    },
}  # fmt: skip
MODEL_TYPES = tuple(VARIANTS)
"""Hugging Face's model types that this family builds."""

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
GRANITE_KEYS = {
    "embedding_scale": "embedding_multiplier",
    "query_scale": "attention_multiplier",
    "residual_scale": "residual_multiplier",
    "logits_scale": "logits_scaling",  # its inverse
}
PHI3_KEYS = {"dropout": "resid_pdrop", "partial_rotary_factor": "partial_rotary_factor"}
OWN_KEYS = {"granite": GRANITE_KEYS, "phi3": PHI3_KEYS}
BIASES = ("llama", "qwen3", "smollm3", "granite", "olmo2")
"""Variants where `attention_bias` decides about all four biases of the attention."""
THETA = {"smollm3": 2e6}  # of transformers, where it is not 10,000
NO_ROPE_INTERVAL = 4
UNSUPPORTED: hf.Unsupported = (
    ("mlp_bias", False, "biases in the feed-forward network"),
    ("lm_head_bias", False, "a bias of the logits"),
)
PARTLY_ROTATED: hf.Unsupported = (("partial_rotary_factor", 1.0, "partly rotated heads"),)
PHI3_LENGTH = 4096  # tokens of the first phase of training, where config.json names none


def from_hf(hf_config: Mapping[str, Any]) -> Config:
    """Return the Config for a `config.json`. Raises CheckpointError for an unsupported graph."""
    variant = hf_config["model_type"]
    if variant == "phi3":
        hf_config = _with_phi3_rope(hf_config)
    rope = hf_rope.read_table(hf_config)
    unsupported = UNSUPPORTED if variant == "phi3" else UNSUPPORTED + PARTLY_ROTATED
    for table in (rope, hf_config):
        hf.check_supported(table, variant, unsupported)
    keys = {**KEYS, **OWN_KEYS.get(variant, {})}
    fields = hf.config_fields(hf_config, keys, VARIANTS[variant])
    if fields.get("logits_scale"):
        fields["logits_scale"] = 1.0 / fields["logits_scale"]
    hf.check_number("qkv_bias", hf_config.get("attention_bias"), "attention_bias")
    if hf_config.get("attention_bias") and variant in BIASES:
        fields |= {"qkv_bias": True, "output_bias": True}
    if variant == "phi3" and (part := rope.pop("partial_rotary_factor", None)):
        fields["partial_rotary_factor"] = part
    longest = fields["max_sequence_length"]
    fields |= hf_rope.rotary_fields(rope, longest, THETA.get(variant, 10000.0))
    fields |= _read_windows(hf_config, variant, fields["num_layers"])
    if variant == "smollm3":
        fields["rotary_layers"] = _read_rotary_layers(hf_config, fields["num_layers"])
    return hf.build(Config, {"variant": variant, **fields})


def _with_phi3_rope(hf_config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return Phi-3's `config.json` with the one name that LongRoPE has now, and its length."""
    table = hf_config.get("rope_scaling") or hf_config.get("rope_parameters") or {}
    kind = rotary.rope_type(table) if isinstance(table, Mapping) else "default"
    if kind in ("su", "yarn"):
        table = {**table, "rope_type": hf_rope.LONGROPE}
    elif kind not in ("default", hf_rope.LONGROPE):
        raise CheckpointError(
            f"config.json: rotary positions of the kind '{kind}' are none of Phi-3's, which are "
            f"'default' and '{hf_rope.LONGROPE}'. Use a checkpoint with one of these."
        )
    original = hf_config.get("original_max_position_embeddings") or PHI3_LENGTH
    return {
        **hf_config, "rope_scaling": table, "original_max_position_embeddings": original,
    }  # fmt: skip


def _read_rotary_layers(hf_config: Mapping[str, Any], num_layers: int) -> tuple[bool, ...]:
    """Read which layers of SmolLM3 have rotary positions."""
    rotates = hf_config.get("no_rope_layers")
    interval = hf_config.get("no_rope_layer_interval", NO_ROPE_INTERVAL)
    hf.check_number("no_rope_layer_interval", interval, "no_rope_layer_interval")
    if rotates is None:
        rotates = [(i + 1) % interval != 0 for i in range(num_layers)]
    if not isinstance(rotates, list):
        raise CheckpointError(f"config.json: no_rope_layers is {rotates!r}; it must be a list.")
    return tuple(map(bool, rotates[:num_layers]))


def _read_windows(hf_config: Mapping[str, Any], variant: str, num_layers: int) -> dict[str, Any]:
    """Read `sliding_window` and `layer_types`, which differ between variants."""
    for key in ("sliding_window", "max_window_layers", "use_sliding_window"):
        hf.check_number(key, hf_config.get(key), key)
    if variant in ("llama", "granite", "olmo2"):
        return {}
    window = hf_config.get("sliding_window", 0 if variant == "phi3" else 4096) or 0
    if variant in ("mistral", "phi3") or not window:
        return {"sliding_window": window}
    if not hf_config.get("use_sliding_window"):
        return {}
    if variant == "smollm3":
        rotates = _read_rotary_layers(hf_config, num_layers)
        default = [FULL if rotary_layer else SLIDING for rotary_layer in rotates]
        return {"sliding_window": window, "layer_types": _kinds(hf_config, default)}
    full = hf_config.get("max_window_layers")
    full = 28 if full is None else full
    default = [FULL if i < full else SLIDING for i in range(num_layers)]
    return {"sliding_window": window, "layer_types": _kinds(hf_config, default)}


def _kinds(hf_config: Mapping[str, Any], default: list[str]) -> tuple[str, ...]:
    """Read `layer_types`."""
    kinds = hf_config.get("layer_types") or default
    if not isinstance(kinds, list):
        raise CheckpointError(f"config.json: layer_types is {kinds!r}; it must be a list of names.")
    return tuple(map(str, kinds))


def to_hf(config: Config) -> dict[str, Any]:
    """Return the `config.json` of Hugging Face for this shape, without anything about a head.

    Rotary positions are result in the forms of transformers 4 and 5.

    Raises:
        CheckpointError: Hugging Face has no such model.
    """
    result = {key: getattr(config, field) for field, key in KEYS.items()}
    result |= hf_rope.write_tables(config)
    kinds = [FULL if window is None else SLIDING for window in windows(config)]
    window = config.sliding_window or None
    if config.variant in ("mistral", "phi3"):
        result["sliding_window"] = window
    elif config.variant in ("qwen2", "qwen3", "smollm3"):
        result |= {
            "use_sliding_window": SLIDING in kinds, "sliding_window": window, "layer_types": kinds,
        }  # fmt: skip
    if config.variant in ("qwen2", "qwen3"):
        first = kinds.index(SLIDING) if SLIDING in kinds else config.num_layers
        result["max_window_layers"] = first
    elif config.variant == "smollm3":
        rotates = config.rotary_layers or (True,) * config.num_layers
        result["no_rope_layers"] = list(map(int, rotates))
    elif config.variant == "granite":
        result |= {key: getattr(config, field) for field, key in GRANITE_KEYS.items()}
        result["logits_scaling"] = 1.0 / config.logits_scale
        result["attention_multiplier"] = config.query_scale or config.head_dim**-0.5
    elif config.variant == "phi3":
        result |= {key: getattr(config, field) for field, key in PHI3_KEYS.items()}
        result["rope_parameters"]["partial_rotary_factor"] = config.partial_rotary_factor
    if config.variant in BIASES:
        result["attention_bias"] = config.qkv_bias
    result = {"model_type": config.variant, **result}
    if from_hf(result) != config:
        raise CheckpointError(
            f"Hugging Face's {config.variant} does not support these biases, norms of "
            "queries and keys, scales and windows. Keep the model in tfllm's own format."
        )
    return result


def _weights(
    *architectures: str, fused_rows: Mapping[str, TensorLayout] | None = None, **names: str
) -> WeightMap:
    """One map for all: a model has no variables for the entries that its variant lacks.

    Args:
        architectures: As in `config.json`.
        fused_rows: Rows in place of Llama's.
        names: Hugging Face's names of norms by ours, where they are not Llama's.
    """
    layer = "model.layers.{i}"
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
            **rms_norm("layer_{i}/feedforward_norm", f"{layer}.post_attention_layernorm"),
            **{
                f"layer_{{i}}/{norm}/scale": f"{layer}.{name}.weight"
                for norm, name in names.items()
            },
            **linear("layer_{i}/gate", f"{layer}.mlp.gate_proj"),
            **linear("layer_{i}/up", f"{layer}.mlp.up_proj"),
            **linear("layer_{i}/down", f"{layer}.mlp.down_proj"),
            **rms_norm("final_norm", "model.norm"),
            **(fused_rows or {}),
        },
        **decoder_heads("lm_head.weight", *architectures),
        tied={"lm_head.weight": "model.embed_tokens.weight"},
    )


def _classes(name: str) -> tuple[str, str, str]:
    """Return Hugging Face's classes of a model: with logits, without a head, with a classifier."""
    return f"{name}ForCausalLM", f"{name}Model", f"{name}ForSequenceClassification"


FUSED = {
    f"layer_{{i}}/{name}/kernel": fused(f"model.layers.{{i}}.{tensor}.weight", n, len(names), 1)
    for tensor, names in (
        ("self_attn.qkv_proj", ("attention/query", "attention/key", "attention/value")),
        ("mlp.gate_up_proj", ("gate", "up")),
    )
    for n, name in enumerate(names)
}
WEIGHTS = {
    "llama": _weights(*_classes("Llama")),
    "mistral": _weights(*_classes("Mistral")),
    "qwen2": _weights(*_classes("Qwen2")),
    "qwen3": _weights(*_classes("Qwen3")),
    "smollm3": _weights(*_classes("SmolLM3")),
    "granite": _weights("GraniteForCausalLM", "GraniteModel"),
    "olmo2": _weights(
        "Olmo2ForCausalLM",
        "Olmo2Model",
        attention_output_norm="post_attention_layernorm",
        feedforward_output_norm="post_feedforward_layernorm",
    ),
    "phi3": _weights(*_classes("Phi3"), fused_rows=FUSED),
}
