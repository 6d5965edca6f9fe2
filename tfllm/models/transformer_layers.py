"""The layers of an encoder-decoder, named as `models.transformer_graph` wires them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras

from tfllm.layers.causal import CausalBlock
from tfllm.layers.cross import CrossBlock, CrossKeysAndValues
from tfllm.layers.projections import Spread, initializer, normalization_layer
from tfllm.models.transformer_graph import DECODER, ENCODER


def biased(config: Any, spread: Spread) -> tuple[dict[str, Any], dict[str, Any]]:
    """`attention` and `block` of `layers_of` as Vaswani et al. have them: biases everywhere, layer
    norms, one deviation of all new weights."""
    attention = {
        "dropout": config.attention_dropout,
        "qkv_bias": True,
        "output_bias": True,
        "initializer_range": spread,
        "residual_range": spread,
    }
    block = {
        "activation": config.activation,
        "norm": "layer",
        "norm_epsilon": config.layer_norm_epsilon,
        "bias": True,
        "inner_dropout": config.inner_dropout,
    }
    return attention, block


def layers_of(
    config: Any,
    attention: Mapping[str, Any],
    block: Mapping[str, Any],
    embeddings_range: float,
    own: Callable[[str], list[keras.layers.Layer]],
) -> dict[str, keras.layers.Layer]:
    """New layers by name.

    `attention`: what all attention has besides its heads, as arguments of CausalAttention; `block`:
    of CausalBlock besides widths and dropout; `own`: what the family has on one side, whose name it
    is given, besides all this.
    """
    sides = (
        (ENCODER, config.num_encoder_layers, config.num_encoder_heads, config.encoder_head_dim,
         config.encoder_intermediate_dim, config.source_vocabulary_size),
        (DECODER, config.num_layers, config.num_heads, config.head_dim,
         config.intermediate_dim, config.vocabulary_size),
    )  # fmt: skip
    made: list[keras.layers.Layer] = []
    for side, number, heads, head_dim, intermediate_dim, vocabulary_size in sides:
        heads_of = {"num_heads": heads, "num_key_value_heads": heads, "head_dim": head_dim}
        if side == DECODER or not config.share_embeddings:
            made.append(
                keras.layers.ReversibleEmbedding(
                    vocabulary_size,
                    config.hidden_dim,
                    embeddings_initializer=initializer(embeddings_range),
                    name=f"{side}token_embedding",
                )
            )
        made += own(side)
        made.append(keras.layers.Dropout(config.dropout, name=f"{side}embedding_dropout"))
        made += [
            (CausalBlock if side == ENCODER else CrossBlock)(
                {**attention, **heads_of},
                intermediate_dim,
                dropout=config.dropout,
                pre_norm=config.pre_norm,
                name=f"{side}layer_{i}",
                **block,
            )
            for i in range(number)
        ]
        if config.pre_norm:
            name = f"{side}final_norm"
            made.append(normalization_layer(block["norm"], name, block["norm_epsilon"]))
    made += [
        CrossKeysAndValues(
            config.num_heads,
            config.head_dim,
            attention["qkv_bias"],
            attention["initializer_range"],
            name=f"cross_{i}",
        )
        for i in range(config.num_layers)
    ]
    return {layer.name: layer for layer in made}
