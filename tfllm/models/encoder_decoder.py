"""An encoder-decoder as generation and export use it: token ids in, hidden states out.

encoded = model.encode(source_ids, source_padding_mask)              once for each source
cross_kv = model.cross_kv(encoded)                                   once for each source
decoder = model.with_encoder_output(cross_kv, source_padding_mask)   steps as a causal decoder
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras

from tfllm.errors import SettingError
from tfllm.layers.types import Cache, KeysAndValues, Tensor
from tfllm.models import FAMILIES, is_encoder_decoder
from tfllm.models.decoder import CachedModel, Decoder


@dataclass(frozen=True)
class EncoderDecoder(CachedModel):
    """The layers of a trained encoder-decoder; see `models.encoder_decoder_graph`."""

    @property
    def num_heads(self) -> int:
        """Of the decoder's self-attention and cross-attention."""
        return self.config.num_heads

    @property
    def source_vocabulary_size(self) -> int:
        """Tokens that can be read."""
        return self.config.source_vocabulary_size

    @property
    def decoder_start_token_id(self) -> int:
        """The decoder's first input token."""
        return self.config.decoder_start_token_id

    @property
    def pad_token_id(self) -> int:
        """Id of the padding token."""
        return self.config.pad_token_id

    def encode(self, source_ids: Tensor, source_padding_mask: Tensor) -> Tensor:
        """Encode sources.

        Args:
            source_ids: int32 (B, S), padded on the right.
            source_padding_mask: int32 (B, S), 0 on padding.

        Returns:
            Hidden states (B, S, D).
        """
        encode = FAMILIES[self.family].encode
        return encode(self.layers, self.config, source_ids, source_padding_mask)

    def cross_kv(self, encoded: Tensor) -> tuple[KeysAndValues, ...]:
        """Project the encoder's output (B, S, D) to what decoding steps need of it.

        Returns:
            For each layer keys and values, each (B, num_heads, S, head_dim).
        """
        return FAMILIES[self.family].cross_kv(self.layers, self.config, encoded)

    def __call__(
        self,
        token_ids: Tensor,
        positions: Tensor,
        attention_mask: Tensor,
        cross_kv: tuple[KeysAndValues, ...],
        source_padding_mask: Tensor,
        cache: tuple[Cache, ...] | None = None,
        alignments: list[Tensor] | None = None,
    ) -> tuple[Tensor, tuple[KeysAndValues, ...]]:
        """Run the decoder: see `encoder_decoder_graph.forward`."""
        return FAMILIES[self.family].forward(
            self.layers, self.config, token_ids, positions, attention_mask, cross_kv,
            source_padding_mask, cache, alignments,
        )  # fmt: skip

    def with_encoder_output(
        self, cross_kv: tuple[KeysAndValues, ...], source_padding_mask: Tensor
    ) -> Decoder:
        """Return the decoder bound to sources, which is called as a causal one."""
        return CrossAttendingDecoder(
            self.family, self.config, self.layers, cross_kv, source_padding_mask
        )


@dataclass(frozen=True)
class CrossAttendingDecoder(Decoder):
    """A decoder bound to the encoder's output; R rows of B sources, see `layers.cross`."""

    cross_kv: tuple[KeysAndValues, ...] = ()
    """For each layer keys and values, each (B, num_heads, S, head_dim)."""
    source_padding_mask: Tensor = None
    """int32 (B, S), 0 on padding."""
    alignments: list[Tensor] | None = None
    """Every call appends each layer's cross-attention weights (R, H, T, S)."""

    @property
    def windows(self) -> tuple[int | None, ...]:
        """Width of each layer's sliding window: None, all attend to everything."""
        return (None,) * self.num_layers

    def __call__(
        self,
        token_ids: Tensor,
        positions: Tensor,
        attention_mask: Tensor | tuple[Tensor, ...],
        cache: tuple[Cache, ...] | None = None,
    ) -> tuple[Tensor, tuple[KeysAndValues, ...]]:
        return FAMILIES[self.family].forward(
            self.layers, self.config, token_ids, positions, attention_mask, self.cross_kv,
            self.source_padding_mask, cache, self.alignments,
        )  # fmt: skip


def get_encoder_decoder(model: keras.Model, family: str, config: Any) -> EncoderDecoder:
    """Return the encoder-decoder inside a seq2seq model, or inside its backbone.

    Args:
        model: It and the result share layers.
        family: A key of `models.FAMILIES`.
        config: The family's Config.

    Raises:
        SettingError: The family reads no source.
    """
    if not is_encoder_decoder(family):
        known = ", ".join(name for name in FAMILIES if is_encoder_decoder(name))
        raise SettingError(f"The family '{family}' reads no source. Those that do: {known}.")
    return EncoderDecoder(family, config, {layer.name: layer for layer in model.layers})
