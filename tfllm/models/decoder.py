"""A causal language model as generation and export use it: token ids in, hidden states out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras

from tfllm.errors import SettingError
from tfllm.layers import heads, segments
from tfllm.layers.types import Cache, KeysAndValues, Tensor
from tfllm.models import FAMILIES, is_decoder


@dataclass(frozen=True)
class CachedModel:
    """The layers of a trained model, to be called with a cache; see `layers.causal`."""

    family: str
    config: Any
    """The family's Config."""
    layers: Mapping[str, keras.layers.Layer]
    """By name, of any functional model that ends in or contains the family's backbone."""

    @property
    def num_layers(self) -> int:
        """Of the decoder."""
        return self.config.num_layers

    @property
    def num_key_value_heads(self) -> int:
        """Of the decoder's self-attention."""
        return self.config.num_key_value_heads

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.config.head_dim

    @property
    def vocabulary_size(self) -> int:
        """Tokens that can be generated."""
        return self.config.vocabulary_size

    @property
    def max_sequence_length(self) -> int:
        """Positions of the decoder, in tokens."""
        return self.config.max_sequence_length

    @property
    def dtype(self) -> str:
        """Of hidden states, keys and values."""
        return self.layers["layer_0"].compute_dtype

    def logits(self, hidden: Tensor) -> Tensor:
        """Compute the logits of the next token.

        Args:
            hidden: Hidden states (..., D) after the final norm.

        Returns:
            float32 (..., vocabulary_size).

        Raises:
            SettingError: The head's layers are missing: `layers` are those of a backbone.
        """
        if not self.config.tie_embeddings and "logits" not in self.layers:
            raise SettingError(
                "The model's embeddings are not tied, and it has no layer 'logits'. Give the "
                "model of its task (causal_lm, seq2seq), not its backbone."
            )
        if getattr(self.config, "logits_bias", False) and "token_bias" not in self.layers:
            raise SettingError(
                "The model's logits have a bias, and it has no layer 'token_bias'. Give the "
                "model of its task (seq2seq), not its backbone."
            )
        return heads.token_logits(hidden, self.config, self.layers)


@dataclass(frozen=True)
class Decoder(CachedModel):
    """A decoder that is called with the keys and values of earlier tokens."""

    @property
    def windows(self) -> tuple[int | None, ...]:
        """How many tokens each layer attends to, the query itself included; None: to the start."""
        return FAMILIES[self.family].windows(self.config)

    @property
    def window(self) -> int | None:
        """The largest of `windows`: keys further back are never needed."""
        windows = self.windows
        return None if None in windows else max(w for w in windows if w is not None)

    def layer_masks(
        self, attention_mask: Tensor, positions: Tensor, key_positions: Tensor
    ) -> Tensor | tuple[Tensor, ...]:
        """Apply each layer's sliding window to a mask for all layers.

        Args:
            attention_mask: Boolean (B, S, K).
            positions: int32 (B, S), of the queries.
            key_positions: int32 (B, K).

        Returns:
            The mask itself where no layer has a window, else a tuple of one per layer.
        """
        windows = self.windows
        if set(windows) == {None}:
            return attention_mask
        masks = {
            window: attention_mask
            if window is None
            else segments.apply_sliding_window(attention_mask, positions, key_positions, window)
            for window in dict.fromkeys(windows)
        }
        return tuple(masks[window] for window in windows)

    def __call__(
        self,
        token_ids: Tensor,
        positions: Tensor,
        attention_mask: Tensor | tuple[Tensor, ...],
        cache: tuple[Cache, ...] | None = None,
    ) -> tuple[Tensor, tuple[KeysAndValues, ...]]:
        """Run the decoder.

        Args:
            token_ids: int32 (B, S).
            positions: int32 (B, S).
            attention_mask: Boolean (B, S, C + S), C cached tokens first, or a tuple of one per
                layer (see `layer_masks`).
            cache: For each layer keys and values, each (B, num_key_value_heads, C, head_dim), or a
                function from the new ones to all that are attended to.

        Returns:
            Hidden states (B, S, D) after the final norm, and the new keys and values of each layer,
            each (B, num_key_value_heads, S, head_dim).
        """
        forward = FAMILIES[self.family].forward
        return forward(self.layers, self.config, token_ids, positions, attention_mask, cache)


def get_decoder(model: keras.Model, family: str, config: Any) -> Decoder:
    """Return the decoder inside a causal language model, or inside its backbone.

    Args:
        model: It and the result share layers.
        family: A key of `models.FAMILIES`.
        config: The family's Config.

    Raises:
        SettingError: The family has no decoder.
    """
    if not is_decoder(family):
        known = ", ".join(name for name in FAMILIES if is_decoder(name))
        raise SettingError(f"The family '{family}' cannot generate. Those that can: {known}.")
    return Decoder(family, config, {layer.name: layer for layer in model.layers})
