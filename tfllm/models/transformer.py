"""The Transformer (Vaswani et al. 2017): an encoder-decoder with sinusoidal position embeddings.

Marian's models (Junczys-Dowmunt et al. 2018; OPUS-MT, Tiedemann and Thottingal 2020) are
post-norm, with shared or separate embeddings of source and target, and a bias on the logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import keras

from tfllm.errors import CheckpointError
from tfllm.layers.positions import SinusoidalPositionEmbedding
from tfllm.layers.projections import InitializerRange
from tfllm.models import encoder_decoder_graph
from tfllm.models import hf_config as hf
from tfllm.models.encoder_decoder_graph import cross_kv, encode, forward
from tfllm.models.weight_map import TensorLayout, TensorMap, WeightMap, layer_norm, linear

__all__ = [
    "MODEL_TYPES", "WEIGHTS", "Config", "backbone", "cross_kv", "encode", "forward", "from_hf",
    "to_hf",
]  # fmt: skip


@dataclass(frozen=True)
class Config(encoder_decoder_graph.SharedWidths):
    """Configuration of an encoder-decoder; the defaults are the paper's base model."""

    vocabulary_size: int = 32000
    """Tokens that can be generated."""
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
    """Width inside the feed-forward networks; 0 is four times `hidden_dim`."""
    encoder_intermediate_dim: int = 0
    max_sequence_length: int = 512
    """Of sources and targets, in tokens."""
    activation: str = "relu"
    pre_norm: bool = False
    """Normalizes the input of each part of a block, not its output; a final norm follows."""
    scale_embeddings: bool = True
    """Multiplies token embeddings by the square root of `hidden_dim`."""
    share_embeddings: bool = True
    """Whether source and target share one vocabulary and its embeddings."""
    tie_embeddings: bool = True
    """Whether the target's embeddings are also the output matrix."""
    logits_bias: bool = True
    """Whether logits have a bias."""
    layer_norm_epsilon: float = 1e-5
    dropout: float = 0.1
    attention_dropout: float = 0.0
    inner_dropout: float = 0.0
    """Rate inside the feed-forward networks, after the activation."""
    initializer_range: float = 0.0
    """Standard deviation of new kernels; 0: Glorot's, and for embeddings hidden_dim**-0.5.
    """
    pad_token_id: int = 0
    decoder_start_token_id: int | None = None
    """The decoder's first input token; None is `pad_token_id`."""

    position_offset: ClassVar[int] = 0
    logits_scale: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        wide = 4 * self.hidden_dim
        shared = self.share_embeddings
        encoder_decoder_graph.fill_defaults(
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
        encoder_decoder_graph.check_heads(self)

    @property
    def layout(self) -> str:
        """The key in WEIGHTS."""
        return "marian" if self.share_embeddings else "marian_apart"


def create_layers(config: Config) -> dict[str, keras.layers.Layer]:
    """Create the layers, by name."""
    initializer_range: InitializerRange = config.initializer_range or "glorot"
    attention, block = encoder_decoder_graph.biased_options(config, initializer_range)
    length, width = config.max_sequence_length, config.hidden_dim
    return encoder_decoder_graph.create_layers(
        config,
        attention,
        block,
        config.initializer_range or width**-0.5,
        lambda side: [SinusoidalPositionEmbedding(length, width, name=f"{side}position_embedding")],
    )


def backbone(config: Config) -> keras.Model:
    """Build the model: see `encoder_decoder_graph.backbone`."""
    return encoder_decoder_graph.backbone(create_layers(config), config, "transformer")


MODEL_TYPES = ("marian",)
"""Hugging Face's model types that this family builds."""

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
# transformers' defaults of keys that are missing.
DEFAULTS = {
    "num_layers": 12, "num_encoder_layers": 12, "num_heads": 16, "num_encoder_heads": 16,
    "hidden_dim": 1024, "intermediate_dim": 4096, "encoder_intermediate_dim": 4096,
    "max_sequence_length": 1024, "activation": "gelu", "scale_embeddings": False,
    "initializer_range": 0.02, "pad_token_id": 58100, "decoder_start_token_id": 58100,
}  # fmt: skip
UNSUPPORTED: hf.Unsupported = (
    ("normalize_before", False, "norms before the parts of a block"),
    ("normalize_embedding", False, "normalised embeddings"),
    ("add_final_layer_norm", False, "a last norm"),
    ("static_position_embeddings", True, "learned positions"),
    ("is_decoder", False, "a decoder without an encoder"),
)


def from_hf(hf_config: Mapping[str, Any]) -> Config:
    """Return the Config for a `config.json`. Raises CheckpointError for an unsupported graph."""
    hf.check_supported(hf_config, "marian", UNSUPPORTED)
    fields = hf.config_fields(hf_config, KEYS, DEFAULTS)
    for key in ("vocab_size", "decoder_vocab_size"):
        hf.check_number("vocabulary_size", hf_config.get(key), key)
    read = hf_config.get("vocab_size") or 58101
    apart = fields.get("share_embeddings") is False
    fields["vocabulary_size"] = (hf_config.get("decoder_vocab_size") if apart else None) or read
    return hf.build(Config, {**fields, "source_vocabulary_size": read})


def to_hf(config: Config) -> dict[str, Any]:
    """Return Hugging Face's `config.json`, without the keys of a head.

    Raises:
        CheckpointError: Hugging Face has no such model.
    """
    for field, built, meaning in (
        ("pre_norm", False, "normalises before the parts of a block"),
        ("logits_bias", True, "has no bias on its logits"),
        ("layer_norm_epsilon", 1e-5, "normalises with another epsilon"),
    ):
        if getattr(config, field) != built:
            raise CheckpointError(
                f"Hugging Face's marian has {field} {built!r}, and this model {meaning} "
                f"({field} {getattr(config, field)!r}). Keep it in tfllm's own format."
            )
    return {
        "model_type": "marian",
        "is_encoder_decoder": True,
        "vocab_size": config.source_vocabulary_size,
        "decoder_vocab_size": config.vocabulary_size,
        **{key: getattr(config, field) for field, key in KEYS.items()},
    }


LOGITS_BIAS = "final_logits_bias"
LOGITS = {
    "logits/kernel": TensorLayout("lm_head.weight", 1),
    "token_bias/bias": TensorLayout(LOGITS_BIAS, 1),  # (1, tokens) in the checkpoint
}
SHARED = "model.shared.weight"
TIED = {
    "model.encoder.embed_tokens.weight": SHARED,
    "model.decoder.embed_tokens.weight": SHARED,
    "lm_head.weight": SHARED,
}


def blocks() -> TensorMap:
    """Map all blocks of encoder and decoder, which differ by the cross-attention."""
    rows: dict[str, str | TensorLayout] = {}
    for side, theirs in (("encoder_", "model.encoder"), ("", "model.decoder")):
        ours, layer = f"{side}layer_{{i}}", f"{theirs}.layers.{{i}}"
        for name, short in (("query", "q"), ("key", "k"), ("value", "v")):
            rows |= linear(f"{ours}/attention/{name}", f"{layer}.self_attn.{short}_proj")
        rows |= linear(f"{ours}/attention/attention_output", f"{layer}.self_attn.out_proj")
        rows |= layer_norm(f"{ours}/attention_norm", f"{layer}.self_attn_layer_norm")
        rows |= linear(f"{ours}/up", f"{layer}.fc1") | linear(f"{ours}/down", f"{layer}.fc2")
        rows |= layer_norm(f"{ours}/feedforward_norm", f"{layer}.final_layer_norm")
        rows |= layer_norm(f"{side}embedding_norm", f"{theirs}.layernorm_embedding")
        rows |= layer_norm(f"{side}final_norm", f"{theirs}.layer_norm")
    source = "model.decoder.layers.{i}.encoder_attn"
    rows |= linear("layer_{i}/cross_attention/query", f"{source}.q_proj")
    rows |= linear("layer_{i}/cross_attention/attention_output", f"{source}.out_proj")
    rows |= layer_norm("layer_{i}/cross_norm", f"{source}_layer_norm")
    rows |= linear("cross_{i}/key", f"{source}.k_proj")
    rows |= linear("cross_{i}/value", f"{source}.v_proj")
    return rows


def _marian(embeddings: TensorMap, tied: dict[str, str]) -> WeightMap:
    return WeightMap(
        prefix="model.",
        backbone={**embeddings, **blocks()},
        heads={"seq2seq": LOGITS},
        architectures={"seq2seq": ("MarianMTModel",)},
        tied=tied,
        ignored=("model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight"),
        optional=(LOGITS_BIAS,),
    )


WEIGHTS = {
    "marian": _marian({"token_embedding/embeddings": SHARED}, TIED),
    "marian_apart": _marian(
        {
            "token_embedding/embeddings": "model.decoder.embed_tokens.weight",
            "encoder_token_embedding/embeddings": "model.encoder.embed_tokens.weight",
        },
        {"lm_head.weight": "model.decoder.embed_tokens.weight"},
    ),
}
