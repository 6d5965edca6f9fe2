"""BERT (Devlin et al. 2019) and its relatives: post-norm encoders with learned positions.

MiniLM is BERT with fewer, narrower layers. DistilBERT (Sanh et al. 2019) has no segments and no
pooler. ELECTRA (Clark et al. 2020) may embed tokens in fewer dimensions than its hidden states.
RoBERTa (Liu et al. 2019), XLM-R (Conneau et al. 2020) and CamemBERT (Martin et al. 2020) count
positions from the padding id + 1, and have a single segment, which is not an input. MPNet (Song et
al. 2020) has no segments, and a learned bias of the attention by distance, one for all layers.
ALBERT (Lan et al. 2020) has narrow embeddings, and layers that share their weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import keras
from keras import ops

from tfllm.errors import SettingError, did_you_mean
from tfllm.layers.activations import get_activation
from tfllm.layers.attention import EXACT_MASK
from tfllm.layers.blocks import EncoderBlock
from tfllm.layers.positions import PositionEmbedding
from tfllm.layers.projections import truncated_normal
from tfllm.layers.relative import RelativePositionBias
from tfllm.models import hf_config as hf
from tfllm.models.field_limits import check_positive
from tfllm.models.weight_map import TensorLayout, TensorMap, WeightMap, layer_norm, linear

__all__ = ["MODEL_TYPES", "WEIGHTS", "Config", "backbone", "from_hf", "to_hf"]

Variant = Literal[
    "bert", "distilbert", "electra", "roberta", "xlm-roberta", "camembert", "mpnet", "albert"
]  # fmt: skip
SUMMARY_ACTIVATION = {
    "bert": "tanh", "distilbert": "relu", "electra": "gelu", "roberta": "tanh",
    "xlm-roberta": "tanh", "camembert": "tanh", "mpnet": "tanh", "albert": "tanh",
}  # fmt: skip
ROBERTA = ("roberta", "xlm-roberta", "camembert")
DROPOUT_BEFORE_POOLER = ("electra", *ROBERTA, "mpnet")
"""Variants whose classifier drops before its first layer too; their masked-LM head uses GELU."""

MPNET_PAD = 1  # from which MPNet's positions are counted, whatever config.json says
# Variant: buckets of distances with a learned bias each, and the distance of the last one.
POSITION_BUCKETS = {"mpnet": (32, 128)}


@dataclass(frozen=True)
class Config:
    """Configuration of an encoder; the defaults are BERT-base."""

    variant: Variant = "bert"
    vocabulary_size: int = 30522
    num_layers: int = 12
    num_heads: int = 12
    hidden_dim: int = 768
    intermediate_dim: int = 0
    """Width inside the feed-forward network; 0 is four times `hidden_dim`."""
    max_sequence_length: int = 512
    """Tokens; there are this many learned positions, and for RoBERTa
    pad_token_id + 1 unused ones, for MPNet 2."""
    embedding_dim: int = 0
    """Width of the embeddings, projected to `hidden_dim` where it differs (ALBERT: always); 0 is
    the same."""
    num_groups: int = 0
    """Groups of successive layers that share their weights (ALBERT: 1); 0: none share."""
    num_segments: int = 2
    """Such as the two texts of a pair. 0: no segment embeddings; 0 or 1: no such input."""
    activation: str = "gelu"
    layer_norm_epsilon: float = 1e-12
    dropout: float = 0.1
    attention_dropout: float = 0.1
    classifier_dropout: float | None = None
    """Dropout before a classifier; None is the same as `dropout`."""
    summary_activation: str = ""
    """Activation of the pooler; empty is the variant's own."""
    tie_embeddings: bool = True
    """Whether the masked-LM head's output matrix is the token embeddings."""
    initializer_range: float = 0.02
    pad_token_id: int = 0

    def __post_init__(self) -> None:
        if self.variant not in SUMMARY_ACTIVATION:
            known = did_you_mean(self.variant, SUMMARY_ACTIVATION)
            raise SettingError(f"There is no variant '{self.variant}' of bert. {known}")
        check_positive(self, ("vocabulary_size", "num_layers", "num_heads", "hidden_dim"))
        if self.num_groups > self.num_layers:
            raise SettingError(
                f"num_groups {self.num_groups} is more than num_layers {self.num_layers}; a group "
                "has one layer or more."
            )
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
            get_activation(getattr(self, name))

    @property
    def position_offset(self) -> int:
        """Rows of the position table before the first token's."""
        return _position_offset(self.variant, self.pad_token_id)

    @property
    def groups(self) -> tuple[int, ...]:
        """The block of each layer, by its number."""
        blocks = self.num_groups or self.num_layers
        return tuple(i * blocks // self.num_layers for i in range(self.num_layers))

    @property
    def pooler_input_dropout(self) -> bool:
        """Whether a classifier drops before the pooler too."""
        return self.variant in DROPOUT_BEFORE_POOLER

    @property
    def masked_lm_activation(self) -> str:
        """Of the masked-LM head."""
        return "gelu" if self.variant in DROPOUT_BEFORE_POOLER else self.activation


def _position_offset(variant: str, pad_token_id: int) -> int:
    if variant == "mpnet":
        return MPNET_PAD + 1
    return pad_token_id + 1 if variant in ROBERTA else 0


def backbone(config: Config, mask_constant: float = EXACT_MASK) -> keras.Model:
    """Build the encoder.

    Args:
        config: Its configuration.
        mask_constant: See `layers.attention.MultiHeadAttention`.

    Returns:
        A model with inputs `token_ids`, `padding_mask` (0 on padding) and, with two segments or
        more, `segment_ids`, all int32 (B, T), and hidden states (B, T, hidden_dim) as output.
    """
    token_ids = keras.Input((None,), dtype="int32", name="token_ids")
    segment_ids = keras.Input((None,), dtype="int32", name="segment_ids")
    mask = keras.Input((None,), dtype="int32", name="padding_mask")

    x = _embed(config, token_ids, segment_ids)
    attention_mask = ops.expand_dims(ops.cast(mask, "bool"), 1)  # (B, 1, T): for every query
    bias = {}
    if config.variant in POSITION_BUCKETS:
        positions = ops.cumsum(ops.ones_like(token_ids[:1, :]), axis=1)  # (1, T): for every row
        bias["position_bias"] = RelativePositionBias(
            config.num_heads,
            *POSITION_BUCKETS[config.variant],
            initializer_range=config.initializer_range,
            name="position_bias",
        )(positions, positions)
    blocks = [
        EncoderBlock(
            config.num_heads,
            config.intermediate_dim,
            config.activation,
            config.layer_norm_epsilon,
            config.dropout,
            config.attention_dropout,
            config.initializer_range,
            mask_constant,
            biased=bool(bias),
            name=f"layer_{i}",
        )
        for i in range(config.groups[-1] + 1)
    ]
    for i in config.groups:
        x = blocks[i](x, attention_mask=attention_mask, **bias)

    inputs = {"token_ids": token_ids, "segment_ids": segment_ids, "padding_mask": mask}
    if config.num_segments < 2:
        del inputs["segment_ids"]
    return keras.Model(inputs, x, name=config.variant)


def _embed(config: Config, token_ids: Any, segment_ids: Any) -> Any:
    """Embed tokens with their positions and segments, as wide as the layers: (B, T, hidden_dim)."""
    x = keras.layers.ReversibleEmbedding(
        config.vocabulary_size,
        config.embedding_dim,
        embeddings_initializer=truncated_normal(config.initializer_range),
        name="token_embedding",
    )(token_ids)
    if config.num_segments:
        x = x + keras.layers.Embedding(
            config.num_segments,
            config.embedding_dim,
            embeddings_initializer=truncated_normal(config.initializer_range),
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
    if config.embedding_dim != config.hidden_dim or config.variant == "albert":
        x = keras.layers.Dense(
            config.hidden_dim,
            kernel_initializer=truncated_normal(config.initializer_range),
            name="embedding_projection",
        )(x)
    return x


MODEL_TYPES = tuple(SUMMARY_ACTIVATION)
"""Hugging Face's model types that this family builds."""

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
MPNET_KEYS = {
    key: value
    for key, value in BERT_KEYS.items()
    if key not in ("num_segments", "classifier_dropout")
}
KEYS = {
    "bert": BERT_KEYS,
    "electra": {**BERT_KEYS, "embedding_dim": "embedding_size"},
    "roberta": BERT_KEYS,
    "xlm-roberta": BERT_KEYS,
    "camembert": BERT_KEYS,
    "mpnet": MPNET_KEYS,
    "albert": {
        **BERT_KEYS,
        "embedding_dim": "embedding_size",
        "num_groups": "num_hidden_groups",
        "classifier_dropout": "classifier_dropout_prob",
    },
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
# transformers' defaults of keys that are missing, where they are not those of Config.
DEFAULTS: dict[str, dict[str, Any]] = {
    "bert": {},
    "electra": {
        "num_heads": 4,
        "hidden_dim": 256,
        "intermediate_dim": 1024,
        "embedding_dim": 128,
    },
    "albert": {
        "vocabulary_size": 30000,
        "num_heads": 64,
        "hidden_dim": 4096,
        "intermediate_dim": 16384,
        "embedding_dim": 128,
        "num_groups": 1,
        "activation": "gelu_new",
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "classifier_dropout": 0.1,
    },
    "distilbert": {"num_layers": 6, "num_segments": 0, "classifier_dropout": 0.2},
    "roberta": {"vocabulary_size": 50265, "pad_token_id": 1},
    "xlm-roberta": {"pad_token_id": 1},
    "camembert": {"pad_token_id": 1},
    "mpnet": {"vocabulary_size": 30527, "pad_token_id": 1, "num_segments": 0},
}
UNSUPPORTED: hf.Unsupported = (
    ("position_embedding_type", "absolute", "relative positions"),
    ("is_decoder", False, "decoding"),
    ("add_cross_attention", False, "cross-attention"),
)
ONLY_UNSUPPORTED: dict[str, hf.Unsupported] = {
    "albert": (("inner_group_num", 1, "several blocks in a layer"),),
    "mpnet": (
        ("relative_attention_num_buckets", POSITION_BUCKETS["mpnet"][0], "other buckets"),
        ("pad_token_id", MPNET_PAD, "another padding token"),
    ),
}


def from_hf(hf_config: Mapping[str, Any]) -> Config:
    """Return the Config for a `config.json`. Raises CheckpointError for an unsupported graph."""
    variant = hf_config["model_type"]
    hf.check_supported(hf_config, variant, UNSUPPORTED + ONLY_UNSUPPORTED.get(variant, ()))
    fields = hf.config_fields(hf_config, KEYS[variant], DEFAULTS[variant])
    if variant == "albert":
        hf.check_number("num_layers", fields["num_groups"], "num_hidden_groups")
    offset = _position_offset(variant, fields.get("pad_token_id", 0))
    if offset and isinstance(rows := fields.get("max_sequence_length", 512), int):
        fields["max_sequence_length"] = rows - offset
    return hf.build(Config, {"variant": variant, **fields})


def to_hf(config: Config) -> dict[str, Any]:
    """Return Hugging Face's `config.json`, without the keys of a head.

    Raises:
        CheckpointError: Hugging Face has no such model.
    """
    keys = KEYS[config.variant]
    hf_config = {key: getattr(config, field) for field, key in keys.items()}
    if config.variant in ("distilbert", "albert") and config.classifier_dropout is None:
        hf_config[keys["classifier_dropout"]] = config.dropout  # this key may not be null
    if config.variant == "albert":
        hf_config["num_hidden_groups"] = config.num_groups or config.num_layers
    hf_config["max_position_embeddings"] += config.position_offset
    if config.variant in POSITION_BUCKETS:
        hf_config["relative_attention_num_buckets"] = POSITION_BUCKETS[config.variant][0]
    hf.check_supported(hf_config, config.variant, ONLY_UNSUPPORTED.get(config.variant, ()))
    return {"model_type": config.variant, **hf_config}


def _embeddings(prefix: str) -> dict:
    return {
        "token_embedding/embeddings": f"{prefix}embeddings.word_embeddings.weight",
        "position_embedding/embeddings": f"{prefix}embeddings.position_embeddings.weight",
        **layer_norm("embedding_norm", f"{prefix}embeddings.LayerNorm"),
    }


def _bert(prefix: str) -> TensorMap:
    layer = f"{prefix}encoder.layer.{{i}}"
    return {
        **_embeddings(prefix),
        "type_embedding/embeddings": f"{prefix}embeddings.token_type_embeddings.weight",
        **linear("embedding_projection", f"{prefix}embeddings_project"),
        **linear("layer_{i}/attention/query", f"{layer}.attention.self.query"),
        **linear("layer_{i}/attention/key", f"{layer}.attention.self.key"),
        **linear("layer_{i}/attention/value", f"{layer}.attention.self.value"),
        **linear("layer_{i}/attention/attention_output", f"{layer}.attention.output.dense", 2),
        **layer_norm("layer_{i}/attention_norm", f"{layer}.attention.output.LayerNorm"),
        **linear("layer_{i}/up", f"{layer}.intermediate.dense"),
        **linear("layer_{i}/down", f"{layer}.output.dense"),
        **layer_norm("layer_{i}/feedforward_norm", f"{layer}.output.LayerNorm"),
    }


def _distilbert(prefix: str) -> TensorMap:
    layer = f"{prefix}transformer.layer.{{i}}"
    return {
        **_embeddings(prefix),
        **linear("layer_{i}/attention/query", f"{layer}.attention.q_lin"),
        **linear("layer_{i}/attention/key", f"{layer}.attention.k_lin"),
        **linear("layer_{i}/attention/value", f"{layer}.attention.v_lin"),
        **linear("layer_{i}/attention/attention_output", f"{layer}.attention.out_lin", 2),
        **layer_norm("layer_{i}/attention_norm", f"{layer}.sa_layer_norm"),
        **linear("layer_{i}/up", f"{layer}.ffn.lin1"),
        **linear("layer_{i}/down", f"{layer}.ffn.lin2"),
        **layer_norm("layer_{i}/feedforward_norm", f"{layer}.output_layer_norm"),
    }


def _mpnet(prefix: str) -> TensorMap:
    layer = f"{prefix}encoder.layer.{{i}}"
    return {
        **_embeddings(prefix),
        "position_bias/embeddings": f"{prefix}encoder.relative_attention_bias.weight",
        **linear("layer_{i}/attention/query", f"{layer}.attention.attn.q"),
        **linear("layer_{i}/attention/key", f"{layer}.attention.attn.k"),
        **linear("layer_{i}/attention/value", f"{layer}.attention.attn.v"),
        **linear("layer_{i}/attention/attention_output", f"{layer}.attention.attn.o", 2),
        **layer_norm("layer_{i}/attention_norm", f"{layer}.attention.LayerNorm"),
        **linear("layer_{i}/up", f"{layer}.intermediate.dense"),
        **linear("layer_{i}/down", f"{layer}.output.dense"),
        **layer_norm("layer_{i}/feedforward_norm", f"{layer}.output.LayerNorm"),
    }


def _albert(prefix: str) -> TensorMap:
    layer = f"{prefix}encoder.albert_layer_groups.{{i}}.albert_layers.0"
    return {
        **_embeddings(prefix),
        "type_embedding/embeddings": f"{prefix}embeddings.token_type_embeddings.weight",
        **linear("embedding_projection", f"{prefix}encoder.embedding_hidden_mapping_in"),
        **linear("layer_{i}/attention/query", f"{layer}.attention.query"),
        **linear("layer_{i}/attention/key", f"{layer}.attention.key"),
        **linear("layer_{i}/attention/value", f"{layer}.attention.value"),
        **linear("layer_{i}/attention/attention_output", f"{layer}.attention.dense", 2),
        **layer_norm("layer_{i}/attention_norm", f"{layer}.attention.LayerNorm"),
        **linear("layer_{i}/up", f"{layer}.ffn"),
        **linear("layer_{i}/down", f"{layer}.ffn_output"),
        **layer_norm("layer_{i}/feedforward_norm", f"{layer}.full_layer_layer_norm"),
    }


POOLER = linear("pooler", "bert.pooler.dense")
NEXT_SENTENCE = linear("next_sentence", "cls.seq_relationship")
PREDICTIONS: TensorMap = {
    **linear("transform", "cls.predictions.transform.dense"),
    **layer_norm("transform_norm", "cls.predictions.transform.LayerNorm"),
    "logits/kernel": TensorLayout("cls.predictions.decoder.weight", 1),
    "token_bias/bias": "cls.predictions.bias",
}
CLASSIFIER = linear("classifier", "classifier")
SPAN = linear("span", "qa_outputs")


def _roberta(name: str, prefix: str = "roberta.", backbone: TensorMap | None = None) -> WeightMap:
    """RoBERTa's table; its relatives have other names of architectures, MPNet other layers too."""
    return WeightMap(
        prefix=prefix,
        backbone=backbone or _bert(prefix),
        heads={
            "embedding": linear("pooler", f"{prefix}pooler.dense"),
            "classification": {
                **linear("pooler", "classifier.dense"),
                **linear("classifier", "classifier.out_proj"),
            },
            "token_classification": CLASSIFIER,
            "question_answering": SPAN,
            "masked_lm": {
                **linear("transform", "lm_head.dense"),
                **layer_norm("transform_norm", "lm_head.layer_norm"),
                "logits/kernel": TensorLayout("lm_head.decoder.weight", 1),
                "token_bias/bias": "lm_head.bias",
            },
        },
        architectures={
            "embedding": (f"{name}Model",),
            "classification": (f"{name}ForSequenceClassification",),
            "token_classification": (f"{name}ForTokenClassification",),
            "question_answering": (f"{name}ForQuestionAnswering",),
            "masked_lm": (f"{name}ForMaskedLM",),
        },
        tied={
            "lm_head.decoder.weight": f"{prefix}embeddings.word_embeddings.weight",
            "lm_head.decoder.bias": "lm_head.bias",
        },
        buffers=(f"{prefix}embeddings.position_ids",),
    )


WEIGHTS: dict[str, WeightMap] = {
    "bert": WeightMap(
        prefix="bert.",
        backbone=_bert("bert."),
        heads={
            "embedding": POOLER,
            "classification": {**POOLER, **CLASSIFIER},
            "token_classification": CLASSIFIER,
            "question_answering": SPAN,
            "masked_lm": PREDICTIONS,
            "next_sentence": {**POOLER, **NEXT_SENTENCE},
            "pretraining": {**PREDICTIONS, **POOLER, **NEXT_SENTENCE},
        },
        architectures={
            "embedding": ("BertModel",),
            "classification": ("BertForSequenceClassification",),
            "token_classification": ("BertForTokenClassification",),
            "question_answering": ("BertForQuestionAnswering",),
            "masked_lm": ("BertForMaskedLM",),
            "next_sentence": ("BertForNextSentencePrediction",),
            "pretraining": ("BertForPreTraining",),
        },
        tied={
            "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
            "cls.predictions.decoder.bias": "cls.predictions.bias",
        },
        buffers=("bert.embeddings.position_ids",),
    ),
    "distilbert": WeightMap(
        prefix="distilbert.",
        backbone=_distilbert("distilbert."),
        heads={
            "embedding": {},
            "classification": {**linear("pooler", "pre_classifier"), **CLASSIFIER},
            "token_classification": CLASSIFIER,
            "question_answering": SPAN,
            "masked_lm": {
                **linear("transform", "vocab_transform"),
                **layer_norm("transform_norm", "vocab_layer_norm"),
                "logits/kernel": TensorLayout("vocab_projector.weight", 1),
                "token_bias/bias": "vocab_projector.bias",
            },
        },
        architectures={
            "embedding": ("DistilBertModel",),
            "classification": ("DistilBertForSequenceClassification",),
            "token_classification": ("DistilBertForTokenClassification",),
            "question_answering": ("DistilBertForQuestionAnswering",),
            "masked_lm": ("DistilBertForMaskedLM",),
        },
        tied={"vocab_projector.weight": "distilbert.embeddings.word_embeddings.weight"},
        buffers=("distilbert.embeddings.position_ids",),
    ),
    "electra": WeightMap(
        prefix="electra.",
        backbone=_bert("electra."),
        heads={
            "embedding": {},
            "classification": {
                **linear("pooler", "classifier.dense"),
                **linear("classifier", "classifier.out_proj"),
            },
            "token_classification": CLASSIFIER,
            "question_answering": SPAN,
            "masked_lm": {
                **linear("transform", "generator_predictions.dense"),
                **layer_norm("transform_norm", "generator_predictions.LayerNorm"),
                "logits/kernel": TensorLayout("generator_lm_head.weight", 1),
                "token_bias/bias": "generator_lm_head.bias",
            },
            # No task of its own: the discriminator is there to be fine-tuned. Its head is kept.
            "replaced_tokens": {
                **linear("discriminator", "discriminator_predictions.dense"),
                **linear("replaced", "discriminator_predictions.dense_prediction"),
            },
        },
        architectures={
            "embedding": ("ElectraModel", "ElectraForPreTraining"),
            "classification": ("ElectraForSequenceClassification",),
            "token_classification": ("ElectraForTokenClassification",),
            "question_answering": ("ElectraForQuestionAnswering",),
            "masked_lm": ("ElectraForMaskedLM",),
        },
        tied={"generator_lm_head.weight": "electra.embeddings.word_embeddings.weight"},
        buffers=("electra.embeddings.position_ids",),
    ),
    "albert": WeightMap(
        prefix="albert.",
        backbone=_albert("albert."),
        heads={
            "embedding": linear("pooler", "albert.pooler"),
            "classification": {**linear("pooler", "albert.pooler"), **CLASSIFIER},
            "token_classification": CLASSIFIER,
            "question_answering": SPAN,
            "masked_lm": {
                **linear("transform", "predictions.dense"),
                **layer_norm("transform_norm", "predictions.LayerNorm"),
                "logits/kernel": TensorLayout("predictions.decoder.weight", 1),
                "token_bias/bias": "predictions.bias",
            },
            # No task of its own: the order of two sentences is learned with the masked tokens.
            "sentence_order": {
                **linear("pooler", "albert.pooler"),
                **linear("next_sentence", "sop_classifier.classifier"),
            },
        },
        architectures={
            "embedding": ("AlbertModel",),
            "classification": ("AlbertForSequenceClassification",),
            "token_classification": ("AlbertForTokenClassification",),
            "question_answering": ("AlbertForQuestionAnswering",),
            "masked_lm": ("AlbertForMaskedLM", "AlbertForPreTraining"),
        },
        tied={
            "predictions.decoder.weight": "albert.embeddings.word_embeddings.weight",
            "predictions.decoder.bias": "predictions.bias",
        },
        buffers=("albert.embeddings.position_ids", "albert.embeddings.token_type_ids"),
    ),
    "roberta": _roberta("Roberta"),
    "xlm-roberta": _roberta("XLMRoberta"),
    "camembert": _roberta("Camembert"),
    "mpnet": _roberta("MPNet", "mpnet.", _mpnet("mpnet.")),
}
