"""The Transformer (Vaswani et al. 2017): an encoder and a decoder with positions as waves.

Marian's models (Junczys-Dowmunt et al. 2018; OPUS-MT, Tiedemann and Thottingal 2020) are its rows:
post-norm, embeddings of source and target shared or apart, a bias on the logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import keras

from tfllm.errors import CheckpointError
from tfllm.layers.positions import SinusoidalPositionEmbedding
from tfllm.layers.projections import Spread
from tfllm.models import hf_config as hf
from tfllm.models import transformer_graph, transformer_layers
from tfllm.models.transformer_graph import cross_kv, encode, forward
from tfllm.models.transformer_weights import WEIGHTS

__all__ = [
    "MODEL_TYPES", "WEIGHTS", "Config", "backbone", "cross_kv", "encode", "forward", "from_hf",
    "to_hf",
]  # fmt: skip


@dataclass(frozen=True)
class Config:
    """The shape of one encoder-decoder; the defaults are the paper's base model."""

    vocabulary_size: int = 32000
    """Tokens that can be written."""
    source_vocabulary_size: int = 0
    """Tokens that can be read, where `share_embeddings` is off; 0 is `vocabulary_size`."""
    num_layers: int = 6
    """Of the decoder."""
    num_encoder_layers: int = 0
    """0 is `num_layers`, and so for the two below."""
    num_heads: int = 8
    num_encoder_heads: int = 0
    hidden_dim: int = 512
    intermediate_dim: int = 0
    """Width inside the feed-forward parts; 0 is four times `hidden_dim`."""
    encoder_intermediate_dim: int = 0
    max_sequence_length: int = 512
    """Tokens of a source, and of a target."""
    activation: str = "relu"
    pre_norm: bool = False
    """Normalises what goes into each part of a block, not what comes out; a last norm follows."""
    scale_embeddings: bool = True
    """Multiplies embeddings by the root of `hidden_dim`."""
    share_embeddings: bool = True
    """Whether source and target have one vocabulary and one table of embeddings."""
    tie_embeddings: bool = True
    """Whether the target's embeddings also give the logits."""
    logits_bias: bool = True
    """Whether every token has a number that is added to its logit."""
    layer_norm_epsilon: float = 1e-5
    dropout: float = 0.1
    attention_dropout: float = 0.0
    inner_dropout: float = 0.0
    """On the inside of the feed-forward parts."""
    initializer_range: float = 0.0
    """Deviation that matrices start with; 0: by their shape (Glorot), embeddings hidden_dim**-0.5.
    """
    pad_token_id: int = 0
    decoder_start_token_id: int | None = None
    """The decoder's first token; None is `pad_token_id`."""

    position_offset: ClassVar[int] = 0
    logits_scale: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        wide = 4 * self.hidden_dim
        shared = self.share_embeddings
        transformer_graph.complete(
            self,
            source_vocabulary_size=self.vocabulary_size,
            num_encoder_layers=self.num_layers,
            num_encoder_heads=self.num_heads,
            encoder_intermediate_dim=self.intermediate_dim or wide,
            intermediate_dim=wide,
            decoder_start_token_id=self.pad_token_id,
        )
        if shared:
            object.__setattr__(self, "source_vocabulary_size", self.vocabulary_size)
        transformer_graph.check_heads(self)

    @property
    def num_key_value_heads(self) -> int:
        return self.num_heads

    @property
    def head_dim(self) -> int:
        return self.hidden_dim // self.num_heads

    @property
    def encoder_head_dim(self) -> int:
        return self.hidden_dim // self.num_encoder_heads

    @property
    def layout(self) -> str:
        """The key in WEIGHTS."""
        return "marian" if self.share_embeddings else "marian_apart"


def layers_of(config: Config) -> dict[str, keras.layers.Layer]:
    """New layers by name."""
    spread: Spread = config.initializer_range or "glorot"
    attention, block = transformer_layers.biased(config, spread)
    length, width = config.max_sequence_length, config.hidden_dim
    return transformer_layers.layers_of(
        config,
        attention,
        block,
        config.initializer_range or width**-0.5,
        lambda side: [SinusoidalPositionEmbedding(length, width, name=f"{side}position_embedding")],
    )


def backbone(config: Config) -> keras.Model:
    """See `transformer_graph.backbone`."""
    return transformer_graph.backbone(layers_of(config), config, "transformer")


MODEL_TYPES = ("marian",)
"""Hugging Face's names for what this file builds."""

# Config field: Hugging Face key.
KEYS = {
    "num_layers": "decoder_layers",
    "num_encoder_layers": "encoder_layers",
    "num_heads": "decoder_attention_heads",
    "num_encoder_heads": "encoder_attention_heads",
    "hidden_dim": "d_model",
    "intermediate_dim": "decoder_ffn_dim",
    "encoder_intermediate_dim": "encoder_ffn_dim",
    "max_sequence_length": "max_position_embeddings",
    "activation": "activation_function",
    "scale_embeddings": "scale_embedding",
    "share_embeddings": "share_encoder_decoder_embeddings",
    "tie_embeddings": "tie_word_embeddings",
    "dropout": "dropout",
    "attention_dropout": "attention_dropout",
    "inner_dropout": "activation_dropout",
    "initializer_range": "init_std",
    "pad_token_id": "pad_token_id",
    "decoder_start_token_id": "decoder_start_token_id",
}
# What transformers takes where a key is not written.
DEFAULTS = {
    "num_layers": 12, "num_encoder_layers": 12, "num_heads": 16, "num_encoder_heads": 16,
    "hidden_dim": 1024, "intermediate_dim": 4096, "encoder_intermediate_dim": 4096,
    "max_sequence_length": 1024, "activation": "gelu", "scale_embeddings": False,
    "initializer_range": 0.02, "pad_token_id": 58100, "decoder_start_token_id": 58100,
}  # fmt: skip
REFUSED: hf.Refused = (
    ("normalize_before", False, "norms before the parts of a block"),
    ("normalize_embedding", False, "normalised embeddings"),
    ("add_final_layer_norm", False, "a last norm"),
    ("static_position_embeddings", True, "learned positions"),
    ("is_decoder", False, "a decoder alone"),
)


def from_hf(hf_config: Mapping[str, Any]) -> Config:
    """The config for a Hugging Face `config.json`. Raises CheckpointError for another graph."""
    hf.refuse(hf_config, "marian", REFUSED)
    fields = hf.fields_of(hf_config, KEYS, DEFAULTS)
    for key in ("vocab_size", "decoder_vocab_size"):
        hf.check_number("vocabulary_size", hf_config.get(key), key)
    read = hf_config.get("vocab_size") or 58101
    apart = fields.get("share_embeddings") is False
    fields["vocabulary_size"] = (hf_config.get("decoder_vocab_size") if apart else None) or read
    return hf.built(Config, {**fields, "source_vocabulary_size": read})


def to_hf(config: Config) -> dict[str, Any]:
    """The `config.json` of Hugging Face for this shape, without anything about a head. Raises
    CheckpointError for a shape that it has no model for."""
    for field, built, meaning in (
        ("pre_norm", False, "normalises before the parts of a block"),
        ("logits_bias", True, "has no bias on its logits"),
        ("layer_norm_epsilon", 1e-5, "normalises with another epsilon"),
    ):
        if getattr(config, field) != built:
            raise CheckpointError(
                f"Hugging Face's marian has {field} {built!r}, and this model {meaning} "
                f"({field} {getattr(config, field)!r}). Keep it in tfllm's own form."
            )
    return {
        "model_type": "marian",
        "is_encoder_decoder": True,
        "vocab_size": config.source_vocabulary_size,
        "decoder_vocab_size": config.vocabulary_size,
        **{key: getattr(config, field) for field, key in KEYS.items()},
    }
