"""Llama (Touvron et al. 2023) and its near kin: pre-norm decoders with rotary positions.

Llama 2 and 3, SmolLM2 and TinyLlama are one graph. Mistral (Jiang et al. 2023) looks back over a
window; Qwen2 (Yang et al. 2024) has biases on queries, keys and values; Qwen3 (2025) normalises
queries and keys instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from tfllm.layers import segments
from tfllm.layers.blocks import normal
from tfllm.layers.causal import Cache, CausalBlock, KeysAndValues, run_blocks
from tfllm.layers.projections import normalization_layer
from tfllm.models.llama_config import MODEL_TYPES, Config, from_hf, to_hf, windows
from tfllm.models.llama_weights import WEIGHTS

__all__ = ["MODEL_TYPES", "WEIGHTS", "Config", "backbone", "forward", "from_hf", "to_hf", "windows"]


def layers_of(config: Config) -> dict[str, keras.layers.Layer]:
    """New layers by name."""
    spread, epsilon = config.initializer_range, config.layer_norm_epsilon
    attention = {
        "num_heads": config.num_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "dropout": config.attention_dropout,
        "qkv_bias": config.qkv_bias,
        "output_bias": config.output_bias,
        "norm_epsilon": epsilon if config.query_key_norm else 0.0,
        "rope_theta": config.rope_theta,
        "rope_scaling": config.rope_scaling,
        "max_sequence_length": config.max_sequence_length,
        "initializer_range": spread,
        "residual_range": spread,
    }
    embedding = keras.layers.ReversibleEmbedding(
        config.vocabulary_size,
        config.hidden_dim,
        embeddings_initializer=normal(spread),
        name="token_embedding",
    )
    blocks = [
        CausalBlock(
            attention,
            config.intermediate_dim,
            config.activation,
            "rms",
            epsilon,
            gated=True,
            name=f"layer_{i}",
        )
        for i in range(config.num_layers)
    ]
    final = normalization_layer("rms", "final_norm", epsilon)
    return {layer.name: layer for layer in (embedding, *blocks, final)}


def forward(
    layers: Mapping[str, keras.layers.Layer],
    config: Config,
    token_ids: Any,
    positions: Any,
    allowed: Any,
    cache: tuple[Cache, ...] | None = None,
) -> tuple[Any, tuple[KeysAndValues, ...]]:
    """Ids and positions int32 (B, S) to hidden states (B, S, D), and the new keys and values.

    `allowed`: boolean (B, S, C + S), or one per layer. `cache`: see `models.decoder`.
    """
    x = layers["token_embedding"](token_ids)
    x, new = run_blocks(layers, config.num_layers, x, positions, allowed, cache)
    return layers["final_norm"](x), new


def backbone(config: Config) -> keras.Model:
    """Token ids and mask, int32 (B, T), to hidden states (B, T, hidden_dim) after the final norm.

    `mask` numbers the segments of a row: see `layers.segments`.
    """
    token_ids = keras.Input((None,), dtype="int32", name="token_ids")
    mask = keras.Input((None,), dtype="int32", name="padding_mask")
    masks = {
        window: segments.attention_mask(mask, window) for window in dict.fromkeys(windows(config))
    }
    allowed = tuple(masks[window] for window in windows(config))
    hidden, _ = forward(layers_of(config), config, token_ids, segments.positions(mask), allowed)
    return keras.Model({"token_ids": token_ids, "padding_mask": mask}, hidden, name=config.variant)
