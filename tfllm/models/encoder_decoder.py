"""What an engine or an exporter needs of an encoder-decoder. It knows ids only.

encoded = model.encode(source_ids, source_padding_mask)              once for each source
cross_kv = model.cross_kv(encoded)                                   once for each source
decoder = model.with_encoder_output(cross_kv, source_padding_mask)   steps as a causal decoder
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras

from tfllm.errors import SettingError
from tfllm.layers.causal import Cache, KeysAndValues
from tfllm.models import FAMILIES, is_encoder_decoder
from tfllm.models.decoder import Decoder, logits_of


@dataclass(frozen=True)
class EncoderDecoder:
    """The layers of a trained model, to be called with a cache; see `models.transformer_graph`."""

    family: str
    config: Any
    layers: Mapping[str, keras.layers.Layer]
    """By name, of any functional model over the family's backbone."""

    @property
    def num_layers(self) -> int:
        """Of the decoder."""
        return self.config.num_layers

    @property
    def num_heads(self) -> int:
        """Of the decoder: of its attention to itself and to the source."""
        return self.config.num_heads

    @property
    def num_key_value_heads(self) -> int:
        """The same: every head has keys and values of its own."""
        return self.config.num_heads

    @property
    def head_dim(self) -> int:
        return self.config.head_dim

    @property
    def vocabulary_size(self) -> int:
        """Tokens that can be written."""
        return self.config.vocabulary_size

    @property
    def source_vocabulary_size(self) -> int:
        """Tokens that can be read."""
        return self.config.source_vocabulary_size

    @property
    def max_sequence_length(self) -> int:
        """Tokens of a source, and of a target with its start token."""
        return self.config.max_sequence_length

    @property
    def decoder_start_token_id(self) -> int:
        """The decoder's first token."""
        return self.config.decoder_start_token_id

    @property
    def pad_token_id(self) -> int:
        return self.config.pad_token_id

    @property
    def dtype(self) -> str:
        """Of hidden states, keys and values."""
        return self.layers["layer_0"].compute_dtype

    def encode(self, source_ids: Any, source_padding_mask: Any) -> Any:
        """Ids and mask int32 (B, S), padded on the right, to (B, S, D)."""
        return FAMILIES[self.family].encode(
            self.layers, self.config, source_ids, source_padding_mask
        )

    def cross_kv(self, encoded: Any) -> tuple[KeysAndValues, ...]:
        """What steps need of the source: keys and values (B, num_heads, S, head_dim) per layer."""
        return FAMILIES[self.family].cross_kv(self.layers, self.config, encoded)

    def __call__(
        self,
        token_ids: Any,
        positions: Any,
        allowed: Any,
        cross_kv: tuple[KeysAndValues, ...],
        source_padding_mask: Any,
        cache: tuple[Cache, ...] | None = None,
        alignments: list[Any] | None = None,
    ) -> tuple[Any, tuple[KeysAndValues, ...]]:
        """Hidden states (R, T, D) after the last norm, and the new keys and values of the target.

        `token_ids`, `positions` int32 (R, T) and `cache` as `models.decoder.Decoder`; `allowed`
        boolean (R, T, C + T), of which key i stands at position i. `cross_kv` and
        `source_padding_mask` int32 (B, S) are of B sources, and R is B or a multiple: as many rows
        for each source, one after another (beams). `alignments` takes each layer's weights on the
        source, (R, H, T, S).
        """
        return FAMILIES[self.family].forward(
            self.layers, self.config, token_ids, positions, allowed, cross_kv, source_padding_mask,
            cache, alignments,
        )  # fmt: skip

    def logits(self, hidden: Any) -> Any:
        """Scores of the next token: (..., D) to float32 (..., vocabulary_size)."""
        return logits_of(hidden, self.config, self.layers)

    def with_encoder_output(
        self, cross_kv: tuple[KeysAndValues, ...], source_padding_mask: Any
    ) -> Decoder:
        """The decoder of these sources, as an engine of causal models steps it."""
        return CrossAttendingDecoder(
            self.family, self.config, self.layers, cross_kv, source_padding_mask
        )


@dataclass(frozen=True)
class CrossAttendingDecoder(Decoder):
    """A decoder with the sources that it writes after."""

    cross_kv: tuple[KeysAndValues, ...] = ()
    source_padding_mask: Any = None
    alignments: list[Any] | None = None
    """Takes, at every call, each layer's weights on the source (R, H, T, S)."""

    @property
    def windows(self) -> tuple[int | None, ...]:
        return (None,) * self.num_layers

    def __call__(
        self,
        token_ids: Any,
        positions: Any,
        allowed: Any,
        cache: tuple[Cache, ...] | None = None,
    ) -> tuple[Any, tuple[KeysAndValues, ...]]:
        return FAMILIES[self.family].forward(
            self.layers, self.config, token_ids, positions, allowed, self.cross_kv,
            self.source_padding_mask, cache, self.alignments,
        )  # fmt: skip


def get_encoder_decoder(model: keras.Model, family: str, config: Any) -> EncoderDecoder:
    """The encoder-decoder inside a seq2seq model, or its backbone. Raises SettingError."""
    if not is_encoder_decoder(family):
        able = ", ".join(name for name in FAMILIES if is_encoder_decoder(name))
        raise SettingError(f"The family '{family}' reads no source. Those that do: {able}.")
    return EncoderDecoder(family, config, {layer.name: layer for layer in model.layers})
