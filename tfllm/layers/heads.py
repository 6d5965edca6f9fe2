"""What ends a model: functions that extend a functional graph from hidden states to answers.

Every function takes hidden states (B, T, D) and the family's config, and returns raw scores in
float32, whatever the precision of the backbone. The layers' names are fixed, because weight tables
name them: "pooler", "classifier", "span", "transform", "transform_norm", "token_bias",
"logits", "next_sentence", "discriminator", "replaced".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from tfllm.errors import SettingError, did_you_mean
from tfllm.layers.activations import activation
from tfllm.layers.blocks import normal

# Whose heads drop before the summary too, and tell masked tokens through GELU in any case.
ELECTRA_HEADS = ("electra", "roberta", "xlm-roberta")
POOLINGS = ("mean", "first", "max", "last", "weighted_mean", "root_mean", "pooler")


@keras.saving.register_keras_serializable(package="tfllm")
class TokenBias(keras.layers.Layer):
    """Adds one number per token of the vocabulary: (B, T, V) to float32 (B, T, V)."""

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self.bias = self.add_weight(
            shape=(input_shape[-1],), initializer="zeros", name="bias", dtype="float32"
        )

    def call(self, logits: Any) -> Any:
        return ops.add(ops.cast(logits, "float32"), ops.cast(self.bias, "float32"))

    def compute_output_spec(self, logits: Any) -> keras.KerasTensor:
        return keras.KerasTensor(logits.shape, dtype="float32")


@keras.saving.register_keras_serializable(package="tfllm")
class GatherPositions(keras.layers.Layer):
    """Some places of each row: (B, T, D) and positions int32 (B, P) to (B, P, D)."""

    def call(self, hidden: Any, positions: Any) -> Any:
        # A product with ones and zeros: its gradient is one too, quick and the same each time.
        places = ops.arange(ops.shape(hidden)[1], dtype="int32")
        chosen = ops.equal(ops.expand_dims(positions, -1), places)  # (B, P, T)
        return ops.matmul(ops.cast(chosen, hidden.dtype), hidden)

    def compute_output_spec(self, hidden: Any, positions: Any) -> keras.KerasTensor:
        return keras.KerasTensor((*positions.shape, hidden.shape[-1]), dtype=hidden.dtype)


def pooler(hidden: Any, config: Any) -> Any:
    """The first token through one layer: (B, T, D) to (B, D).

    BERT's tanh "pooler", DistilBERT's relu "pre_classifier", the gelu layer in ELECTRA's and the
    tanh layer in RoBERTa's classifier; `config.summary_activation` says which.
    """
    return keras.layers.Dense(
        config.hidden_dim,
        activation=activation(config.summary_activation),
        kernel_initializer=normal(config.initializer_range),
        name="pooler",
    )(hidden[:, 0])


def classification_head(hidden: Any, config: Any, size: int, mask: Any = None) -> Any:
    """Scores of the whole text: (B, T, D) to (B, size).

    From the first token, as Hugging Face's heads; with `mask` (B, T) from the mean over the tokens
    that it keeps, which has no pooler.
    """
    if mask is not None:
        return _dense(size, config, "classifier")(_dropout(config)(masked_mean(hidden, mask)))
    if config.variant in ELECTRA_HEADS:
        hidden = _dropout(config, "summary_dropout")(hidden)
    pooled = _dropout(config)(pooler(hidden, config))
    return _dense(size, config, "classifier")(pooled)


def token_classification_head(hidden: Any, config: Any, size: int) -> Any:
    """Scores of every token: (B, T, D) to (B, T, size)."""
    return _dense(size, config, "classifier")(_dropout(config)(hidden))


def span_head(hidden: Any, config: Any) -> Any:
    """How well an answer starts ([..., 0]) and ends ([..., 1]) here: (B, T, D) to (B, T, 2)."""
    return _dense(2, config, "span")(hidden)


def masked_lm_head(hidden: Any, config: Any, backbone: keras.Model) -> Any:
    """Scores of every token of the vocabulary at every place: (B, T, D) to (B, T, V).

    Tied: the last product is with the token embeddings themselves, in the backbone's precision.
    """
    x = keras.layers.Dense(
        config.embedding_dim,
        activation=activation("gelu" if config.variant in ELECTRA_HEADS else config.activation),
        kernel_initializer=normal(config.initializer_range),
        name="transform",
    )(hidden)
    x = keras.layers.LayerNormalization(epsilon=config.layer_norm_epsilon, name="transform_norm")(x)
    if config.tie_embeddings:
        logits = backbone.get_layer("token_embedding")(x, reverse=True)
    else:
        logits = keras.layers.Dense(
            config.vocabulary_size,
            use_bias=False,
            kernel_initializer=normal(config.initializer_range),
            name="logits",
        )(x)
    return TokenBias(name="token_bias")(logits)


def masked_lm_at_positions(model: keras.Model) -> keras.Model:
    """A model that ends in `masked`, with scores at some places only, through the same layers.

    The further input `positions` int32 (B, P) says which. Scores of all tokens become a dict:
    `tokens` float32 (B, P, V) and `positions`, by which a loss finds the targets; what else the
    model gives stays beside them.
    """
    positions = keras.Input((None,), dtype="int32", name="positions")
    x = GatherPositions(name="gather_positions")(model.get_layer("transform").input, positions)
    for name in ("transform", "transform_norm"):
        x = model.get_layer(name)(x)
    if any(layer.name == "logits" for layer in model.layers):
        x = model.get_layer("logits")(x)
    else:
        x = model.get_layer("token_embedding")(x, reverse=True)
    scores = {"tokens": model.get_layer("token_bias")(x), "positions": positions}
    others = model.output if isinstance(model.output, dict) else {}
    inputs = {**model.input, "positions": positions}
    return keras.Model(inputs, {**others, **scores}, name=model.name)


def lm_head(hidden: Any, config: Any, backbone: keras.Model) -> Any:
    """Scores of the token after each: (B, T, D) to (B, T, V).

    Tied: the product with the token embeddings themselves, in the backbone's precision.
    """
    layers: dict[str, Any] = {}
    if config.tie_embeddings:
        layers["token_embedding"] = backbone.get_layer("token_embedding")
    else:
        layers["logits"] = keras.layers.Dense(
            config.vocabulary_size,
            use_bias=False,
            kernel_initializer=normal(config.initializer_range or config.hidden_dim**-0.5),
            name="logits",
        )
    if getattr(config, "logits_bias", False):
        layers["token_bias"] = TokenBias(name="token_bias")
    return token_logits(hidden, config, layers)


def token_logits(
    hidden: Any,
    config: Any,
    layers: Mapping[str, keras.layers.Layer],
    scale: Any = None,
) -> Any:
    """`next_token` by layers that are there: (..., D) to float32 (..., V). `scale` replaces the
    `logits_scale` of `config`, if there is one."""
    scale = getattr(config, "logits_scale", 1.0) if scale is None else scale
    if not isinstance(scale, float) or scale != 1.0:
        hidden = ops.multiply(hidden, ops.cast(scale, hidden.dtype))
    if config.tie_embeddings:
        logits = layers["token_embedding"](hidden, reverse=True)
    else:
        logits = layers["logits"](hidden)
    if getattr(config, "logits_bias", False):
        logits = layers["token_bias"](logits)
    return ops.cast(logits, "float32")


def next_sentence_head(hidden: Any, config: Any) -> Any:
    """Scores of "follows" ([:, 0]) and "is from elsewhere" ([:, 1]): (B, T, D) to (B, 2)."""
    return _dense(2, config, "next_sentence")(pooler(hidden, config))


def replaced_token_head(hidden: Any, config: Any) -> Any:
    """ELECTRA's discriminator: above 0 where a token was replaced. (B, T, D) to (B, T)."""
    x = keras.layers.Dense(
        config.hidden_dim,
        activation=activation(config.activation),
        kernel_initializer=normal(config.initializer_range),
        name="discriminator",
    )(hidden)
    return _dense(1, config, "replaced")(x)[:, :, 0]


def text_embedding(
    hidden: Any, mask: Any, pooling: str = "mean", normalize: bool = True, config: Any = None
) -> Any:
    """One vector per text, in float32: (B, T, D) and mask (B, T) to (B, D).

    Sentence-BERT's poolings (Reimers and Gurevych 2019) over the tokens that the mask keeps: the
    mean, the largest, the first or the last token; "weighted_mean" weighs tokens by their place,
    counted from 1 (Muennighoff 2022), "root_mean" is the sum over the root of their number.
    "pooler" is `summary`, needs `config` and has weights; the others have none. `normalize` makes
    every vector of length 1. Rows are padded at their end.
    """
    if pooling not in POOLINGS:
        raise SettingError(f"There is no pooling '{pooling}'. {did_you_mean(pooling, POOLINGS)}")
    kept = ops.expand_dims(ops.cast(mask, "float32"), -1)  # (B, T, 1)
    if pooling == "mean":
        x = masked_mean(hidden, mask)
    elif pooling == "last":
        after = ops.pad(kept[:, 1:], [[0, 0], [0, 1], [0, 0]])
        x = ops.sum(ops.cast(hidden, "float32") * (kept - after), axis=1)
    elif pooling == "weighted_mean":
        x = masked_mean(hidden, ops.cumsum(kept, axis=1)[:, :, 0] * kept[:, :, 0])
    elif pooling == "root_mean":
        count = ops.maximum(ops.sum(kept, axis=1), 1e-9)
        x = ops.sum(ops.cast(hidden, "float32") * kept, axis=1) / ops.sqrt(count)
    elif pooling == "max":
        x = ops.max(ops.cast(hidden, "float32") + (kept - 1.0) * 1e9, axis=1)
    elif pooling == "first":
        x = ops.cast(hidden[:, 0], "float32")
    else:
        x = ops.cast(pooler(hidden, config), "float32")
    if normalize:
        x = x / ops.maximum(ops.sqrt(ops.sum(ops.square(x), axis=-1, keepdims=True)), 1e-12)
    return x


def masked_mean(hidden: Any, mask: Any) -> Any:
    """The mean over the tokens that the mask keeps, in float32: (B, T, D), (B, T) to (B, D)."""
    kept = ops.expand_dims(ops.cast(mask, "float32"), -1)  # (B, T, 1)
    # 1e-9 as in sentence-transformers: an empty row gives zeros, no division by zero.
    total = ops.maximum(ops.sum(kept, axis=1), 1e-9)
    return ops.sum(ops.cast(hidden, "float32") * kept, axis=1) / total


def _dense(size: int, config: Any, name: str) -> keras.layers.Dense:
    return keras.layers.Dense(
        size, kernel_initializer=normal(config.initializer_range), dtype="float32", name=name
    )


def _dropout(config: Any, name: str = "head_dropout") -> keras.layers.Dropout:
    own = config.classifier_dropout
    return keras.layers.Dropout(config.dropout if own is None else own, name=name)
