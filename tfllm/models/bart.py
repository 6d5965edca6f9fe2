"""BART (Lewis et al. 2020): the Transformer with learned positions and normalised embeddings.

mBART (Liu et al. 2020; Tang et al. 2020) is pre-norm and scales its embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import keras

from tfllm.errors import SettingError, did_you_mean
from tfllm.layers.blocks import normal
from tfllm.models import hf_config as hf
from tfllm.models import transformer, transformer_graph, transformer_layers
from tfllm.models.transformer_graph import cross_kv, encode, forward
from tfllm.models.transformer_weights import LOGITS, LOGITS_BIAS, SHARED, TIED, blocks
from tfllm.models.weight_map import Weights

__all__ = [
    "MODEL_TYPES", "WEIGHTS", "Config", "backbone", "cross_kv", "encode", "forward", "from_hf",
    "to_hf",
]  # fmt: skip

Variant = Literal["bart", "mbart"]
VARIANTS = ("bart", "mbart")


@dataclass(frozen=True)
class Config:
    """The shape of one encoder-decoder; the defaults are BART-base."""

    variant: Variant = "bart"
    """"mbart" is pre-norm, with a last norm."""
    vocabulary_size: int = 50265
    num_layers: int = 6
    """Of the decoder."""
    num_encoder_layers: int = 0
    """0 is `num_layers`, and so for the two below."""
    num_heads: int = 12
    num_encoder_heads: int = 0
    hidden_dim: int = 768
    intermediate_dim: int = 0
    """Width inside the feed-forward parts; 0 is four times `hidden_dim`."""
    encoder_intermediate_dim: int = 0
    max_sequence_length: int = 1024
    """Tokens of a source, and of a target; there are this many learned positions, and two unused.
    """
    activation: str = "gelu"
    scale_embeddings: bool = False
    """Multiplies embeddings by the root of `hidden_dim`."""
    tie_embeddings: bool = True
    """Whether the token embeddings also give the logits."""
    dropout: float = 0.1
    attention_dropout: float = 0.0
    inner_dropout: float = 0.0
    """On the inside of the feed-forward parts."""
    initializer_range: float = 0.02
    pad_token_id: int = 1
    decoder_start_token_id: int = 2
    """The decoder's first token. mBART's first models begin with the target's language instead."""

    share_embeddings: ClassVar[bool] = True
    logits_bias: ClassVar[bool] = True
    position_offset: ClassVar[int] = 2
    logits_scale: ClassVar[float] = 1.0
    layer_norm_epsilon: ClassVar[float] = 1e-5

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            known = did_you_mean(self.variant, VARIANTS)
            raise SettingError(f"There is no variant '{self.variant}' of bart. {known}")
        wide = 4 * self.hidden_dim
        transformer_graph.complete(
            self,
            num_encoder_layers=self.num_layers,
            num_encoder_heads=self.num_heads,
            encoder_intermediate_dim=self.intermediate_dim or wide,
            intermediate_dim=wide,
        )
        transformer_graph.check_heads(self)

    @property
    def pre_norm(self) -> bool:
        return self.variant == "mbart"

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
    def source_vocabulary_size(self) -> int:
        return self.vocabulary_size


def backbone(config: Config) -> keras.Model:
    """See `transformer_graph.backbone`."""
    spread, epsilon = config.initializer_range, config.layer_norm_epsilon
    attention, block = transformer_layers.biased(config, spread)

    def own(side: str) -> list[keras.layers.Layer]:
        return [
            keras.layers.Embedding(
                config.position_offset + config.max_sequence_length,
                config.hidden_dim,
                embeddings_initializer=normal(spread),
                name=f"{side}position_embedding",
            ),
            keras.layers.LayerNormalization(epsilon=epsilon, name=f"{side}embedding_norm"),
        ]

    layers = transformer_layers.layers_of(config, attention, block, spread, own)
    return transformer_graph.backbone(layers, config, config.variant)


MODEL_TYPES = VARIANTS
"""Hugging Face's names for what this file builds."""

# Config field: Hugging Face key.
KEYS = {
    "vocabulary_size": "vocab_size",
    **{field: key for field, key in transformer.KEYS.items() if field != "share_embeddings"},
}
# What transformers takes where a key is not written.
DEFAULTS = {
    "num_layers": 12, "num_encoder_layers": 12, "num_heads": 16, "num_encoder_heads": 16,
    "hidden_dim": 1024, "intermediate_dim": 4096, "encoder_intermediate_dim": 4096,
}  # fmt: skip
REFUSED: dict[str, hf.Refused] = {
    variant: (
        ("normalize_before", pre_norm, "norms elsewhere in a block"),
        ("normalize_embedding", True, "plain embeddings"),
        ("add_final_layer_norm", pre_norm, "another end of its stacks"),
        ("static_position_embeddings", False, "positions as waves"),
        ("is_decoder", False, "a decoder alone"),
    )
    for variant, pre_norm in (("bart", False), ("mbart", True))
}


def from_hf(hf_config: Mapping[str, Any]) -> Config:
    """The config for a Hugging Face `config.json`. Raises CheckpointError for another graph."""
    variant = hf_config["model_type"]
    hf.refuse(hf_config, variant, REFUSED[variant])
    return hf.built(Config, {"variant": variant, **hf.fields_of(hf_config, KEYS, DEFAULTS)})


def to_hf(config: Config) -> dict[str, Any]:
    """The `config.json` of Hugging Face for this shape, without anything about a head."""
    return {
        "model_type": config.variant,
        "is_encoder_decoder": True,
        **{key: getattr(config, field) for field, key in KEYS.items()},
    }


def _weights(*architectures: str) -> Weights:
    return Weights(
        prefix="model.",
        backbone={
            "token_embedding/embeddings": SHARED,
            "encoder_position_embedding/embeddings": "model.encoder.embed_positions.weight",
            "position_embedding/embeddings": "model.decoder.embed_positions.weight",
            **blocks(),
        },
        heads={"seq2seq": LOGITS},
        architectures={"seq2seq": architectures},
        tied=TIED,
        optional=(LOGITS_BIAS,),
    )


WEIGHTS = {
    "bart": _weights("BartForConditionalGeneration", "BartModel"),
    "mbart": _weights("MBartForConditionalGeneration", "MBartModel"),
}
