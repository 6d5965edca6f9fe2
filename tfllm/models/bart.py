"""BART (Lewis et al. 2020): the Transformer with learned positions and normalized embeddings.

mBART (Liu et al. 2020; Tang et al. 2020) is pre-norm and scales its embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import keras

from tfllm.errors import SettingError, did_you_mean
from tfllm.layers.projections import truncated_normal
from tfllm.models import encoder_decoder_graph, transformer
from tfllm.models import hf_config as hf
from tfllm.models.encoder_decoder_graph import cross_kv, encode, forward
from tfllm.models.transformer import LOGITS, LOGITS_BIAS, SHARED, TIED, blocks
from tfllm.models.weight_map import WeightMap

__all__ = [
    "MODEL_TYPES", "WEIGHTS", "Config", "backbone", "cross_kv", "encode", "forward", "from_hf",
    "to_hf",
]  # fmt: skip

Variant = Literal["bart", "mbart"]
VARIANTS = ("bart", "mbart")


@dataclass(frozen=True)
class Config(encoder_decoder_graph.SharedWidths):
    """Configuration of an encoder-decoder; the defaults are BART-base."""

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
    """Width inside the feed-forward networks; 0 is four times `hidden_dim`."""
    encoder_intermediate_dim: int = 0
    max_sequence_length: int = 1024
    """Of sources and targets, in tokens; the table has this many learned positions, and two unused.
    """
    activation: str = "gelu"
    scale_embeddings: bool = False
    """Multiplies token embeddings by the square root of `hidden_dim`."""
    tie_embeddings: bool = True
    """Whether the token embeddings are also the output matrix."""
    dropout: float = 0.1
    attention_dropout: float = 0.0
    inner_dropout: float = 0.0
    """Rate inside the feed-forward networks, after the activation."""
    initializer_range: float = 0.02
    pad_token_id: int = 1
    decoder_start_token_id: int = 2
    """The decoder's first input token. mBART's first models: the target language."""

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
        encoder_decoder_graph.fill_defaults(
            self,
            num_encoder_layers=self.num_layers,
            num_encoder_heads=self.num_heads,
            encoder_intermediate_dim=self.intermediate_dim or wide,
            intermediate_dim=wide,
        )
        encoder_decoder_graph.check_heads(self)

    @property
    def pre_norm(self) -> bool:
        """Whether blocks normalize their input (mBART), not their output."""
        return self.variant == "mbart"

    @property
    def source_vocabulary_size(self) -> int:
        """Number of token ids of sources: those of targets."""
        return self.vocabulary_size


def backbone(config: Config) -> keras.Model:
    """Build the model: see `encoder_decoder_graph.backbone`."""
    initializer_range, epsilon = config.initializer_range, config.layer_norm_epsilon
    attention, block = encoder_decoder_graph.biased_options(config, initializer_range)

    def extra(side: str) -> list[keras.layers.Layer]:
        return [
            keras.layers.Embedding(
                config.position_offset + config.max_sequence_length,
                config.hidden_dim,
                embeddings_initializer=truncated_normal(initializer_range),
                name=f"{side}position_embedding",
            ),
            keras.layers.LayerNormalization(epsilon=epsilon, name=f"{side}embedding_norm"),
        ]

    layers = encoder_decoder_graph.create_layers(config, attention, block, initializer_range, extra)
    return encoder_decoder_graph.backbone(layers, config, config.variant)


MODEL_TYPES = VARIANTS
"""Hugging Face's model types that this family builds."""

# Config field: Hugging Face key.
KEYS = {
    "vocabulary_size": "vocab_size",
    **{field: key for field, key in transformer.KEYS.items() if field != "share_embeddings"},
}
# transformers' defaults of keys that are missing.
DEFAULTS = {
    "num_layers": 12, "num_encoder_layers": 12, "num_heads": 16, "num_encoder_heads": 16,
    "hidden_dim": 1024, "intermediate_dim": 4096, "encoder_intermediate_dim": 4096,
}  # fmt: skip
UNSUPPORTED: dict[str, hf.Unsupported] = {
    variant: (
        ("normalize_before", pre_norm, "normalization elsewhere in a block"),
        ("normalize_embedding", True, "plain embeddings"),
        ("add_final_layer_norm", pre_norm, "another final layer"),
        ("static_position_embeddings", False, "sinusoidal positions"),
        ("is_decoder", False, "a decoder without an encoder"),
    )
    for variant, pre_norm in (("bart", False), ("mbart", True))
}


def from_hf(hf_config: Mapping[str, Any]) -> Config:
    """Return the Config for a `config.json`. Raises CheckpointError for an unsupported graph."""
    variant = hf_config["model_type"]
    hf.check_supported(hf_config, variant, UNSUPPORTED[variant])
    return hf.build(Config, {"variant": variant, **hf.config_fields(hf_config, KEYS, DEFAULTS)})


def to_hf(config: Config) -> dict[str, Any]:
    """Return Hugging Face's `config.json`, without the keys of a head."""
    return {
        "model_type": config.variant,
        "is_encoder_decoder": True,
        **{key: getattr(config, field) for field, key in KEYS.items()},
    }


def _weights(*architectures: str) -> WeightMap:
    return WeightMap(
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
