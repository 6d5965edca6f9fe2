"""OPT (Zhang et al. 2022): a decoder with learned positions and ReLU.

OPT-350M normalizes the sum of input and output of each part of a block, has no norm at the end, and
embeddings that are narrower than the blocks. Galactica (Taylor et al. 2022) has GELU and no biases.
"""

from __future__ import annotations

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
from tfllm.models.weight_map import WeightMap, decoder_heads, layer_norm, linear

__all__ = ["MODEL_TYPES", "WEIGHTS", "Config", "backbone", "forward", "from_hf", "to_hf", "windows"]

SIZES = ("vocabulary_size", "num_layers", "num_heads", "hidden_dim", "intermediate_dim")
EPSILON = 1e-5  # of the layer norms; config.json has no key for it


@dataclass(frozen=True)
class Config:
    """Configuration of a decoder; the defaults are OPT with 125M parameters."""

    vocabulary_size: int = 50272
    num_layers: int = 12
    num_heads: int = 12
    hidden_dim: int = 768
    """Width of the blocks."""
    embedding_dim: int = 0
    """Width of the token embeddings and of the final hidden states; 0 is `hidden_dim`."""
    intermediate_dim: int = 3072
    max_sequence_length: int = 2048
    """Tokens; the table has this many learned positions, and two unused."""
    activation: str = "relu"
    pre_norm: bool = True
    """Whether the input of each part of a block is normalized; if not, the sum with its output."""
    bias: bool = True
    """Whether dense layers have biases."""
    dropout: float = 0.1
    """Rate, on the output of each part of a block."""
    attention_dropout: float = 0.0
    tie_embeddings: bool = True
    """Whether the token embeddings are also the output matrix."""
    initializer_range: float = 0.02
    pad_token_id: int | None = 1
    classifier_pooling: ClassVar[str] = "last"
    # Unused rows before the first position's.
    position_offset: ClassVar[int] = 2

    def __post_init__(self) -> None:
        check_positive(self, SIZES)
        check_equal_heads(self)
        if not self.embedding_dim:
            object.__setattr__(self, "embedding_dim", self.hidden_dim)
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
        "qkv_bias": config.bias,
        "output_bias": config.bias,
        "initializer_range": initializer_range,
        "residual_range": initializer_range,
    }
    layers = [
        keras.layers.ReversibleEmbedding(
            config.vocabulary_size,
            config.embedding_dim,
            embeddings_initializer=truncated_normal(initializer_range),
            name="token_embedding",
        ),
        keras.layers.Embedding(
            config.position_offset + config.max_sequence_length,
            config.hidden_dim,
            embeddings_initializer=truncated_normal(initializer_range),
            name="position_embedding",
        ),
        *(
            CausalBlock(
                attention,
                config.intermediate_dim,
                config.activation,
                "layer",
                EPSILON,
                bias=config.bias,
                dropout=config.dropout,
                pre_norm=config.pre_norm,
                name=f"layer_{i}",
            )
            for i in range(config.num_layers)
        ),
    ]
    if config.pre_norm:
        layers.append(keras.layers.LayerNormalization(epsilon=EPSILON, name="final_norm"))
    if config.embedding_dim != config.hidden_dim:
        layers += [
            keras.layers.Dense(
                width,
                use_bias=False,
                kernel_initializer=truncated_normal(initializer_range),
                name=f"{name}_projection",
            )
            for name, width in (("embedding", config.hidden_dim), ("output", config.embedding_dim))
        ]
    return {layer.name: layer for layer in layers}


def backbone(config: Config) -> keras.Model:
    """Build the decoder's graph for training; see `decoder_graph.build_backbone`."""
    return build_backbone(create_layers(config), config, windows(config), "opt")


MODEL_TYPES = ("opt",)
"""Hugging Face's model types that this family builds."""

# Config field: Hugging Face key.
KEYS = {
    "vocabulary_size": "vocab_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "hidden_dim": "hidden_size",
    "embedding_dim": "word_embed_proj_dim",
    "intermediate_dim": "ffn_dim",
    "max_sequence_length": "max_position_embeddings",
    "activation": "activation_function",
    "pre_norm": "do_layer_norm_before",
    "bias": "enable_bias",
    "dropout": "dropout",
    "attention_dropout": "attention_dropout",
    "tie_embeddings": "tie_word_embeddings",
    "initializer_range": "init_std",
    "pad_token_id": "pad_token_id",
}
UNSUPPORTED: hf.Unsupported = (
    ("_remove_final_layer_norm", False, "the norm at the end being left out"),
    ("layer_norm_elementwise_affine", True, "norms that have no weights"),
    ("layerdrop", 0.0, "layers that are left out at random"),
)


def from_hf(hf_config: Mapping[str, Any]) -> Config:
    """Return the Config for a `config.json`. Raises CheckpointError for an unsupported graph."""
    hf.check_supported(hf_config, "opt", UNSUPPORTED)
    return hf.build(Config, hf.config_fields(hf_config, KEYS, {}))


def to_hf(config: Config) -> dict[str, Any]:
    """Return Hugging Face's `config.json`, without the keys of a head."""
    return {"model_type": "opt", **{key: getattr(config, field) for field, key in KEYS.items()}}


LAYER = "model.decoder.layers.{i}"
WEIGHTS = {
    "opt": WeightMap(
        prefix="model.",
        backbone={
            "token_embedding/embeddings": "model.decoder.embed_tokens.weight",
            "position_embedding/embeddings": "model.decoder.embed_positions.weight",
            **linear("embedding_projection", "model.decoder.project_in"),
            **layer_norm("layer_{i}/attention_norm", f"{LAYER}.self_attn_layer_norm"),
            **linear("layer_{i}/attention/query", f"{LAYER}.self_attn.q_proj"),
            **linear("layer_{i}/attention/key", f"{LAYER}.self_attn.k_proj"),
            **linear("layer_{i}/attention/value", f"{LAYER}.self_attn.v_proj"),
            **linear("layer_{i}/attention/attention_output", f"{LAYER}.self_attn.out_proj"),
            **layer_norm("layer_{i}/feedforward_norm", f"{LAYER}.final_layer_norm"),
            **linear("layer_{i}/up", f"{LAYER}.fc1"),
            **linear("layer_{i}/down", f"{LAYER}.fc2"),
            **layer_norm("final_norm", "model.decoder.final_layer_norm"),
            **linear("output_projection", "model.decoder.project_out"),
        },
        **decoder_heads(
            "lm_head.weight", "OPTForCausalLM", "OPTModel", "OPTForSequenceClassification"
        ),
        tied={"lm_head.weight": "model.decoder.embed_tokens.weight"},
    )
}
