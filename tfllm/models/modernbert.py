"""ModernBERT (Warner et al. 2024): a pre-norm encoder with rotary positions and gated layers.

Layers attend to every token, or to those within a window whose rotary positions turn faster. There
are no biases by default, and the first layer does not normalize the attention's input, which is
normalized already. Every head has the masked-LM head's dense layer and norm first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import keras
from keras import ops

from tfllm.errors import CheckpointError, SettingError, did_you_mean
from tfllm.layers import segments
from tfllm.layers.activations import get_activation
from tfllm.layers.causal import CausalBlock
from tfllm.layers.normalization import normalization_layer
from tfllm.layers.projections import truncated_normal
from tfllm.models import hf_config as hf
from tfllm.models.decoder_graph import FULL, SLIDING
from tfllm.models.field_limits import check_positive
from tfllm.models.weight_map import TensorLayout, TensorMap, WeightMap, fused, layer_norm, linear

__all__ = ["WEIGHTS", "Config", "backbone", "from_hf", "to_hf"]

POOLINGS = ("cls", "mean")
SIZES = ("vocabulary_size", "num_layers", "num_heads", "hidden_dim", "intermediate_dim")


@dataclass(frozen=True)
class Config:
    """Configuration of an encoder; the defaults are ModernBERT-base."""

    vocabulary_size: int = 50368
    num_layers: int = 22
    num_heads: int = 12
    hidden_dim: int = 768
    intermediate_dim: int = 1152
    """Width inside the feed-forward network."""
    max_sequence_length: int = 8192
    """Tokens."""
    activation: str = "gelu"
    masked_lm_activation: str = "gelu"
    """Of the dense layer that every head begins with."""
    classifier_pooling: Literal["cls", "mean"] = "cls"
    """What a classifier reads: the first token, or the mean of all."""
    rope_theta: float = 160000.0
    """Base of the wavelengths of rotary positions, in layers without a window."""
    local_rope_theta: float = 10000.0
    """The same in layers with a window."""
    sliding_window: int = 128
    """Tokens around the query, half of them before it, that a layer with a window attends to."""
    layer_types: tuple[str, ...] = ()
    """`full_attention` or `sliding_attention` for each layer; empty: every third is full."""
    norm_bias: bool = False
    """Whether layer normalizations have a bias."""
    qkv_bias: bool = False
    """Whether the attention's projections have biases."""
    feedforward_bias: bool = False
    """Whether the feed-forward projections have biases."""
    head_bias: bool = False
    """Whether the dense layer that every head begins with has a bias."""
    layer_norm_epsilon: float = 1e-5
    embedding_dropout: float = 0.0
    attention_dropout: float = 0.0
    """Rate, on the attention weights and on the attention's output."""
    inner_dropout: float = 0.0
    """Rate, inside the feed-forward network."""
    classifier_dropout: float = 0.0
    """Rate, before a classifier."""
    tie_embeddings: bool = True
    """Whether the masked-LM head's output matrix is the token embeddings."""
    initializer_range: float = 0.02
    pad_token_id: int = 50283

    def __post_init__(self) -> None:
        check_positive(self, SIZES)
        if self.hidden_dim % (2 * self.num_heads):
            raise SettingError(
                f"hidden_dim {self.hidden_dim} cannot be split into {self.num_heads} heads of an "
                "even width, which rotary positions need; choose another num_heads."
            )
        if self.classifier_pooling not in POOLINGS:
            known = did_you_mean(self.classifier_pooling, POOLINGS)
            raise SettingError(f"There is no classifier_pooling '{self.classifier_pooling}'. "
                               f"{known}")  # fmt: skip
        kinds = tuple(self.layer_types) or _pattern(3, self.num_layers)
        if len(kinds) != self.num_layers or not set(kinds) <= {FULL, SLIDING}:
            raise SettingError(
                f"layer_types must name one of '{FULL}' and '{SLIDING}' for each of the "
                f"{self.num_layers} layers."
            )
        object.__setattr__(self, "layer_types", kinds)
        for name in ("activation", "masked_lm_activation"):
            get_activation(getattr(self, name))

    @property
    def transform_before_head(self) -> bool:
        """Every head begins with the masked-LM head's dense layer and norm."""
        return True


def _pattern(period: int, num_layers: int) -> tuple[str, ...]:
    return tuple(SLIDING if i % period else FULL for i in range(num_layers))


def backbone(config: Config) -> keras.Model:
    """Build the encoder.

    Args:
        config: Its configuration.

    Returns:
        A model with inputs `token_ids` and `padding_mask` (0 on padding), int32 (B, T), and hidden
        states (B, T, hidden_dim) as output.
    """
    token_ids = keras.Input((None,), dtype="int32", name="token_ids")
    mask = keras.Input((None,), dtype="int32", name="padding_mask")
    norm = "layer" if config.norm_bias else "layer_scale"

    x = keras.layers.ReversibleEmbedding(
        config.vocabulary_size,
        config.hidden_dim,
        embeddings_initializer=truncated_normal(config.initializer_range),
        name="token_embedding",
    )(token_ids)
    x = normalization_layer(norm, "embedding_norm", config.layer_norm_epsilon)(x)
    x = keras.layers.Dropout(config.embedding_dropout, name="embedding_dropout")(x)

    positions = ops.cumsum(ops.ones_like(token_ids[:1, :]), axis=1) - 1  # (1, T): for every row
    masks = {
        FULL: ops.expand_dims(ops.cast(mask, "bool"), 1),
        SLIDING: segments.window_mask(mask, positions, config.sliding_window // 2),
    }
    for i, kind in enumerate(config.layer_types):
        x, _ = _block(config, i, norm)(x, masks[kind], positions)
    x = normalization_layer(norm, "final_norm", config.layer_norm_epsilon)(x)
    return keras.Model({"token_ids": token_ids, "padding_mask": mask}, x, name="modernbert")


def _block(config: Config, i: int, norm: str) -> CausalBlock:
    kind = config.layer_types[i]
    residual_range = config.initializer_range / (2 * config.num_layers) ** 0.5
    attention = {
        "num_heads": config.num_heads,
        "num_key_value_heads": config.num_heads,
        "head_dim": config.hidden_dim // config.num_heads,
        "dropout": config.attention_dropout,
        "qkv_bias": config.qkv_bias,
        "output_bias": config.qkv_bias,
        "rope_theta": config.rope_theta if kind == FULL else config.local_rope_theta,
        "max_sequence_length": config.max_sequence_length,
        "initializer_range": config.initializer_range,
        "residual_range": residual_range,
    }
    return CausalBlock(
        attention,
        config.intermediate_dim,
        config.activation,
        norm,
        config.layer_norm_epsilon,
        gated=True,
        bias=config.feedforward_bias,
        inner_dropout=config.inner_dropout,
        attention_input_norm=i > 0,
        attention_output_rate=config.attention_dropout,
        name=f"layer_{i}",
    )


# Config field: Hugging Face key.
KEYS = {
    "vocabulary_size": "vocab_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "hidden_dim": "hidden_size",
    "intermediate_dim": "intermediate_size",
    "max_sequence_length": "max_position_embeddings",
    "activation": "hidden_activation",
    "masked_lm_activation": "classifier_activation",
    "classifier_pooling": "classifier_pooling",
    "sliding_window": "local_attention",
    "norm_bias": "norm_bias",
    "qkv_bias": "attention_bias",
    "feedforward_bias": "mlp_bias",
    "head_bias": "classifier_bias",
    "layer_norm_epsilon": "norm_eps",
    "embedding_dropout": "embedding_dropout",
    "attention_dropout": "attention_dropout",
    "inner_dropout": "mlp_dropout",
    "classifier_dropout": "classifier_dropout",
    "tie_embeddings": "tie_word_embeddings",
    "initializer_range": "initializer_range",
    "pad_token_id": "pad_token_id",
}
# Kind of layer: field of its rotary base, and transformers 4's key of it.
THETAS = {
    FULL: ("rope_theta", "global_rope_theta"),
    SLIDING: ("local_rope_theta", "local_rope_theta"),
}
UNSUPPORTED: hf.Unsupported = (
    ("decoder_bias", True, "a bias of the logits"),
    ("rope_scaling", None, "scaled rotary positions"),
)


def from_hf(hf_config: Mapping[str, Any]) -> Config:
    """Return the Config for a `config.json`. Raises CheckpointError for an unsupported graph."""
    hf.check_supported(hf_config, "modernbert", UNSUPPORTED)
    fields = hf.config_fields(hf_config, KEYS, {})
    fields |= _read_rope(hf_config)
    if kinds := hf_config.get("layer_types"):
        if not isinstance(kinds, list):
            raise CheckpointError(f"config.json: layer_types is {kinds!r}; it must be a list.")
        fields["layer_types"] = tuple(map(str, kinds))
    else:
        period = hf_config.get("global_attn_every_n_layers", 3)
        hf.check_number("num_layers", period, "global_attn_every_n_layers")
        fields["layer_types"] = _pattern(period, fields.get("num_layers", Config.num_layers))
    return hf.build(Config, fields)


def _read_rope(hf_config: Mapping[str, Any]) -> dict[str, float]:
    """Read both rotary bases, in the forms of transformers 4 and 5."""
    tables = hf_config.get("rope_parameters") or {}
    if not isinstance(tables, Mapping) or not set(tables) <= set(THETAS):
        raise CheckpointError(
            f"config.json: rope_parameters is {tables!r}; ModernBERT has one table for '{FULL}' "
            f"and one for '{SLIDING}'. Write both, or copy the file again."
        )
    thetas = {}
    for kind, (field, key) in THETAS.items():
        table = tables.get(kind) or {}
        if not isinstance(table, Mapping) or table.get("rope_type", "default") != "default":
            raise CheckpointError(
                f"config.json: rope_parameters of {kind} is {table!r}; tfllm builds modernbert "
                "without scaled rotary positions. Use another checkpoint."
            )
        theta = table.get("rope_theta", hf_config.get(key))
        if theta is not None:
            hf.check_number(field, theta, key if "rope_theta" not in table else "rope_theta")
            thetas[field] = float(theta)
    return thetas


def to_hf(config: Config) -> dict[str, Any]:
    """Return Hugging Face's `config.json`, without the keys of a head."""
    result = {key: getattr(config, field) for field, key in KEYS.items()}
    tables = {
        kind: {"rope_type": "default", "rope_theta": getattr(config, field)}
        for kind, (field, _) in THETAS.items()
    }
    bases = {key: getattr(config, field) for field, key in THETAS.values()}
    periods = (n for n in range(1, config.num_layers + 1)
               if _pattern(n, config.num_layers) == config.layer_types)  # fmt: skip
    if period := next(periods, 0):
        result["global_attn_every_n_layers"] = period
    return {
        "model_type": "modernbert",
        **result,
        "layer_types": list(config.layer_types),
        **bases,
        "rope_parameters": tables,
    }


def _fused(variable: str, tensor: str, part: int, parts: int) -> TensorMap:
    return {
        f"{variable}/kernel": fused(f"{tensor}.weight", part, parts, 1),
        f"{variable}/bias": fused(f"{tensor}.bias", part, parts, 0),
    }


LAYER = "model.layers.{i}"
BACKBONE: TensorMap = {
    "token_embedding/embeddings": "model.embeddings.tok_embeddings.weight",
    **layer_norm("embedding_norm", "model.embeddings.norm"),
    **layer_norm("layer_{i}/attention_norm", f"{LAYER}.attn_norm"),
    **_fused("layer_{i}/attention/query", f"{LAYER}.attn.Wqkv", 0, 3),
    **_fused("layer_{i}/attention/key", f"{LAYER}.attn.Wqkv", 1, 3),
    **_fused("layer_{i}/attention/value", f"{LAYER}.attn.Wqkv", 2, 3),
    **linear("layer_{i}/attention/attention_output", f"{LAYER}.attn.Wo"),
    **layer_norm("layer_{i}/feedforward_norm", f"{LAYER}.mlp_norm"),
    **_fused("layer_{i}/gate", f"{LAYER}.mlp.Wi", 0, 2),
    **_fused("layer_{i}/up", f"{LAYER}.mlp.Wi", 1, 2),
    **linear("layer_{i}/down", f"{LAYER}.mlp.Wo"),
    **layer_norm("final_norm", "model.final_norm"),
}
TRANSFORM: TensorMap = {
    **linear("transform", "head.dense"),
    **layer_norm("transform_norm", "head.norm"),
}
WEIGHTS: dict[str, WeightMap] = {
    "modernbert": WeightMap(
        prefix="model.",
        backbone=BACKBONE,
        heads={
            "embedding": {},
            "classification": {**TRANSFORM, **linear("classifier", "classifier")},
            "token_classification": {**TRANSFORM, **linear("classifier", "classifier")},
            "question_answering": {**TRANSFORM, **linear("span", "classifier")},
            "masked_lm": {
                **TRANSFORM,
                "logits/kernel": TensorLayout("decoder.weight", 1),
                "token_bias/bias": "decoder.bias",
            },
        },
        architectures={
            "embedding": ("ModernBertModel",),
            "classification": ("ModernBertForSequenceClassification",),
            "token_classification": ("ModernBertForTokenClassification",),
            "question_answering": ("ModernBertForQuestionAnswering",),
            "masked_lm": ("ModernBertForMaskedLM",),
        },
        tied={"decoder.weight": "model.embeddings.tok_embeddings.weight"},
    )
}
