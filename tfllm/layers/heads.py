"""Heads: functions that extend a functional graph from hidden states to a task's outputs.

Every head takes hidden states (B, T, D) and the family's config, and returns float32 logits in any
precision of the backbone. Names of layers are fixed, because weight maps refer to them: "pooler",
"classifier", "span", "transform", "transform_norm", "token_bias", "logits", "next_sentence",
"discriminator", "replaced". Of a config they need `hidden_dim`; `OPTIONAL` fields have defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from tfllm.errors import SettingError, did_you_mean
from tfllm.layers.activations import get_activation
from tfllm.layers.projections import truncated_normal
from tfllm.layers.types import ModelConfig, Shape, Tensor

POOLINGS = ("mean", "first", "max", "last", "weighted_mean", "root_mean", "pooler")
OPTIONAL: dict[str, Any] = {
    "activation": "gelu",
    "classifier_pooling": "cls",
    "classifier_dropout": None,  # the same as `dropout`
    "dropout": 0.0,
    "embedding_dim": 0,  # the same as `hidden_dim`
    "head_bias": True,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-12,
    "logits_bias": False,
    "logits_scale": 1.0,
    "masked_lm_activation": "",  # the same as `activation`
    "norm_bias": True,
    "pooler_input_dropout": False,
    "summary_activation": "tanh",
    "tie_embeddings": True,
    "logits_softcap": 0.0,
    "transform_before_head": False,
}
"""Fields of a config that heads ask for, and their values where it has none."""


def _field(config: ModelConfig, name: str) -> Any:
    return getattr(config, name, OPTIONAL[name])


@keras.saving.register_keras_serializable(package="tfllm")
class TokenBias(keras.layers.Layer):
    """Add a learned bias for each token of the vocabulary: (B, T, V) to float32 (B, T, V)."""

    def build(self, input_shape: Shape) -> None:
        self.bias = self.add_weight(
            shape=(input_shape[-1],), initializer="zeros", name="bias", dtype="float32"
        )

    def call(self, logits: Tensor) -> Tensor:
        return ops.add(ops.cast(logits, "float32"), ops.cast(self.bias, "float32"))

    def compute_output_spec(self, logits: keras.KerasTensor) -> keras.KerasTensor:
        return keras.KerasTensor(logits.shape, dtype="float32")


@keras.saving.register_keras_serializable(package="tfllm")
class GatherPositions(keras.layers.Layer):
    """Gather hidden states (B, T, D) at int32 positions (B, P): (B, P, D)."""

    def call(self, hidden: Tensor, positions: Tensor) -> Tensor:
        # A product with a one-hot matrix: its gradient is one too, fast and deterministic.
        columns = ops.arange(ops.shape(hidden)[1], dtype="int32")
        one_hot = ops.equal(ops.expand_dims(positions, -1), columns)  # (B, P, T)
        return ops.matmul(ops.cast(one_hot, hidden.dtype), hidden)

    def compute_output_spec(
        self, hidden: keras.KerasTensor, positions: keras.KerasTensor
    ) -> keras.KerasTensor:
        return keras.KerasTensor((*positions.shape, hidden.shape[-1]), dtype=hidden.dtype)


def pooler(hidden: Tensor, config: ModelConfig) -> Tensor:
    """Project the first token's hidden state: (B, T, D) to (B, D).

    BERT's tanh "pooler", DistilBERT's relu "pre_classifier", the gelu layer of ELECTRA's classifier
    and the tanh layer of RoBERTa's; `config.summary_activation` is the activation.
    """
    return keras.layers.Dense(
        config.hidden_dim,
        activation=get_activation(_field(config, "summary_activation")),
        kernel_initializer=truncated_normal(_field(config, "initializer_range")),
        name="pooler",
    )(hidden[:, 0])


def _transform(hidden: Tensor, config: ModelConfig) -> Tensor:
    """Apply the dense layer and norm that the masked-LM head begins with: (..., embedding_dim)."""
    x = keras.layers.Dense(
        _field(config, "embedding_dim") or config.hidden_dim,
        activation=get_activation(
            _field(config, "masked_lm_activation") or _field(config, "activation")
        ),
        use_bias=_field(config, "head_bias"),
        kernel_initializer=truncated_normal(_field(config, "initializer_range")),
        name="transform",
    )(hidden)
    return keras.layers.LayerNormalization(
        epsilon=_field(config, "layer_norm_epsilon"),
        center=_field(config, "norm_bias"),
        name="transform_norm",
    )(x)


def classification_head(
    hidden: Tensor,
    config: ModelConfig,
    num_labels: int,
    padding_mask: Tensor | None = None,
    pooling: str = "mean",
) -> Tensor:
    """Classify whole texts.

    Args:
        hidden: Hidden states (B, T, D).
        config: The family's config.
        num_labels: Width of the output.
        padding_mask: (B, T), 0 on padding; None: as with `pooling` "first".
        pooling: "mean": classify the mean hidden state, without a pooler. "first": classify as
            Hugging Face's heads do, the first token through the pooler; with
            `transform_before_head` what `classifier_pooling` says, through the transform; of
            decoders, whose `classifier_pooling` is "last", the last token as it is.

    Returns:
        Logits (B, num_labels).
    """
    if padding_mask is not None and pooling == "mean":
        pooled = _dropout(config)(masked_mean(hidden, padding_mask))
        return _dense(num_labels, config, "classifier")(pooled)
    if _field(config, "classifier_pooling") == "last":
        assert padding_mask is not None
        pooled = text_embedding(hidden, padding_mask, "last", normalize=False)
        return _dense(num_labels, config, "classifier", use_bias=False)(pooled)
    if _field(config, "transform_before_head"):
        pooled = hidden[:, 0]
        if _field(config, "classifier_pooling") == "mean":
            assert padding_mask is not None
            pooled = masked_mean(hidden, padding_mask)
        pooled = _dropout(config)(_transform(pooled, config))
        return _dense(num_labels, config, "classifier")(pooled)
    if _field(config, "pooler_input_dropout"):
        hidden = _dropout(config, "summary_dropout")(hidden)
    pooled = _dropout(config)(pooler(hidden, config))
    return _dense(num_labels, config, "classifier")(pooled)


def token_classification_head(hidden: Tensor, config: ModelConfig, num_labels: int) -> Tensor:
    """Classify every token: (B, T, D) to logits (B, T, num_labels)."""
    if _field(config, "transform_before_head"):
        hidden = _transform(hidden, config)
    return _dense(num_labels, config, "classifier")(_dropout(config)(hidden))


def span_head(hidden: Tensor, config: ModelConfig) -> Tensor:
    """Score every token as an answer's start ([..., 0]) and end ([..., 1]).

    (B, T, D) to logits (B, T, 2), as BERT for SQuAD (Devlin et al. 2019, section 4.2).
    """
    if _field(config, "transform_before_head"):
        hidden = _dropout(config)(_transform(hidden, config))
    return _dense(2, config, "span")(hidden)


def masked_lm_head(hidden: Tensor, config: ModelConfig, backbone: keras.Model) -> Tensor:
    """Predict masked tokens (Devlin et al. 2019, section 3.1).

    Args:
        hidden: Hidden states (B, T, D).
        config: The family's config. With `tie_embeddings`, the last product is with the token
            embeddings themselves, in the backbone's precision.
        backbone: The model that `hidden` comes from.

    Returns:
        Logits (B, T, vocabulary_size).
    """
    x = _transform(hidden, config)
    if _field(config, "tie_embeddings"):
        logits = backbone.get_layer("token_embedding")(x, reverse=True)
    else:
        logits = keras.layers.Dense(
            config.vocabulary_size,
            use_bias=False,
            kernel_initializer=truncated_normal(_field(config, "initializer_range")),
            name="logits",
        )(x)
    return TokenBias(name="token_bias")(logits)


def masked_lm_at_positions(model: keras.Model) -> keras.Model:
    """Build the model that computes masked-LM logits at given positions only.

    Args:
        model: Its output ends in `masked_lm_head`; all layers are shared.

    Returns:
        A model with one more input, `positions` int32 (B, P). In place of logits at every position
        its output is a dict: `tokens`, float32 logits (B, P, V), and `positions`, by which a loss
        finds the targets; other outputs of `model` stay beside them.
    """
    positions = keras.Input((None,), dtype="int32", name="positions")
    x = GatherPositions(name="gather_positions")(model.get_layer("transform").input, positions)
    for name in ("transform", "transform_norm"):
        x = model.get_layer(name)(x)
    if any(layer.name == "logits" for layer in model.layers):
        x = model.get_layer("logits")(x)
    else:
        x = model.get_layer("token_embedding")(x, reverse=True)
    outputs = {"tokens": model.get_layer("token_bias")(x), "positions": positions}
    others = model.output if isinstance(model.output, dict) else {}
    inputs = {**model.input, "positions": positions}
    return keras.Model(inputs, {**others, **outputs}, name=model.name)


def lm_head(hidden: Tensor, config: ModelConfig, backbone: keras.Model) -> Tensor:
    """Predict the token after each.

    Args:
        hidden: Hidden states (B, T, D).
        config: The family's config. With `tie_embeddings`, logits are the product with the token
            embeddings themselves, in the backbone's precision (Press and Wolf 2017).
        backbone: The model that `hidden` comes from.

    Returns:
        Logits, float32 (B, T, vocabulary_size).
    """
    layers: dict[str, keras.layers.Layer] = {}
    if _field(config, "tie_embeddings"):
        layers["token_embedding"] = backbone.get_layer("token_embedding")
    else:
        stddev = _field(config, "initializer_range") or config.hidden_dim**-0.5
        layers["logits"] = keras.layers.Dense(
            config.vocabulary_size,
            use_bias=False,
            kernel_initializer=truncated_normal(stddev),
            name="logits",
        )
    if _field(config, "logits_bias"):
        layers["token_bias"] = TokenBias(name="token_bias")
    return token_logits(hidden, config, layers)


def token_logits(
    hidden: Tensor,
    config: ModelConfig,
    layers: Mapping[str, keras.layers.Layer],
) -> Tensor:
    """Compute `lm_head` with existing layers.

    Args:
        hidden: Hidden states (..., D).
        config: The family's config.
        layers: Layers by name.

    Returns:
        Logits, float32 (..., vocabulary_size).
    """
    if (scale := _field(config, "logits_scale")) != 1.0:
        hidden = ops.multiply(hidden, ops.add(_hidden_zero(hidden), scale))
    if _field(config, "tie_embeddings"):
        logits = layers["token_embedding"](hidden, reverse=True)
    else:
        logits = layers["logits"](hidden)
    if _field(config, "logits_bias"):
        logits = layers["token_bias"](logits)
    return bound_logits(ops.cast(logits, "float32"), _field(config, "logits_softcap"))


def bound_logits(logits: Tensor, cap: float) -> Tensor:
    """Bound logits (..., V) smoothly to (-cap, cap), as Gemma 2 does; a cap of 0 is none."""
    if not cap:
        return logits
    return ops.multiply(ops.tanh(ops.divide(logits, ops.add(_hidden_zero(logits), cap))), cap)


def _hidden_zero(x: Tensor) -> Tensor:
    """Return 0 of shape (..., 1), for x of shape (..., D), that a converter cannot recognize.

    TensorFlow Lite's folds a constant factor of logits into the weights of their product, and a
    tied table of embeddings is stored twice then.
    """
    return ops.minimum(ops.abs(x[..., :1]), 0.0)


def next_sentence_head(hidden: Tensor, config: ModelConfig) -> Tensor:
    """Predict whether the second text follows the first (Devlin et al. 2019, section 3.1).

    Returns:
        Logits (B, 2): [:, 0] of "is next", [:, 1] of "is not next".
    """
    return _dense(2, config, "next_sentence")(pooler(hidden, config))


def replaced_token_head(hidden: Tensor, config: ModelConfig) -> Tensor:
    """Detect replaced tokens, as ELECTRA's discriminator does (Clark et al. 2020).

    Returns:
        Logits (B, T), above 0 where a token was replaced.
    """
    x = keras.layers.Dense(
        config.hidden_dim,
        activation=get_activation(_field(config, "activation")),
        kernel_initializer=truncated_normal(_field(config, "initializer_range")),
        name="discriminator",
    )(hidden)
    return _dense(1, config, "replaced")(x)[:, :, 0]


def text_embedding(
    hidden: Tensor,
    padding_mask: Tensor,
    pooling: str = "mean",
    normalize: bool = True,
    config: ModelConfig | None = None,
) -> Tensor:
    """Pool hidden states to one embedding per text (Reimers and Gurevych 2019).

    Args:
        hidden: Hidden states (B, T, D).
        padding_mask: (B, T), 0 on padding, which is at the end of rows.
        pooling: Over the tokens that are not padding: "mean", "max", "first", "last",
            "weighted_mean" (weights are positions from 1, Muennighoff 2022), "root_mean" (the sum
            over the square root of their number), or "pooler" (see `pooler`; it has weights).
        normalize: Whether embeddings are scaled to length 1.
        config: The family's config, for "pooler" only.

    Returns:
        float32 (B, D).

    Raises:
        SettingError: There is no such pooling.
    """
    if pooling not in POOLINGS:
        raise SettingError(f"There is no pooling '{pooling}'. {did_you_mean(pooling, POOLINGS)}")
    mask = ops.expand_dims(ops.cast(padding_mask, "float32"), -1)  # (B, T, 1)
    if pooling == "mean":
        x = masked_mean(hidden, padding_mask)
    elif pooling == "last":
        next_mask = ops.pad(mask[:, 1:], [[0, 0], [0, 1], [0, 0]])
        x = ops.sum(ops.cast(hidden, "float32") * (mask - next_mask), axis=1)
    elif pooling == "weighted_mean":
        x = masked_mean(hidden, ops.cumsum(mask, axis=1)[:, :, 0] * mask[:, :, 0])
    elif pooling == "root_mean":
        count = ops.maximum(ops.sum(mask, axis=1), 1e-9)
        x = ops.sum(ops.cast(hidden, "float32") * mask, axis=1) / ops.sqrt(count)
    elif pooling == "max":
        x = ops.max(ops.cast(hidden, "float32") + (mask - 1.0) * 1e9, axis=1)
    elif pooling == "first":
        x = ops.cast(hidden[:, 0], "float32")
    else:
        assert config is not None
        x = ops.cast(pooler(hidden, config), "float32")
    if normalize:
        x = x / ops.maximum(ops.sqrt(ops.sum(ops.square(x), axis=-1, keepdims=True)), 1e-12)
    return x


def masked_mean(hidden: Tensor, weights: Tensor) -> Tensor:
    """Average hidden states (B, T, D) with weights (B, T), as a padding mask: float32 (B, D)."""
    weights = ops.expand_dims(ops.cast(weights, "float32"), -1)  # (B, T, 1)
    # 1e-9 as in sentence-transformers: an empty row gives zeros, not a division by zero.
    total = ops.maximum(ops.sum(weights, axis=1), 1e-9)
    return ops.sum(ops.cast(hidden, "float32") * weights, axis=1) / total


def _dense(units: int, config: ModelConfig, name: str, use_bias: bool = True) -> keras.layers.Dense:
    initializer = truncated_normal(_field(config, "initializer_range"))
    return keras.layers.Dense(
        units, use_bias=use_bias, kernel_initializer=initializer, dtype="float32", name=name
    )


def _dropout(config: ModelConfig, name: str = "head_dropout") -> keras.layers.Dropout:
    rate = _field(config, "classifier_dropout")
    return keras.layers.Dropout(_field(config, "dropout") if rate is None else rate, name=name)
