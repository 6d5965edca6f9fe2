"""The graph that all encoder-decoders share, for training and for cached decoding alike.

A family provides its layers by name (`create_layers`), and differs in which of these there are:

    [encoder_]token_embedding      the encoder's own, where source and target share none
    [encoder_]position_embedding   positions to embeddings that are added
    [encoder_]position_bias        positions of queries and keys to a bias of scores (T5)
    [encoder_]embedding_norm, [encoder_]embedding_dropout
    encoder_layer_0, ...           blocks; layer_0, ... are the decoder's, with cross-attention
    cross_0, ...                   the source's keys and values for the decoder's layers
    [encoder_]final_norm, [encoder_]final_dropout

Rows are padded on the right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import keras
from keras import ops

from tfllm.errors import SettingError
from tfllm.layers import segments
from tfllm.layers.activations import get_activation
from tfllm.layers.causal import CausalBlock, run_blocks
from tfllm.layers.cross import CrossBlock, CrossKeysAndValues
from tfllm.layers.normalization import normalization_layer
from tfllm.layers.projections import InitializerRange, kernel_initializer
from tfllm.layers.types import Cache, KeysAndValues, Tensor
from tfllm.models.field_limits import check_positive

Layers = Mapping[str, keras.layers.Layer]
ENCODER, DECODER = "encoder_", ""


def encode(layers: Layers, config: Any, source_ids: Tensor, source_padding_mask: Tensor) -> Tensor:
    """Encode sources.

    Args:
        layers: By name.
        config: The family's config.
        source_ids: int32 (B, S).
        source_padding_mask: int32 (B, S), 0 on padding.

    Returns:
        Hidden states (B, S, D).
    """
    positions = _range_like(source_ids[:1, :])
    x = _embed(layers, config, ENCODER, source_ids, positions)
    mask = _source_mask(source_padding_mask)
    bias = _position_bias(layers, ENCODER, positions, mask)
    num_layers = config.num_encoder_layers
    x, _ = run_blocks(layers, num_layers, x, positions, mask, position_bias=bias, prefix=ENCODER)
    return _finalize(layers, ENCODER, x)


def cross_kv(layers: Layers, config: Any, encoded: Tensor) -> tuple[KeysAndValues, ...]:
    """Project the encoder's output to keys and values for every decoder layer.

    Computed once for a source: decoding steps do not need `encoded` again.

    Args:
        layers: By name.
        config: The family's config.
        encoded: (B, S, D).

    Returns:
        For each layer keys and values, each (B, H, S, head_dim).
    """
    return tuple(layers[f"cross_{i}"](encoded) for i in range(config.num_layers))


def forward(
    layers: Layers,
    config: Any,
    token_ids: Tensor,
    positions: Tensor,
    attention_mask: Tensor,
    cross_kv: tuple[KeysAndValues, ...],
    source_padding_mask: Tensor,
    cache: tuple[Cache, ...] | None = None,
    alignments: list[Tensor] | None = None,
) -> tuple[Tensor, tuple[KeysAndValues, ...]]:
    """Run the decoder.

    Args:
        layers: By name.
        config: The family's config.
        token_ids: int32 (R, T). R is B, or a multiple of it: the rows of each source (its beams)
            follow one another.
        positions: int32 (R, T).
        attention_mask: Boolean (R, T, C + T), C cached tokens first; key i is at position i.
        cross_kv: Keys and values of B sources; see `cross_kv`.
        source_padding_mask: int32 (B, S), 0 on padding.
        cache: Of the self-attention of each layer; see `layers.types.Cache`.
        alignments: Each layer's cross-attention weights (R, H, T, S) are appended to it.

    Returns:
        Hidden states (R, T, D) after the final norm, and the new keys and values of each layer's
        self-attention.
    """
    x = _embed(layers, config, DECODER, token_ids, positions)
    source_mask = _source_mask(source_padding_mask)
    bias = _position_bias(layers, DECODER, positions, attention_mask)
    new = []
    for i in range(config.num_layers):
        x, added, weights = layers[f"layer_{i}"](
            x, attention_mask, positions, cross_kv[i], source_mask,
            cache=cache[i] if cache else None, position_bias=bias,
        )  # fmt: skip
        new.append(added)
        if alignments is not None:
            alignments.append(weights)
    return _finalize(layers, DECODER, x), tuple(new)


def backbone(layers: Layers, config: Any, name: str) -> keras.Model:
    """Build the graph for training.

    Args:
        layers: By name; see `create_layers`.
        config: The family's config.
        name: Of the model.

    Returns:
        A model with inputs `source_ids` and `source_padding_mask` (B, S), `token_ids` and
        `padding_mask` (B, T), all int32, masks 0 on padding; its output is the decoder's hidden
        states (B, T, hidden_dim) after the final norm.
    """
    inputs = {
        name: keras.Input((None,), dtype="int32", name=name)
        for name in ("source_ids", "source_padding_mask", "token_ids", "padding_mask")
    }
    encoded = encode(layers, config, inputs["source_ids"], inputs["source_padding_mask"])
    hidden, _ = forward(
        layers,
        config,
        inputs["token_ids"],
        _range_like(inputs["token_ids"][:1, :]),
        segments.attention_mask(inputs["padding_mask"]),
        cross_kv(layers, config, encoded),
        inputs["source_padding_mask"],
    )
    return keras.Model(inputs, hidden, name=name)


def _source_mask(source_padding_mask: Tensor) -> Tensor:
    """Boolean (B, 1, S): every query attends to the same tokens of the source."""
    return ops.expand_dims(ops.greater(source_padding_mask, 0), 1)


def _range_like(ids: Tensor) -> Tensor:
    """0, 1, 2, ... along the last axis, int32 of the shape of `ids`."""
    return ops.subtract(ops.cumsum(ops.ones_like(ids, dtype="int32"), axis=-1), 1)


def _embed(layers: Layers, config: Any, side: str, token_ids: Tensor, positions: Tensor) -> Tensor:
    """Token ids (B, T) and positions int32 (B or 1, T) to (B, T, D)."""
    x = layers.get(f"{side}token_embedding", layers["token_embedding"])(token_ids)
    if config.scale_embeddings:
        x = ops.multiply(x, ops.cast(math.sqrt(config.hidden_dim), x.dtype))
    if position := layers.get(f"{side}position_embedding"):
        x = ops.add(x, position(ops.add(positions, config.position_offset)))
    return _apply(layers, (f"{side}embedding_norm", f"{side}embedding_dropout"), x)


def _position_bias(layers: Layers, side: str, positions: Tensor, mask: Tensor) -> Tensor | None:
    """The bias of scores (B or 1, H, T, K), if the family has one. Key i is at position i."""
    layer = layers.get(f"{side}position_bias")
    return None if layer is None else layer(positions, _range_like(mask[:1, 0, :]))


def _finalize(layers: Layers, side: str, x: Tensor) -> Tensor:
    return _apply(layers, (f"{side}final_norm", f"{side}final_dropout"), x)


def _apply(layers: Layers, names: tuple[str, ...], x: Tensor) -> Tensor:
    for name in names:
        if layer := layers.get(name):
            x = layer(x)
    return x


class SharedWidths:
    """Widths of heads that follow from `hidden_dim`, for a Config without a `head_dim` field."""

    hidden_dim: int
    num_heads: int
    num_encoder_heads: int

    @property
    def num_key_value_heads(self) -> int:
        """Number of heads of keys and values: all."""
        return self.num_heads

    @property
    def head_dim(self) -> int:
        """Width of an attention head of the decoder."""
        return self.hidden_dim // self.num_heads

    @property
    def encoder_head_dim(self) -> int:
        """Width of an attention head of the encoder."""
        return self.hidden_dim // self.num_encoder_heads


POSITIVE_FIELDS = (
    "vocabulary_size", "source_vocabulary_size", "num_layers", "num_encoder_layers", "num_heads",
    "num_encoder_heads", "hidden_dim", "intermediate_dim", "encoder_intermediate_dim",
    "max_sequence_length",
)  # fmt: skip


def fill_defaults(config: Any, **defaults: Any) -> None:
    """Set the fields of a new Config that are 0 or None, and check those that all families have.

    Args:
        config: A frozen dataclass that is being initialized.
        defaults: Values by field; None leaves the field as it is.

    Raises:
        SettingError: A size is below 1, or the activation is unknown.
    """
    for name, value in defaults.items():
        if getattr(config, name) in (0, None) and value is not None:
            object.__setattr__(config, name, value)
    check_positive(config, POSITIVE_FIELDS)
    get_activation(config.activation)


def check_heads(config: Any) -> None:
    """Raise SettingError where the heads of encoder or decoder do not divide `hidden_dim`."""
    for name in ("num_heads", "num_encoder_heads"):
        if config.hidden_dim % getattr(config, name):
            raise SettingError(
                f"hidden_dim {config.hidden_dim} cannot be split into {getattr(config, name)} "
                f"equal heads; choose a hidden_dim that {name} divides."
            )


def biased_options(
    config: Any, initializer_range: InitializerRange
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the options of blocks as in Vaswani et al. 2017: biases everywhere, layer norms.

    Args:
        config: The family's config.
        initializer_range: Of all new kernels.

    Returns:
        `attention` and `block` of `create_layers`.
    """
    attention = {
        "dropout": config.attention_dropout,
        "qkv_bias": True,
        "output_bias": True,
        "initializer_range": initializer_range,
        "residual_range": initializer_range,
    }
    block = {
        "activation": config.activation,
        "norm": "layer",
        "norm_epsilon": config.layer_norm_epsilon,
        "bias": True,
        "inner_dropout": config.inner_dropout,
    }
    return attention, block


def create_layers(
    config: Any,
    attention: Mapping[str, Any],
    block: Mapping[str, Any],
    embeddings_range: float,
    extra: Callable[[str], list[keras.layers.Layer]],
) -> dict[str, keras.layers.Layer]:
    """Create the layers of encoder and decoder.

    Args:
        config: The family's config.
        attention: Arguments of `CausalAttention` besides those about heads.
        block: Arguments of `CausalBlock` besides widths and dropout.
        embeddings_range: Standard deviation of new token embeddings.
        extra: (side) to the further layers of one side, ENCODER or DECODER, whose name is the
            prefix of their names.

    Returns:
        Layers by name.
    """
    sides = (
        (ENCODER, config.num_encoder_layers, config.num_encoder_heads, config.encoder_head_dim,
         config.encoder_intermediate_dim, config.source_vocabulary_size),
        (DECODER, config.num_layers, config.num_heads, config.head_dim,
         config.intermediate_dim, config.vocabulary_size),
    )  # fmt: skip
    layers: list[keras.layers.Layer] = []
    for side, num_layers, num_heads, head_dim, intermediate_dim, vocabulary_size in sides:
        heads = {"num_heads": num_heads, "num_key_value_heads": num_heads, "head_dim": head_dim}
        if side == DECODER or not config.share_embeddings:
            layers.append(
                keras.layers.ReversibleEmbedding(
                    vocabulary_size,
                    config.hidden_dim,
                    embeddings_initializer=kernel_initializer(embeddings_range),
                    name=f"{side}token_embedding",
                )
            )
        layers += extra(side)
        layers.append(keras.layers.Dropout(config.dropout, name=f"{side}embedding_dropout"))
        layers += [
            (CausalBlock if side == ENCODER else CrossBlock)(
                {**attention, **heads},
                intermediate_dim,
                dropout=config.dropout,
                pre_norm=config.pre_norm,
                name=f"{side}layer_{i}",
                **block,
            )
            for i in range(num_layers)
        ]
        if config.pre_norm:
            name = f"{side}final_norm"
            layers.append(normalization_layer(block["norm"], name, block["norm_epsilon"]))
    layers += [
        CrossKeysAndValues(
            config.num_heads,
            config.head_dim,
            attention["qkv_bias"],
            attention["initializer_range"],
            name=f"cross_{i}",
        )
        for i in range(config.num_layers)
    ]
    return {layer.name: layer for layer in layers}
