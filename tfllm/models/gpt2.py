"""GPT-2 (Radford et al. 2019): a pre-norm decoder with learned positions.

DistilGPT2 is GPT-2 with six layers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras

from tfllm.errors import SettingError
from tfllm.layers import segments
from tfllm.layers.activations import activation
from tfllm.layers.blocks import normal
from tfllm.layers.causal import Cache, CausalBlock, KeysAndValues, run_blocks
from tfllm.models import hf_config as hf
from tfllm.models.weight_map import Row, Weights, norm, part

__all__ = ["MODEL_TYPES", "WEIGHTS", "Config", "backbone", "forward", "from_hf", "to_hf", "windows"]


@dataclass(frozen=True)
class Config:
    """The shape of one decoder; the defaults are GPT-2 with 124M parameters."""

    vocabulary_size: int = 50257
    num_layers: int = 12
    num_heads: int = 12
    hidden_dim: int = 768
    intermediate_dim: int = 0
    """Width inside the feed-forward part; 0 is four times `hidden_dim`."""
    max_sequence_length: int = 1024
    """Tokens; there are this many learned positions."""
    activation: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    dropout: float = 0.1
    embedding_dropout: float = 0.1
    attention_dropout: float = 0.1
    tie_embeddings: bool = True
    """Whether the token embeddings also give the logits."""
    initializer_range: float = 0.02
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        for name in ("vocabulary_size", "num_layers", "num_heads", "hidden_dim"):
            if getattr(self, name) < 1:
                raise SettingError(f"{name} is {getattr(self, name)}; it must be 1 or more.")
        if self.hidden_dim % self.num_heads:
            raise SettingError(
                f"hidden_dim {self.hidden_dim} cannot be split into {self.num_heads} equal heads; "
                "choose a hidden_dim that num_heads divides."
            )
        if not self.intermediate_dim:
            object.__setattr__(self, "intermediate_dim", 4 * self.hidden_dim)
        activation(self.activation)

    @property
    def num_key_value_heads(self) -> int:
        return self.num_heads

    @property
    def head_dim(self) -> int:
        return self.hidden_dim // self.num_heads


def layers_of(config: Config) -> dict[str, keras.layers.Layer]:
    """New layers by name."""
    spread = config.initializer_range
    attention = {
        "num_heads": config.num_heads,
        "num_key_value_heads": config.num_heads,
        "head_dim": config.head_dim,
        "dropout": config.attention_dropout,
        "qkv_bias": True,
        "output_bias": True,
        "initializer_range": spread,
        # Each block adds two results to its input: their sum keeps its size (section 2.3).
        "residual_range": spread / math.sqrt(2 * config.num_layers),
    }
    made = [
        keras.layers.ReversibleEmbedding(
            config.vocabulary_size,
            config.hidden_dim,
            embeddings_initializer=normal(spread),
            name="token_embedding",
        ),
        keras.layers.Embedding(
            config.max_sequence_length,
            config.hidden_dim,
            embeddings_initializer=normal(spread),
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
    return {layer.name: layer for layer in made}


def forward(
    layers: Mapping[str, keras.layers.Layer],
    config: Config,
    token_ids: Any,
    positions: Any,
    allowed: Any,
    cache: tuple[Cache, ...] | None = None,
) -> tuple[Any, tuple[KeysAndValues, ...]]:
    """Ids and positions int32 (B, S) to hidden states (B, S, D), and the new keys and values.

    `allowed`: boolean (B, S, C + S), or one per layer. `cache`: see `models.decoder`.
    """
    x = layers["token_embedding"](token_ids) + layers["position_embedding"](positions)
    x = layers["embedding_dropout"](x)
    x, new = run_blocks(layers, config.num_layers, x, positions, allowed, cache)
    return layers["final_norm"](x), new


def windows(config: Config) -> tuple[int | None, ...]:
    """Every layer looks back to the start."""
    return (None,) * config.num_layers


def backbone(config: Config) -> keras.Model:
    """Token ids and mask, int32 (B, T), to hidden states (B, T, hidden_dim) after the final norm.

    `mask` numbers the segments of a row: see `layers.segments`.
    """
    token_ids = keras.Input((None,), dtype="int32", name="token_ids")
    mask = keras.Input((None,), dtype="int32", name="padding_mask")
    hidden, _ = forward(
        layers_of(config),
        config,
        token_ids,
        segments.positions(mask),
        segments.attention_mask(mask),
    )
    return keras.Model({"token_ids": token_ids, "padding_mask": mask}, hidden, name="gpt2")


MODEL_TYPES = ("gpt2",)
"""Hugging Face's names for what this file builds."""

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
REFUSED: hf.Refused = (
    ("scale_attn_weights", True, "unscaled attention"),
    ("scale_attn_by_inverse_layer_idx", False, "attention scaled by the layer's number"),
    ("add_cross_attention", False, "cross-attention"),
)


def from_hf(hf_config: Mapping[str, Any]) -> Config:
    """The config for a Hugging Face `config.json`. Raises CheckpointError for another graph."""
    hf.refuse(hf_config, "gpt2", REFUSED)
    return hf.built(Config, hf.fields_of(hf_config, KEYS, {}))


def to_hf(config: Config) -> dict[str, Any]:
    """The `config.json` of Hugging Face for this shape, without anything about a head."""
    return {"model_type": "gpt2", **{key: getattr(config, field) for field, key in KEYS.items()}}


# Its matrices are stored as (inputs, outputs), as Keras has them; queries, keys and values in one.
LAYER = "transformer.h.{i}"
WEIGHTS = {
    "gpt2": Weights(
        prefix="transformer.",
        backbone={
            "token_embedding/embeddings": "transformer.wte.weight",
            "position_embedding/embeddings": "transformer.wpe.weight",
            **norm("layer_{i}/attention_norm", f"{LAYER}.ln_1"),
            **{
                f"layer_{{i}}/attention/{name}/{ours}": part(f"{LAYER}.attn.c_attn.{theirs}", n, 3)
                for n, name in enumerate(("query", "key", "value"))
                for ours, theirs in (("kernel", "weight"), ("bias", "bias"))
            },
            "layer_{i}/attention/attention_output/kernel": f"{LAYER}.attn.c_proj.weight",
            "layer_{i}/attention/attention_output/bias": f"{LAYER}.attn.c_proj.bias",
            **norm("layer_{i}/feedforward_norm", f"{LAYER}.ln_2"),
            "layer_{i}/up/kernel": f"{LAYER}.mlp.c_fc.weight",
            "layer_{i}/up/bias": f"{LAYER}.mlp.c_fc.bias",
            "layer_{i}/down/kernel": f"{LAYER}.mlp.c_proj.weight",
            "layer_{i}/down/bias": f"{LAYER}.mlp.c_proj.bias",
            **norm("final_norm", "transformer.ln_f"),
        },
        heads={"causal_lm": {"logits/kernel": Row("lm_head.weight", 1)}},
        architectures={"causal_lm": ("GPT2LMHeadModel", "GPT2Model")},
        tied={"lm_head.weight": "transformer.wte.weight"},
        ignored=(f"{LAYER}.attn.bias", f"{LAYER}.attn.masked_bias"),
    )
}
