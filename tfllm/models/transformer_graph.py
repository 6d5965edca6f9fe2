"""The wiring that all encoder-decoders share: training's graph and the cached steps alike.

A family brings its layers by name, and differs in which of them there are:

    [encoder_]token_embedding      the encoder's own, where source and target do not share one
    [encoder_]position_embedding   positions to rows that are added
    [encoder_]position_bias        positions of queries and keys to what is added to scores (T5)
    [encoder_]embedding_norm, [encoder_]embedding_dropout
    encoder_layer_0, ...           blocks; layer_0, ... the decoder's, with attention to the source
    cross_0, ...                   the source's keys and values for the decoder's layers
    [encoder_]final_norm, [encoder_]final_dropout

Rows are padded on the right.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from tfllm.errors import SettingError
from tfllm.layers import segments
from tfllm.layers.activations import activation
from tfllm.layers.causal import Cache, KeysAndValues, run_blocks

Layers = Mapping[str, keras.layers.Layer]
ENCODER, DECODER = "encoder_", ""


def encode(layers: Layers, config: Any, source_ids: Any, source_padding_mask: Any) -> Any:
    """Source ids and mask int32 (B, S) to what the decoder attends to (B, S, D)."""
    positions = _places(source_ids[:1, :])
    x = _embedded(layers, config, ENCODER, source_ids, positions)
    seen = ops.expand_dims(ops.greater(source_padding_mask, 0), 1)  # (B, 1, S): the same for all
    bias = _bias(layers, ENCODER, positions, seen)
    number = config.num_encoder_layers
    x, _ = run_blocks(layers, number, x, positions, seen, position_bias=bias, prefix=ENCODER)
    return _ended(layers, ENCODER, x)


def cross_kv(layers: Layers, config: Any, encoded: Any) -> tuple[KeysAndValues, ...]:
    """The source's keys and values for every decoder layer, each (B, H, S, head_dim).

    Computed once for a source: no step needs `encoded` again.
    """
    return tuple(layers[f"cross_{i}"](encoded) for i in range(config.num_layers))


def forward(
    layers: Layers,
    config: Any,
    token_ids: Any,
    positions: Any,
    allowed: Any,
    cross_kv: tuple[KeysAndValues, ...],
    source_padding_mask: Any,
    cache: tuple[Cache, ...] | None = None,
    alignments: list[Any] | None = None,
) -> tuple[Any, tuple[KeysAndValues, ...]]:
    """Ids and positions int32 (R, T) to hidden states (R, T, D), and the new keys and values of the
    attention to the target itself.

    `allowed`: boolean (R, T, C + T), of which key i stands at position i; `cache`: see
    `models.decoder`. `cross_kv` and `source_padding_mask` int32 (B, S) are of B sources; R is B, or
    a multiple: as many rows for each, one after another. `alignments` takes the weights of every
    layer's attention to the source, (R, H, T, S).
    """
    x = _embedded(layers, config, DECODER, token_ids, positions)
    seen = ops.expand_dims(ops.greater(source_padding_mask, 0), 1)
    bias = _bias(layers, DECODER, positions, allowed)
    new = []
    for i in range(config.num_layers):
        x, added, weights = layers[f"layer_{i}"](
            x, allowed, positions, cross_kv[i], seen,
            cache=cache[i] if cache else None, position_bias=bias,
        )  # fmt: skip
        new.append(added)
        if alignments is not None:
            alignments.append(weights)
    return _ended(layers, DECODER, x), tuple(new)


def backbone(layers: Layers, config: Any, name: str) -> keras.Model:
    """The graph of training: ids and masks of source and target, int32 (B, S) and (B, T), to the
    decoder's hidden states (B, T, hidden_dim) after its last norm. Masks are 0 on padding."""
    inputs = {
        name: keras.Input((None,), dtype="int32", name=name)
        for name in ("source_ids", "source_padding_mask", "token_ids", "padding_mask")
    }
    encoded = encode(layers, config, inputs["source_ids"], inputs["source_padding_mask"])
    hidden, _ = forward(
        layers,
        config,
        inputs["token_ids"],
        _places(inputs["token_ids"][:1, :]),
        segments.attention_mask(inputs["padding_mask"]),
        cross_kv(layers, config, encoded),
        inputs["source_padding_mask"],
    )
    return keras.Model(inputs, hidden, name=name)


def _places(ids: Any) -> Any:
    """0, 1, 2, ... along the last axis, as int32 of the shape of `ids`."""
    return ops.subtract(ops.cumsum(ops.ones_like(ids, dtype="int32"), axis=-1), 1)


def _embedded(layers: Layers, config: Any, side: str, token_ids: Any, positions: Any) -> Any:
    """(B, T) to (B, T, D). `positions`: int32 (B or 1, T)."""
    x = layers.get(f"{side}token_embedding", layers["token_embedding"])(token_ids)
    if config.scale_embeddings:
        x = ops.multiply(x, ops.cast(math.sqrt(config.hidden_dim), x.dtype))
    if position := layers.get(f"{side}position_embedding"):
        x = ops.add(x, position(ops.add(positions, config.position_offset)))
    for name in ("embedding_norm", "embedding_dropout"):
        if layer := layers.get(side + name):
            x = layer(x)
    return x


def _bias(layers: Layers, side: str, positions: Any, allowed: Any) -> Any:
    """What is added to scores, (B or 1, H, T, K), or None. Key i stands at position i."""
    layer = layers.get(f"{side}position_bias")
    return None if layer is None else layer(positions, _places(allowed[:1, 0, :]))


def _ended(layers: Layers, side: str, x: Any) -> Any:
    for name in ("final_norm", "final_dropout"):
        if layer := layers.get(side + name):
            x = layer(x)
    return x


COUNTS = (
    "vocabulary_size", "source_vocabulary_size", "num_layers", "num_encoder_layers", "num_heads",
    "num_encoder_heads", "hidden_dim", "intermediate_dim", "encoder_intermediate_dim",
    "max_sequence_length",
)  # fmt: skip


def complete(config: Any, **defaults: Any) -> None:
    """Fills fields of a new Config that are 0 or None from `defaults`, and checks the shape that
    every encoder-decoder has. Raises SettingError."""
    for name, value in defaults.items():
        if getattr(config, name) in (0, None) and value is not None:
            object.__setattr__(config, name, value)
    for name in COUNTS:
        if getattr(config, name, 1) < 1:
            raise SettingError(f"{name} is {getattr(config, name)}; it must be 1 or more.")
    activation(config.activation)


def check_heads(config: Any) -> None:
    """Raises SettingError where heads of encoder or decoder cannot share the width equally."""
    for name in ("num_heads", "num_encoder_heads"):
        if config.hidden_dim % getattr(config, name):
            raise SettingError(
                f"hidden_dim {config.hidden_dim} cannot be split into {getattr(config, name)} "
                f"equal heads; choose a hidden_dim that {name} divides."
            )
