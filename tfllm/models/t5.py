"""T5 (Raffel et al. 2020): a pre-norm encoder-decoder with relative positions and no biases.

T5 1.1 and Flan-T5 (Chung et al. 2022) gate the feed-forward network and have an output matrix; mT5
(Xue et al. 2021) is T5 1.1 with another vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import keras

from tfllm.errors import CheckpointError, SettingError, did_you_mean
from tfllm.layers.relative import RelativePositionBias
from tfllm.models import encoder_decoder_graph
from tfllm.models import hf_config as hf
from tfllm.models.encoder_decoder_graph import ENCODER, cross_kv, encode, forward
from tfllm.models.weight_map import TensorLayout, TensorMap, WeightMap, rms_norm

__all__ = [
    "MODEL_TYPES", "WEIGHTS", "Config", "backbone", "cross_kv", "encode", "forward", "from_hf",
    "to_hf",
]  # fmt: skip

Variant = Literal["t5", "mt5"]
VARIANTS = ("t5", "mt5")


@dataclass(frozen=True)
class Config:
    """Configuration of an encoder-decoder; the defaults are T5-small."""

    variant: Variant = "t5"
    """Hugging Face's model type."""
    vocabulary_size: int = 32128
    num_layers: int = 6
    """Of the decoder."""
    num_encoder_layers: int = 0
    """0 is `num_layers`."""
    num_heads: int = 8
    head_dim: int = 0
    """Width of one head; 0 is hidden_dim / num_heads."""
    hidden_dim: int = 512
    intermediate_dim: int = 0
    """Width inside the feed-forward networks; 0 is four times `hidden_dim`."""
    max_sequence_length: int = 2048
    """Limit of sources and targets, in tokens; relative positions have none of their own."""
    num_buckets: int = 32
    """Relative position biases per head; see `layers.relative`."""
    max_distance: int = 128
    """Larger distances share one bias; in tokens."""
    activation: str = "relu"
    gated: bool = False
    """Multiplies the feed-forward network's activated projection by a linear one (Shazeer 2020).
    """
    tie_embeddings: bool = True
    """Whether the token embeddings are also the output matrix."""
    scale_logits: bool = True
    """Multiplies by hidden_dim**-0.5 before the logits. T5 1.1, Flan-T5 and mT5: false, and
    `tie_embeddings` false too."""
    layer_norm_epsilon: float = 1e-6
    dropout: float = 0.1
    pad_token_id: int = 0
    decoder_start_token_id: int | None = None
    """The decoder's first input token; None is `pad_token_id`."""

    share_embeddings: ClassVar[bool] = True
    scale_embeddings: ClassVar[bool] = False
    pre_norm: ClassVar[bool] = True
    position_offset: ClassVar[int] = 0
    initializer_range: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            known = did_you_mean(self.variant, VARIANTS)
            raise SettingError(f"There is no variant '{self.variant}' of t5. {known}")
        encoder_decoder_graph.fill_defaults(
            self,
            num_encoder_layers=self.num_layers,
            intermediate_dim=4 * self.hidden_dim,
            decoder_start_token_id=self.pad_token_id,
        )
        if not self.head_dim:
            encoder_decoder_graph.check_heads(self)
            object.__setattr__(self, "head_dim", self.hidden_dim // self.num_heads)

    @property
    def num_key_value_heads(self) -> int:
        """Number of heads of keys and values: all."""
        return self.num_heads

    @property
    def num_encoder_heads(self) -> int:
        """Number of attention heads of the encoder: as of the decoder."""
        return self.num_heads

    @property
    def encoder_head_dim(self) -> int:
        """Width of an attention head of the encoder: as of the decoder."""
        return self.head_dim

    @property
    def encoder_intermediate_dim(self) -> int:
        """Width of the encoder's feed-forward layers: as of the decoder."""
        return self.intermediate_dim

    @property
    def source_vocabulary_size(self) -> int:
        """Number of token ids of sources: those of targets."""
        return self.vocabulary_size

    @property
    def logits_scale(self) -> float:
        """Factor of the hidden states before the logits."""
        return self.hidden_dim**-0.5 if self.scale_logits else 1.0

    @property
    def layout(self) -> str:
        """The key in WEIGHTS."""
        return f"{self.variant}_gated" if self.gated else self.variant


def backbone(config: Config) -> keras.Model:
    """Build the model: see `encoder_decoder_graph.backbone`."""
    attention = {
        "dropout": config.dropout,
        "qkv_bias": False,
        "output_bias": False,
        "initializer_range": "fan_in",
        "residual_range": "fan_in",
        "scaled": False,
    }
    block = {
        "activation": config.activation,
        "norm": "rms",
        "norm_epsilon": config.layer_norm_epsilon,
        "gated": config.gated,
        "inner_dropout": config.dropout,
    }

    def extra(side: str) -> list[keras.layers.Layer]:
        return [
            RelativePositionBias(
                config.num_heads,
                config.num_buckets,
                config.max_distance,
                bidirectional=side == ENCODER,
                initializer_range=config.hidden_dim**-0.5,
                name=f"{side}position_bias",
            ),
            keras.layers.Dropout(config.dropout, name=f"{side}final_dropout"),
        ]

    layers = encoder_decoder_graph.create_layers(config, attention, block, 1.0, extra)
    return encoder_decoder_graph.backbone(layers, config, config.variant)


MODEL_TYPES = VARIANTS
"""Hugging Face's model types that this family builds."""

# Config field: Hugging Face key.
KEYS = {
    "vocabulary_size": "vocab_size",
    "num_layers": "num_decoder_layers",
    "num_encoder_layers": "num_layers",
    "num_heads": "num_heads",
    "head_dim": "d_kv",
    "hidden_dim": "d_model",
    "intermediate_dim": "d_ff",
    "num_buckets": "relative_attention_num_buckets",
    "max_distance": "relative_attention_max_distance",
    "layer_norm_epsilon": "layer_norm_epsilon",
    "dropout": "dropout_rate",
    "tie_embeddings": "tie_word_embeddings",
    "pad_token_id": "pad_token_id",
    "decoder_start_token_id": "decoder_start_token_id",
}
# transformers' defaults of keys that are missing.
DEFAULTS: dict[str, dict[str, Any]] = {
    "t5": {"head_dim": 64, "intermediate_dim": 2048},
    "mt5": {
        "vocabulary_size": 250112, "num_encoder_layers": 8, "num_heads": 6, "head_dim": 64,
        "intermediate_dim": 1024,
    },
}  # fmt: skip
FEED_FORWARD = {"t5": "relu", "mt5": "gated-gelu"}
GATED_GELU = (
    "gated-gelu",
    "gelu_new",
)  # not transformers' exact "gelu"
UNSUPPORTED: hf.Unsupported = (("is_decoder", False, "a decoder without an encoder"),)


def from_hf(hf_config: Mapping[str, Any]) -> Config:
    """Return the Config for a `config.json`. Raises CheckpointError for an unsupported graph."""
    variant = hf_config["model_type"]
    hf.check_supported(hf_config, variant, UNSUPPORTED)
    fields = hf.config_fields(hf_config, KEYS, DEFAULTS[variant])
    fields.setdefault("num_layers", fields.get("num_encoder_layers", 6))
    named = str(hf_config.get("feed_forward_proj") or FEED_FORWARD[variant])
    fields["gated"] = named.startswith("gated-")
    fields["activation"] = GATED_GELU[1] if named == GATED_GELU[0] else named.split("-")[-1]
    tied = hf_config.get("tie_word_embeddings") is not False
    fields["scale_logits"] = variant == "t5" and hf_config.get("scale_decoder_outputs", tied)
    # In T5 the key says whether logits are scaled; the tensors say whether they are tied.
    fields["tie_embeddings"] = True
    return hf.build(Config, {"variant": variant, **fields})


def to_hf(config: Config) -> dict[str, Any]:
    """Return Hugging Face's `config.json`, without the keys of a head.

    Raises:
        CheckpointError: Hugging Face has no such model.
    """
    if config.variant == "mt5" and config.scale_logits:
        raise CheckpointError(
            "Hugging Face's mt5 does not scale before the logits, and this model does "
            "(scale_logits). Keep it in tfllm's own format, or make it variant: t5."
        )
    if config.gated and config.activation == "gelu":
        raise CheckpointError(
            "Hugging Face's t5 means gelu_new by a gated gelu, and this model has the exact one. "
            "Keep it in tfllm's own format."
        )
    gate = "gated-" if config.gated else ""
    named = gate + config.activation
    return {
        "model_type": config.variant,
        "is_encoder_decoder": True,
        "feed_forward_proj": GATED_GELU[0] if named == f"gated-{GATED_GELU[1]}" else named,
        **({"scale_decoder_outputs": config.scale_logits} if config.variant == "t5" else {}),
        **{key: getattr(config, field) for field, key in KEYS.items()},
    }


def _weights(gated: bool, *architectures: str) -> WeightMap:
    rows: dict[str, str | TensorLayout] = {"token_embedding/embeddings": "shared.weight"}
    for side, theirs, last in (("encoder_", "encoder", 1), ("", "decoder", 2)):
        ours, block = f"{side}layer_{{i}}", f"{theirs}.block.{{i}}.layer"
        rows |= _attention(f"{ours}/attention/", f"{block}.0.SelfAttention", "qkvo")
        rows |= rms_norm(f"{ours}/attention_norm", f"{block}.0.layer_norm")
        feed = f"{block}.{last}.DenseReluDense"
        names = {"gate": "wi_0", "up": "wi_1"} if gated else {"up": "wi"}
        for name, short in {**names, "down": "wo"}.items():
            rows[f"{ours}/{name}/kernel"] = TensorLayout(f"{feed}.{short}.weight", 1)
        rows |= rms_norm(f"{ours}/feedforward_norm", f"{block}.{last}.layer_norm")
        rows |= rms_norm(f"{side}final_norm", f"{theirs}.final_layer_norm")
        rows[f"{side}position_bias/embeddings"] = (
            f"{theirs}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        )
    source = "decoder.block.{i}.layer.1"
    rows |= _attention("layer_{i}/cross_attention/", f"{source}.EncDecAttention", "qo")
    rows |= _attention("cross_{i}/", f"{source}.EncDecAttention", "kv")
    rows |= rms_norm("layer_{i}/cross_norm", f"{source}.layer_norm")
    return WeightMap(
        prefix="",
        backbone=rows,
        heads={"seq2seq": {"logits/kernel": TensorLayout("lm_head.weight", 1)}},
        architectures={"seq2seq": architectures},
        always_tied=True,
        tied={
            "encoder.embed_tokens.weight": "shared.weight",
            "decoder.embed_tokens.weight": "shared.weight",
            "lm_head.weight": "shared.weight",
        },
        # In the first checkpoints; never used.
        ignored=(f"{source}.EncDecAttention.relative_attention_bias.weight",),
    )


def _attention(ours: str, theirs: str, letters: str) -> TensorMap:
    names = {"q": "query", "k": "key", "v": "value", "o": "attention_output"}
    return {f"{ours}{names[x]}/kernel": TensorLayout(f"{theirs}.{x}.weight", 1) for x in letters}


T5 = ("T5ForConditionalGeneration", "T5WithLMHeadModel", "T5Model")
MT5 = ("MT5ForConditionalGeneration", "MT5Model")
WEIGHTS = {
    "t5": _weights(False, *T5),
    "t5_gated": _weights(True, *T5),
    "mt5": _weights(False, *MT5),
    "mt5_gated": _weights(True, *MT5),
}
