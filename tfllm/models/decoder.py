"""What an engine or an exporter needs of a causal language model. It knows ids only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras

from tfllm.errors import SettingError
from tfllm.layers import heads, segments
from tfllm.layers.causal import Cache, KeysAndValues
from tfllm.models import FAMILIES


@dataclass(frozen=True)
class Decoder:
    """The layers of a trained model, to be called with a cache; see `layers.causal`."""

    family: str
    config: Any
    layers: Mapping[str, keras.layers.Layer]
    """By name, of any functional model over the family's backbone."""

    @property
    def num_layers(self) -> int:
        return self.config.num_layers

    @property
    def num_key_value_heads(self) -> int:
        return self.config.num_key_value_heads

    @property
    def head_dim(self) -> int:
        return self.config.head_dim

    @property
    def vocabulary_size(self) -> int:
        return self.config.vocabulary_size

    @property
    def max_sequence_length(self) -> int:
        """Tokens: the model has no positions beyond."""
        return self.config.max_sequence_length

    @property
    def dtype(self) -> str:
        """Of hidden states, keys and values."""
        return self.layers["layer_0"].compute_dtype

    @property
    def windows(self) -> tuple[int | None, ...]:
        """How many tokens each layer looks back, itself included; None is to the start."""
        return FAMILIES[self.family].windows(self.config)

    @property
    def window(self) -> int | None:
        """The widest of `windows`: keys further back are never needed."""
        windows = self.windows
        return None if None in windows else max(w for w in windows if w is not None)

    def layer_masks(self, allowed: Any, positions: Any, key_positions: Any) -> Any:
        """What `__call__` takes as `allowed`, from one mask (B, S, K) for all layers.

        `positions` int32 (B, S) of the queries and `key_positions` int32 (B, K) say how far apart
        they are. The mask itself where no layer has a window, else one per layer.
        """
        windows = self.windows
        if set(windows) == {None}:
            return allowed
        masks = {
            window: allowed
            if window is None
            else segments.apply_sliding_window(allowed, positions, key_positions, window)
            for window in dict.fromkeys(windows)
        }
        return tuple(masks[window] for window in windows)

    def __call__(
        self,
        token_ids: Any,
        positions: Any,
        allowed: Any,
        cache: tuple[Cache, ...] | None = None,
    ) -> tuple[Any, tuple[KeysAndValues, ...]]:
        """Hidden states (B, S, D) after the final norm, and the new keys and values of every layer.

        `token_ids`, `positions`: int32 (B, S). `allowed`: boolean (B, S, C + S), C cached tokens
        first, or one per layer (see `layer_masks`). `cache`: per layer keys and values, each
        (B, num_key_value_heads, C, head_dim), or a function from the new ones to all that are
        attended to. New ones have S in the place of C.
        """
        forward = FAMILIES[self.family].forward
        return forward(self.layers, self.config, token_ids, positions, allowed, cache)

    def logits(self, hidden: Any) -> Any:
        """Scores of the next token: (..., D) to float32 (..., vocabulary_size)."""
        return logits_of(hidden, self.config, self.layers)


def logits_of(hidden: Any, config: Any, layers: Mapping[str, keras.layers.Layer]) -> Any:
    """Scores of the next token: (..., D) to float32 (..., vocabulary_size). Raises SettingError."""
    if not config.tie_embeddings and "logits" not in layers:
        raise SettingError(
            "The model's embeddings are not tied, and it has no layer 'logits'. Give the "
            "model of its task (causal_lm, seq2seq), not its backbone."
        )
    if getattr(config, "logits_bias", False) and "token_bias" not in layers:
        raise SettingError(
            "The model's logits have a bias, and it has no layer 'token_bias'. Give the "
            "model of its task (seq2seq), not its backbone."
        )
    return heads.token_logits(hidden, config, layers)


def get_decoder(model: keras.Model, family: str, config: Any) -> Decoder:
    """The decoder inside a causal language model, or its backbone. Raises SettingError."""
    if not hasattr(FAMILIES[family], "windows"):
        able = ", ".join(name for name, module in FAMILIES.items() if hasattr(module, "windows"))
        raise SettingError(f"The family '{family}' cannot generate. Those that can: {able}.")
    return Decoder(family, config, {layer.name: layer for layer in model.layers})
