"""GPT-2 (Radford et al. 2019): a pre-norm decoder with learned positions.

DistilGPT2 is GPT-2 with six layers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import keras

from tfllm.layers.activations import get_activation
from tfllm.layers.causal import CausalBlock
from tfllm.layers.projections import truncated_normal
from tfllm.models import hf_config as hf
from tfllm.models.decoder_graph import build_backbone, check_equal_heads, forward, windows
from tfllm.models.field_limits import check_positive
from tfllm.models.weight_map import WeightMap, decoder_heads, fused, layer_norm

__all__ = ["MODEL_TYPES", "WEIGHTS", "Config", "backbone", "forward", "from_hf", "to_hf", "windows"]


@dataclass(frozen=True)
class Config:
    """Configuration of a decoder; the defaults are GPT-2 with 124M parameters."""

    vocabulary_size: int = 50257
    num_layers: int = 12
    num_heads: int = 12
    hidden_dim: int = 768
    intermediate_dim: int = 0
    """Width inside the feed-forward network; 0 is four times `hidden_dim`."""
    max_sequence_length: int = 1024
    """Tokens; there are this many learned positions."""
    activation: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    dropout: float = 0.1
    embedding_dropout: float = 0.1
    attention_dropout: float = 0.1
    tie_embeddings: bool = True
    """Whether the token embeddings are also the output matrix."""
    initializer_range: float = 0.02
    pad_token_id: int | None = None
    classifier_pooling: ClassVar[str] = "last"

    def __post_init__(self) -> None:
        check_positive(self, ("vocabulary_size", "num_layers", "num_heads", "hidden_dim"))
        check_equal_heads(self)
        if not self.intermediate_dim:
            object.__setattr__(self, "intermediate_dim", 4 * self.hidden_dim)
        get_activation(self.activation)

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
    initializer_range = config.initializer_range
    attention = {
        "num_heads": config.num_heads,
        "num_key_value_heads": config.num_heads,
        "head_dim": config.head_dim,
        "dropout": config.attention_dropout,
        "qkv_bias": True,
        "output_bias": True,
        "initializer_range": initializer_range,
        # Each block adds two outputs to its input: the sum keeps its variance (section 2.3).
        "residual_range": initializer_range / math.sqrt(2 * config.num_layers),
    }
    layers = [
        keras.layers.ReversibleEmbedding(
            config.vocabulary_size,
            config.hidden_dim,
            embeddings_initializer=truncated_normal(initializer_range),
            name="token_embedding",
        ),
        keras.layers.Embedding(
            config.max_sequence_length,
            config.hidden_dim,
            embeddings_initializer=truncated_normal(initializer_range),
            name="position_embedding",
        ),
        keras.layers.Dropout(config.embedding_dropout, name="embedding_dropout"),
        *(
            CausalBlock(
                attention,
                config.intermediate_dim,
                config.activation,
                "layer",
                config.layer_norm_epsilon,
                bias=True,
                dropout=config.dropout,
                name=f"layer_{i}",
            )
            for i in range(config.num_layers)
        ),
        keras.layers.LayerNormalization(epsilon=config.layer_norm_epsilon, name="final_norm"),
    ]
    return {layer.name: layer for layer in layers}


def backbone(config: Config) -> keras.Model:
    """Build the decoder's graph for training; see `decoder_graph.build_backbone`."""
    return build_backbone(create_layers(config), config, windows(config), "gpt2")


MODEL_TYPES = ("gpt2",)
"""Hugging Face's model types that this family builds."""

# Config field: Hugging Face key.
KEYS = {
    "vocabulary_size": "vocab_size",
    "num_layers": "n_layer",
    "num_heads": "n_head",
    "hidden_dim": "n_embd",
    "intermediate_dim": "n_inner",
    "max_sequence_length": "n_positions",
    "activation": "activation_function",
    "layer_norm_epsilon": "layer_norm_epsilon",
    "dropout": "resid_pdrop",
    "embedding_dropout": "embd_pdrop",
    "attention_dropout": "attn_pdrop",
    "tie_embeddings": "tie_word_embeddings",
    "initializer_range": "initializer_range",
    "pad_token_id": "pad_token_id",
}
UNSUPPORTED: hf.Unsupported = (
    ("scale_attn_weights", True, "unscaled attention"),
    ("scale_attn_by_inverse_layer_idx", False, "attention scaled by the layer's index"),
    ("add_cross_attention", False, "cross-attention"),
)


def from_hf(hf_config: Mapping[str, Any]) -> Config:
    """Return the Config for a `config.json`. Raises CheckpointError for an unsupported graph."""
    hf.check_supported(hf_config, "gpt2", UNSUPPORTED)
    return hf.build(Config, hf.config_fields(hf_config, KEYS, {}))


def to_hf(config: Config) -> dict[str, Any]:
    """Return Hugging Face's `config.json`, without the keys of a head."""
    return {"model_type": "gpt2", **{key: getattr(config, field) for field, key in KEYS.items()}}


# Kernels are stored as (inputs, outputs), as Keras does; queries, keys and values are fused.
LAYER = "transformer.h.{i}"
WEIGHTS = {
    "gpt2": WeightMap(
        prefix="transformer.",
        backbone={
            "token_embedding/embeddings": "transformer.wte.weight",
            "position_embedding/embeddings": "transformer.wpe.weight",
            **layer_norm("layer_{i}/attention_norm", f"{LAYER}.ln_1"),
            **{
                f"layer_{{i}}/attention/{name}/{ours}": fused(f"{LAYER}.attn.c_attn.{theirs}", n, 3)
                for n, name in enumerate(("query", "key", "value"))
                for ours, theirs in (("kernel", "weight"), ("bias", "bias"))
            },
            "layer_{i}/attention/attention_output/kernel": f"{LAYER}.attn.c_proj.weight",
            "layer_{i}/attention/attention_output/bias": f"{LAYER}.attn.c_proj.bias",
            **layer_norm("layer_{i}/feedforward_norm", f"{LAYER}.ln_2"),
            "layer_{i}/up/kernel": f"{LAYER}.mlp.c_fc.weight",
            "layer_{i}/up/bias": f"{LAYER}.mlp.c_fc.bias",
            "layer_{i}/down/kernel": f"{LAYER}.mlp.c_proj.weight",
            "layer_{i}/down/bias": f"{LAYER}.mlp.c_proj.bias",
            **layer_norm("final_norm", "transformer.ln_f"),
        },
        **decoder_heads(
            "lm_head.weight", "GPT2LMHeadModel", "GPT2Model", "GPT2ForSequenceClassification"
        ),
        tied={"lm_head.weight": "transformer.wte.weight"},
        ignored=(f"{LAYER}.attn.bias", f"{LAYER}.attn.masked_bias"),
    )
}
