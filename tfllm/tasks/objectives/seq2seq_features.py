"""Rows of a source and a target, for a decoder that is trained under teacher forcing.

source_ids   the source, with the special tokens of its tokenizer
targets      y1 y2 ... yn end
token_ids    start y1 y2 ... yn         (teacher forcing: Williams and Zipser 1989)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tfllm.data.batching import bucket_length
from tfllm.tasks.features import IGNORED, Features, LazyArrays, TokenCorpus, pad_arrays

if TYPE_CHECKING:
    from tfllm.tokenizers.base import Tokenizer

Pair = tuple[np.ndarray, np.ndarray]  # source int32 [S], target int32 [T]


@dataclass(frozen=True)
class EpochPairs(Sequence[Pair]):
    """Sources and targets that an objective draws from plain texts, new ones every epoch."""

    draw: tuple[int, int] = field(default=(0, 0), kw_only=True)
    """(seed, epoch): pair i is a function of (seed, epoch, i) alone"""

    def pair(self, row: int) -> Pair:
        """Return the source and the target of a row, end tokens included."""
        raise NotImplementedError

    @property
    def lengths(self) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of every source and of every target, int [rows]: the same in every epoch."""
        raise NotImplementedError

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return [self.pair(number) for number in range(*row.indices(len(self)))]
        return self.pair(int(row))


class Objective(Protocol):
    """Makes pairs of plain texts.

    Args:
        corpus: Tokenized documents.
        tokenizer: The model's tokenizer.
        source_length: Tokens of a source at most, its end token included.
        noise_density: The share of the tokens that is changed or taken out.
        mean_span: Tokens that are changed in one span, on average.

    Raises:
        SettingError: The vocabulary lacks tokens that the objective needs.
    """

    def __call__(
        self,
        corpus: TokenCorpus,
        tokenizer: Tokenizer,
        *,
        source_length: int,
        noise_density: float,
        mean_span: float,
    ) -> EpochPairs: ...


@dataclass(frozen=True)
class Seq2SeqFeatures(Features):
    """Features whose `batch` has `source_ids` and `source_padding_mask` int32 [B, S] beside
    `token_ids` and `padding_mask` int32 [B, T]; S is the next length of `data.batching.ladder`."""

    pairs: Sequence[Pair] = ()
    decoder_start_token_id: int = 0
    source_pad_id: int | None = None

    @property
    def source_ids(self) -> Sequence[np.ndarray]:
        """int32 [S_i] per row, special tokens included."""
        return LazyArrays(len(self.pairs), lambda row: self.pairs[row][0])

    def batch(
        self, rows: Sequence[int] | np.ndarray, length: int | None = None
    ) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
        """Return a batch as `Features.batch` does, with every pair computed once."""
        pairs = [self.pairs[row] for row in rows]
        sources = [source for source, _ in pairs]
        read = [shift_right(target, self.decoder_start_token_id) for _, target in pairs]
        source_length = bucket_length(max(map(len, sources)))
        if length is None:
            length = max(map(len, read))
        inputs = {
            "source_ids": pad_arrays(sources, source_length, self.source_pad_id or 0),
            "source_padding_mask": pad_arrays(
                [np.ones(len(ids)) for ids in sources], source_length, 0
            ),
            "token_ids": pad_arrays(read, length, self.pad_id or 0),
            "padding_mask": pad_arrays([np.ones(len(ids)) for ids in read], length, 0),
        }
        if self.targets is None:
            return inputs, None
        return inputs, pad_arrays([target for _, target in pairs], length, IGNORED)


def shift_right(target: np.ndarray, decoder_start_token_id: int) -> np.ndarray:
    """Return the decoder's input for a target: int32 [T], or [1] of an empty target.

    Args:
        target: Token ids int [T].
        decoder_start_token_id: The decoder's first token.
    """
    return np.concatenate([[decoder_start_token_id], target[:-1]]).astype(np.int32)


def build_features(
    pairs: Sequence[Pair],
    lengths: np.ndarray,
    source_lengths: np.ndarray,
    decoder_start_token_id: int,
    tokenizer: Tokenizer,
    *,
    example: np.ndarray | None = None,
    targets: bool = True,
    digest: str | None = None,
) -> Seq2SeqFeatures:
    """Return features of pairs, which may be computed when a batch needs them.

    Args:
        pairs: Sources and targets, end tokens included.
        lengths: Tokens of the targets: int [rows].
        source_lengths: Tokens of the sources: int [rows].
        decoder_start_token_id: The decoder's first token.
        tokenizer: The model's tokenizer.
        example: The index of the example that each row came from: int [rows].
        targets: Whether batches have targets.
        digest: Identifies the data.
    """
    none = LazyArrays(0, lambda row: np.zeros(0, np.int32))
    features = Seq2SeqFeatures(
        token_ids=none,
        segment_ids=None,
        example=np.arange(len(pairs)) if example is None else example,
        targets=none if targets else None,
        details=[],
        pad_id=tokenizer.target.pad_token_id,
        per_token=True,
        row_lengths=np.maximum(lengths, 1),
        source_lengths=source_lengths,
        digest=digest,
        decoder_start_token_id=decoder_start_token_id,
        source_pad_id=tokenizer.pad_token_id,
    )
    return with_pairs(features, pairs)


def with_pairs(features: Seq2SeqFeatures, pairs: Sequence[Pair]) -> Seq2SeqFeatures:
    """Return the features with other pairs of the same lengths."""
    count, decoder_start_token_id = len(pairs), features.decoder_start_token_id
    return replace(
        features,
        pairs=pairs,
        token_ids=LazyArrays(count, lambda row: shift_right(pairs[row][1], decoder_start_token_id)),
        targets=None if features.targets is None else LazyArrays(count, lambda row: pairs[row][1]),
    )
