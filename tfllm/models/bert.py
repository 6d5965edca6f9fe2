"""BERT (Devlin et al. 2019) and its near kin: post-norm encoders with learned positions.

MiniLM is BERT with fewer, narrower layers. DistilBERT (Sanh et al. 2019) has no token types and no
pooler. ELECTRA (Clark et al. 2020) may embed tokens in fewer dimensions than the layers have.
RoBERTa (Liu et al. 2019) and XLM-R (Conneau et al. 2020) count positions from behind the padding's
number, and have one token type, which is no input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import keras
from keras import ops

from tfllm.errors import SettingError, did_you_mean
from tfllm.layers.activations import activation
from tfllm.layers.attention import EXACT_MASK
from tfllm.layers.blocks import EncoderBlock, normal
from tfllm.layers.positions import PositionEmbedding
from tfllm.models import hf_config as hf
from tfllm.models.bert_weights import WEIGHTS

__all__ = ["MODEL_TYPES", "WEIGHTS", "Config", "backbone", "from_hf", "to_hf"]

Variant = Literal["bert", "distilbert", "electra", "roberta", "xlm-roberta"]
SUMMARY_ACTIVATION = {
    "bert": "tanh", "distilbert": "relu", "electra": "gelu", "roberta": "tanh",
    "xlm-roberta": "tanh",
}  # fmt: skip
ROBERTA = ("roberta", "xlm-roberta")


@dataclass(frozen=True)
class Config:
    """The shape of one encoder; the defaults are BERT-base."""

    variant: Variant = "bert"
    vocabulary_size: int = 30522
    num_layers: int = 12
    num_heads: int = 12
    hidden_dim: int = 768
    intermediate_dim: int = 0
    """Width inside the feed-forward part; 0 is four times `hidden_dim`."""
    max_sequence_length: int = 512
    """Tokens; there are this many learned positions, and for RoBERTa
    pad_token_id + 1 unused ones."""
    embedding_dim: int = 0
    """Width of the embeddings, projected to `hidden_dim` where it differs; 0 is the same."""
    num_segments: int = 2
    """0: the model has no token types; with 0 or 1 it has no such input."""
    activation: str = "gelu"
    layer_norm_epsilon: float = 1e-12
    dropout: float = 0.1
    attention_dropout: float = 0.1
    classifier_dropout: float | None = None
    """Dropout before a classifier; None is the same as `dropout`."""
    summary_activation: str = ""
    """Of the layer on the first token; empty is the variant's own."""
    tie_embeddings: bool = True
    """Whether the token embeddings also tell masked tokens."""
    initializer_range: float = 0.02
    pad_token_id: int = 0

    def __post_init__(self) -> None:
        if self.variant not in SUMMARY_ACTIVATION:
            known = did_you_mean(self.variant, SUMMARY_ACTIVATION)
            raise SettingError(f"There is no variant '{self.variant}' of bert. {known}")
        for name in ("vocabulary_size", "num_layers", "num_heads", "hidden_dim"):
            if getattr(self, name) < 1:
                raise SettingError(f"{name} is {getattr(self, name)}; it must be 1 or more.")
        if self.hidden_dim % self.num_heads:
            raise SettingError(
                f"hidden_dim {self.hidden_dim} cannot be split into {self.num_heads} equal heads; "
                "choose a hidden_dim that num_heads divides."
            )
        for name, value in (
            ("intermediate_dim", 4 * self.hidden_dim),
            ("embedding_dim", self.hidden_dim),
            ("summary_activation", SUMMARY_ACTIVATION[self.variant]),
        ):
            if not getattr(self, name):
                object.__setattr__(self, name, value)
        for name in ("activation", "summary_activation"):
            activation(getattr(self, name))

    @property
    def position_offset(self) -> int:
        """Rows of the table of positions before the first token's."""
        return self.pad_token_id + 1 if self.variant in ROBERTA else 0


def backbone(config: Config, mask_constant: float = EXACT_MASK) -> keras.Model:
    """Token ids (B, T), token types and mask, all int32, to hidden states (B, T, hidden_dim).

    `mask` is 1 where a token counts and 0 on padding. `mask_constant`: see `layers.attention`.
    """
    token_ids = keras.Input((None,), dtype="int32", name="token_ids")
    segment_ids = keras.Input((None,), dtype="int32", name="segment_ids")
    mask = keras.Input((None,), dtype="int32", name="padding_mask")

    x = keras.layers.ReversibleEmbedding(
        config.vocabulary_size,
        config.embedding_dim,
        embeddings_initializer=normal(config.initializer_range),
        name="token_embedding",
    )(token_ids)
    if config.num_segments:
        x = x + keras.layers.Embedding(
            config.num_segments,
            config.embedding_dim,
            embeddings_initializer=normal(config.initializer_range),
            name="type_embedding",
        )(segment_ids if config.num_segments > 1 else ops.zeros_like(token_ids))
    x = PositionEmbedding(
        config.max_sequence_length,
        config.initializer_range,
        config.position_offset,
        name="position_embedding",
    )(x)
    x = keras.layers.LayerNormalization(epsilon=config.layer_norm_epsilon, name="embedding_norm")(x)
    x = keras.layers.Dropout(config.dropout, name="embedding_dropout")(x)
    if config.embedding_dim != config.hidden_dim:
        x = keras.layers.Dense(
            config.hidden_dim,
            kernel_initializer=normal(config.initializer_range),
            name="embedding_projection",
        )(x)

    attention_mask = ops.expand_dims(ops.cast(mask, "bool"), 1)  # (B, 1, T): for every query
    for i in range(config.num_layers):
        x = EncoderBlock(
            config.num_heads,
            config.intermediate_dim,
            config.activation,
            config.layer_norm_epsilon,
            config.dropout,
            config.attention_dropout,
            config.initializer_range,
            mask_constant,
            name=f"layer_{i}",
        )(x, attention_mask=attention_mask)

    inputs = {"token_ids": token_ids, "segment_ids": segment_ids, "padding_mask": mask}
    if config.num_segments < 2:
        del inputs["segment_ids"]
    return keras.Model(inputs, x, name=config.variant)


MODEL_TYPES = tuple(SUMMARY_ACTIVATION)
"""Hugging Face's names for what this file builds."""

# Config field: Hugging Face key, for each variant.
COMMON_KEYS = {
    "vocabulary_size": "vocab_size",
    "max_sequence_length": "max_position_embeddings",
    "initializer_range": "initializer_range",
    "tie_embeddings": "tie_word_embeddings",
    "pad_token_id": "pad_token_id",
}
BERT_KEYS = {
    **COMMON_KEYS,
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "hidden_dim": "hidden_size",
    "intermediate_dim": "intermediate_size",
    "num_segments": "type_vocab_size",
    "activation": "hidden_act",
    "layer_norm_epsilon": "layer_norm_eps",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "classifier_dropout": "classifier_dropout",
}
KEYS = {
    "bert": BERT_KEYS,
    "electra": {**BERT_KEYS, "embedding_dim": "embedding_size"},
    "roberta": BERT_KEYS,
    "xlm-roberta": BERT_KEYS,
    "distilbert": {
        **COMMON_KEYS,
        "num_layers": "n_layers",
        "num_heads": "n_heads",
        "hidden_dim": "dim",
        "intermediate_dim": "hidden_dim",
        "activation": "activation",
        "dropout": "dropout",
        "attention_dropout": "attention_dropout",
        "classifier_dropout": "seq_classif_dropout",
    },
}
# What transformers takes where a key is not written, other than BERT-base's numbers.
DEFAULTS: dict[str, dict[str, Any]] = {
    "bert": {},
    "electra": {
        "num_heads": 4,
        "hidden_dim": 256,
        "intermediate_dim": 1024,
        "embedding_dim": 128,
    },
    "distilbert": {"num_layers": 6, "num_segments": 0, "classifier_dropout": 0.2},
    "roberta": {"vocabulary_size": 50265, "pad_token_id": 1},
    "xlm-roberta": {"pad_token_id": 1},
}
REFUSED: hf.Refused = (
    ("position_embedding_type", "absolute", "relative positions"),
    ("is_decoder", False, "decoding"),
    ("add_cross_attention", False, "cross-attention"),
)


def from_hf(hf_config: Mapping[str, Any]) -> Config:
    """The config for a Hugging Face `config.json`. Raises CheckpointError for another graph."""
    variant = hf_config["model_type"]
    hf.refuse(hf_config, variant, REFUSED)
    fields = hf.fields_of(hf_config, KEYS[variant], DEFAULTS[variant])
    if variant in ROBERTA and isinstance(rows := fields.get("max_sequence_length", 512), int):
        fields["max_sequence_length"] = rows - fields["pad_token_id"] - 1
    return hf.built(Config, {"variant": variant, **fields})


def to_hf(config: Config) -> dict[str, Any]:
    """The `config.json` of Hugging Face for this shape, without anything about a head."""
    keys = KEYS[config.variant]
    written = {key: getattr(config, field) for field, key in keys.items()}
    if config.variant == "distilbert" and config.classifier_dropout is None:
        written["seq_classif_dropout"] = config.dropout  # this key may not be null
    if config.variant in ROBERTA:
        written["max_position_embeddings"] += config.position_offset
    return {"model_type": config.variant, **written}
