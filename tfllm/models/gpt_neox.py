"""GPT-NeoX (Black et al. 2022) and Pythia (Biderman et al. 2023): partly rotated, parallel blocks.

Attention and feed-forward network both read the input of a block, each through a layer norm of its
own, and their outputs are added to it at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import keras

from tfllm.errors import CheckpointError
from tfllm.layers import rotary
from tfllm.layers.causal import CausalBlock
from tfllm.layers.projections import truncated_normal
from tfllm.models import hf_config as hf
from tfllm.models import hf_rope
from tfllm.models.decoder_graph import (
    build_backbone,
    check_equal_heads,
    check_rotary_config,
    forward,
    rotary_dim,
    windows,
)
from tfllm.models.field_limits import check_positive
from tfllm.models.weight_map import WeightMap, decoder_heads, fused, layer_norm, linear

__all__ = ["MODEL_TYPES", "WEIGHTS", "Config", "backbone", "forward", "from_hf", "to_hf", "windows"]

SIZES = ("vocabulary_size", "num_layers", "num_heads", "hidden_dim", "intermediate_dim")


@dataclass(frozen=True)
class Config:
    """Configuration of a decoder; the defaults are Pythia with 160M parameters."""

    vocabulary_size: int = 50304
    num_layers: int = 12
    num_heads: int = 12
    hidden_dim: int = 768
    intermediate_dim: int = 3072
    max_sequence_length: int = 2048
    """Tokens."""
    rope_theta: float = 10000.0
    """Base of the wavelengths of rotary positions."""
    rope_scaling: Mapping[str, Any] = field(default_factory=dict)
    """Hugging Face's table: rope_type, factor, ...; empty is none. See `layers.rotary`."""
    partial_rotary_factor: float = 0.25
    """How much of a head is rotated; the rest is left as it is."""
    parallel_residual: bool = True
    """Whether both parts of a block read its input; if not, one comes after the other."""
    activation: str = "gelu"
    layer_norm_epsilon: float = 1e-5
    dropout: float = 0.0
    """Rate, on the embeddings and on the output of each part of a block."""
    attention_dropout: float = 0.0
    attention_bias: bool = True
    """Whether queries, keys, values and the output of the attention have biases."""
    tie_embeddings: bool = False
    """Whether the token embeddings are also the output matrix."""
    initializer_range: float = 0.02
    pad_token_id: int | None = None
    classifier_pooling: ClassVar[str] = "last"

    def __post_init__(self) -> None:
        check_positive(self, SIZES)
        check_equal_heads(self)
        object.__setattr__(self, "rope_scaling", rotary.normalize_scaling(self.rope_scaling))
        check_rotary_config(self)

    @property
    def num_key_value_heads(self) -> int:
        """Number of heads of keys and values: all."""
        return self.num_heads

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.hidden_dim // self.num_heads


def create_layers(config: Config) -> dict[str, keras.layers.Layer]:
    """Create the layers, by name."""
    initializer_range, epsilon = config.initializer_range, config.layer_norm_epsilon
    attention = {
        "num_heads": config.num_heads,
        "num_key_value_heads": config.num_heads,
        "head_dim": config.head_dim,
        "dropout": config.attention_dropout,
        "qkv_bias": config.attention_bias,
        "output_bias": config.attention_bias,
        "rope_theta": config.rope_theta,
        "rope_scaling": config.rope_scaling,
        "max_sequence_length": config.max_sequence_length,
        "rotary_dim": rotary_dim(config),
        "initializer_range": initializer_range,
        "residual_range": initializer_range,
    }
    layers = [
        keras.layers.ReversibleEmbedding(
            config.vocabulary_size,
            config.hidden_dim,
            embeddings_initializer=truncated_normal(initializer_range),
            name="token_embedding",
        ),
        keras.layers.Dropout(config.dropout, name="embedding_dropout"),
        *(
            CausalBlock(
                attention,
                config.intermediate_dim,
                config.activation,
                "layer",
                epsilon,
                bias=True,
                dropout=config.dropout,
                parallel_residual=config.parallel_residual,
                name=f"layer_{i}",
            )
            for i in range(config.num_layers)
        ),
        keras.layers.LayerNormalization(epsilon=epsilon, name="final_norm"),
    ]
    return {layer.name: layer for layer in layers}


def backbone(config: Config) -> keras.Model:
    """Build the decoder's graph for training; see `decoder_graph.build_backbone`."""
    return build_backbone(create_layers(config), config, windows(config), "gpt_neox")


MODEL_TYPES = ("gpt_neox",)
"""Hugging Face's model types that this family builds."""

# Config field: Hugging Face key.
KEYS = {
    "vocabulary_size": "vocab_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "hidden_dim": "hidden_size",
    "intermediate_dim": "intermediate_size",
    "max_sequence_length": "max_position_embeddings",
    "partial_rotary_factor": "rotary_pct",
    "parallel_residual": "use_parallel_residual",
    "activation": "hidden_act",
    "layer_norm_epsilon": "layer_norm_eps",
    "dropout": "hidden_dropout",
    "attention_dropout": "attention_dropout",
    "attention_bias": "attention_bias",
    "tie_embeddings": "tie_word_embeddings",
    "initializer_range": "initializer_range",
    "pad_token_id": "pad_token_id",
}
# transformers' defaults of keys that are missing: GPT-NeoX with 20B parameters.
DEFAULTS = {
    "vocabulary_size": 50432, "num_layers": 44, "num_heads": 64, "hidden_dim": 6144,
    "intermediate_dim": 24576,
}  # fmt: skip
THETA_KEY = "rotary_emb_base"


def from_hf(hf_config: Mapping[str, Any]) -> Config:
    """Return the Config for a `config.json`. Raises CheckpointError for an unsupported graph."""
    table = hf_rope.read_table(hf_config, THETA_KEY)
    part = table.pop("partial_rotary_factor", None)  # as a theta, it wins over the key beside it
    fields = hf.config_fields(hf_config, KEYS, DEFAULTS)
    if part is not None:
        hf.check_number("partial_rotary_factor", part, "partial_rotary_factor")
        fields["partial_rotary_factor"] = part
    longest = fields.get("max_sequence_length", Config.max_sequence_length)
    return hf.build(Config, {**fields, **hf_rope.rotary_fields(table, longest)})


def to_hf(config: Config) -> dict[str, Any]:
    """Return Hugging Face's `config.json`, without the keys of a head.

    Raises:
        CheckpointError: Hugging Face has no such model.
    """
    result = {
        "model_type": "gpt_neox",
        **{key: getattr(config, name) for name, key in KEYS.items()},
    }
    result |= hf_rope.write_tables(config, THETA_KEY)
    result["rope_parameters"]["partial_rotary_factor"] = config.partial_rotary_factor
    if from_hf(result) != config:
        raise CheckpointError(
            "Hugging Face's gpt_neox does not support these rotary positions. Keep the model in "
            "tfllm's own format."
        )
    return result


# Queries, keys and values of a head stand side by side, head after head.
LAYER = "gpt_neox.layers.{i}"
WEIGHTS = {
    "gpt_neox": WeightMap(
        prefix="gpt_neox.",
        backbone={
            "token_embedding/embeddings": "gpt_neox.embed_in.weight",
            **layer_norm("layer_{i}/attention_norm", f"{LAYER}.input_layernorm"),
            **{
                f"layer_{{i}}/attention/{name}/{ours}": fused(
                    f"{LAYER}.attention.query_key_value.{theirs}", n, 3, inputs
                )
                for n, name in enumerate(("query", "key", "value"))
                for ours, theirs, inputs in (("kernel", "weight", 1), ("bias", "bias", 0))
            },
            **linear("layer_{i}/attention/attention_output", f"{LAYER}.attention.dense"),
            **layer_norm("layer_{i}/feedforward_norm", f"{LAYER}.post_attention_layernorm"),
            **linear("layer_{i}/up", f"{LAYER}.mlp.dense_h_to_4h"),
            **linear("layer_{i}/down", f"{LAYER}.mlp.dense_4h_to_h"),
            **layer_norm("final_norm", "gpt_neox.final_layer_norm"),
        },
        **decoder_heads(
            "embed_out.weight",
            "GPTNeoXForCausalLM",
            "GPTNeoXModel",
            "GPTNeoXForSequenceClassification",
        ),
        tied={"embed_out.weight": "gpt_neox.embed_in.weight"},
        ignored=(f"{LAYER}.attention.bias", f"{LAYER}.attention.masked_bias"),
        grouped_by="num_heads",
    )
}
