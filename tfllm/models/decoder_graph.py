"""The graph that decoders share, for training and for cached decoding alike.

A family provides its layers by name (`create_layers`): token_embedding, layer_0, ..., final_norm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops

from tfllm.errors import SettingError, did_you_mean
from tfllm.layers import rotary, segments
from tfllm.layers.activations import get_activation
from tfllm.layers.causal import run_blocks
from tfllm.layers.types import Cache, KeysAndValues, Tensor

FULL, SLIDING = "full_attention", "sliding_attention"
"""Hugging Face's kinds of layers: attention to the start, and within a sliding window."""


def forward(
    layers: Mapping[str, keras.layers.Layer],
    config: Any,
    token_ids: Tensor,
    positions: Tensor,
    attention_mask: Tensor | tuple[Tensor, ...],
    cache: tuple[Cache, ...] | None = None,
) -> tuple[Tensor, tuple[KeysAndValues, ...]]:
    """Run a decoder.

    Besides those of every family there may be the layers `position_embedding`, `embedding_dropout`,
    and, to and from the width of the blocks, `embedding_projection` and `output_projection`.

    Args:
        layers: By name.
        config: The family's configuration.
        token_ids: int32 (B, S).
        positions: int32 (B, S).
        attention_mask: Boolean (B, S, C + S), C cached tokens first, or a tuple of one per layer.
        cache: For each layer; see `layers.types.Cache`.

    Returns:
        Hidden states (B, S, D) after the final norm, and the new keys and values of each layer.
    """
    x = layers["token_embedding"](token_ids)
    if projection := layers.get("embedding_projection"):
        x = projection(x)
    if position := layers.get("position_embedding"):
        offset = getattr(config, "position_offset", 0)
        x = ops.add(x, position(ops.add(positions, offset) if offset else positions))
    if dropout := layers.get("embedding_dropout"):
        x = dropout(x)
    x, new = run_blocks(layers, config.num_layers, x, positions, attention_mask, cache)
    for name in ("final_norm", "output_projection"):
        x = layers[name](x) if name in layers else x
    return x, new


def build_backbone(
    layers: Mapping[str, keras.layers.Layer],
    config: Any,
    layer_windows: Sequence[int | None],
    name: str,
) -> keras.Model:
    """Build a decoder's graph for training.

    Args:
        layers: New layers, by name.
        config: The family's configuration.
        layer_windows: Tokens that each layer attends to, the query included; None: to the start.
        name: The model's name.

    Returns:
        A model with inputs `token_ids` and `padding_mask`, int32 (B, T), and hidden states (B, T,
        hidden_dim) after the final norm as output. The mask is 0 on padding, and numbers packed
        documents: see `layers.segments`.
    """
    token_ids = keras.Input((None,), dtype="int32", name="token_ids")
    mask = keras.Input((None,), dtype="int32", name="padding_mask")
    masks = {
        window: segments.attention_mask(mask, window) for window in dict.fromkeys(layer_windows)
    }
    layer_masks = tuple(masks[window] for window in layer_windows)
    hidden, _ = forward(layers, config, token_ids, segments.positions(mask), layer_masks)
    return keras.Model({"token_ids": token_ids, "padding_mask": mask}, hidden, name=name)


def windows(config: Any) -> tuple[int | None, ...]:
    """Return the windows of a family whose layers all attend to the start: None for each."""
    return (None,) * config.num_layers


def check_equal_heads(config: Any) -> None:
    """Raise SettingError where `num_heads` does not divide `hidden_dim`."""
    if config.hidden_dim % config.num_heads:
        raise SettingError(
            f"hidden_dim {config.hidden_dim} cannot be split into {config.num_heads} equal heads; "
            "choose a hidden_dim that num_heads divides."
        )


def check_rotary_config(config: Any) -> None:
    """Raise SettingError where heads, layers and rotary positions of a Config do not fit."""
    if config.num_heads % config.num_key_value_heads:
        raise SettingError(
            f"num_heads {config.num_heads} cannot share {config.num_key_value_heads} heads of keys "
            "and values equally; choose a num_key_value_heads that divides num_heads."
        )
    width = rotary_dim(config)
    if width % 2 or not width:
        name = "head_dim" if width == config.head_dim else "head_dim times partial_rotary_factor"
        raise SettingError(f"{name} is {width}; rotary positions need an even one.")
    kinds = getattr(config, "layer_types", ())
    if len(kinds) not in (0, config.num_layers):
        raise SettingError(
            f"layer_types names {len(kinds)} layers, and num_layers is "
            f"{config.num_layers}. Name every layer, or none."
        )
    for kind in kinds:
        if kind not in (FULL, SLIDING):
            known = did_you_mean(kind, (FULL, SLIDING))
            raise SettingError(f"layer_types: there is no '{kind}'. {known}")
    scaling, longest = config.rope_scaling, config.max_sequence_length
    rotary.frequencies(width, config.rope_theta, scaling, longest)
    if rotary.rope_type(scaling) == "longrope":
        original = scaling.get("original_max_position_embeddings", longest)
        if longest > original:
            raise SettingError(
                f"max_sequence_length is {longest}, and rotary positions of the kind 'longrope' "
                f"change beyond {original} tokens (original_max_position_embeddings), which "
                "cached keys cannot follow. Lower it to that."
            )
    get_activation(config.activation)


def rotary_dim(config: Any) -> int:
    """Return how many values of a head are rotated."""
    return int(config.head_dim * getattr(config, "partial_rotary_factor", 1.0))
