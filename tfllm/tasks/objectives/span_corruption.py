"""Texts with spans taken out, and the spans: what T5 was pretrained on (Raffel et al. 2020, 3.1.4).

    Thank you for inviting me to your party last week .
    source: Thank you <0> me to your party <1> week . </s>
    target: <0> for inviting <1> last <2> </s>

Where spans lie is `random_spans_noise_mask` of google-research/text-to-text-transfer-transformer:
their number and that of masked tokens are fixed by the length, spans of both kinds alternate, the
first is kept, and all ways of cutting are equally likely.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tfllm.errors import SettingError
from tfllm.tasks.features import TokenCorpus
from tfllm.tasks.objectives import packing
from tfllm.tasks.objectives.packing import CorpusTokenStream, TokenStream
from tfllm.tasks.objectives.seq2seq_features import EpochPairs, Pair

if TYPE_CHECKING:
    from tfllm.tokenizers.base import Tokenizer

NOISE_DENSITY = 0.15  # of the tokens are taken out
MEAN_SPAN = 3.0  # tokens
SENTINEL = "<extra_id_{}>"


def count_spans(length: int, density: float, mean_span: float) -> tuple[int, int]:
    """Return the number of masked tokens and of spans in a text.

    Args:
        length: Tokens of the text, 2 or more; at least one is not masked.
        density: Share of tokens that are masked.
        mean_span: Mean tokens of a masked span.
    """
    masked = min(max(int(np.round(np.float32(length) * np.float32(density))), 1), length - 1)
    count = max(int(np.round(np.float32(masked) / np.float32(mean_span))), 1)
    return masked, count


def noise_mask(
    length: int,
    rng: np.random.Generator,
    density: float = NOISE_DENSITY,
    mean_span: float = MEAN_SPAN,
) -> np.ndarray:
    """Draw which tokens of a text are masked: bool [length]; none of a text of less than 2 tokens.

    Args:
        length: Tokens of the text.
        rng: The random numbers.
        density: Share of tokens that are masked.
        mean_span: Mean tokens of a masked span.
    """
    if length < 2:
        return np.zeros(length, bool)
    masked, count = count_spans(length, density, mean_span)
    count = min(count, masked, length - masked)  # every span of both kinds has a token
    plain = _random_lengths(length - masked, count, rng)
    lengths = np.stack([plain, _random_lengths(masked, count, rng)], axis=1)
    return np.repeat(np.tile([False, True], count), lengths.ravel())


def _random_lengths(total: int, parts: int, rng: np.random.Generator) -> np.ndarray:
    """Lengths, 1 or more, of `parts` parts of `total`; all ways are equally likely."""
    first = np.arange(total - 1) < parts - 1
    rng.shuffle(first)
    begins = np.concatenate([[0], np.flatnonzero(first) + 1, [total]])
    return np.diff(begins)


def corrupt(
    ids: np.ndarray, noise: np.ndarray, sentinels: np.ndarray, eos_token_id: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return (source, target) of a text: int32 [S] and [T].

    Every masked span is one sentinel in the source; the target has the sentinel of each span before
    its tokens (Raffel et al. 2020).

    Args:
        ids: Token ids int [T].
        noise: Which tokens are masked: bool [T].
        sentinels: Ids of the sentinels, in the order of their use.
        eos_token_id: Ends source and target; None: nothing does.

    Raises:
        SettingError: There are fewer sentinels than spans.
    """
    source, target = (_replace_runs(ids, mask, sentinels) for mask in (noise, ~noise))
    end = [] if eos_token_id is None else [eos_token_id]
    return np.append(source, end).astype(np.int32), np.append(target, end).astype(np.int32)


def _replace_runs(ids: np.ndarray, mask: np.ndarray, sentinels: np.ndarray) -> np.ndarray:
    """Every run of masked tokens as one sentinel, counted from the first run."""
    begins = mask & ~np.concatenate([[False], mask[:-1]])
    number = np.cumsum(begins)
    if len(number) and number[-1] > len(sentinels):
        raise SettingError(
            f"A text has {number[-1]} spans and the vocabulary {len(sentinels)} sentinels "
            f"({SENTINEL.format(0)}, ...). Lower task.max_length, or add sentinels."
        )
    marked = np.where(begins, sentinels[np.maximum(number, 1) - 1], ids) if len(ids) else ids
    return marked[begins | ~mask]


def sentinels(tokenizer: Tokenizer) -> np.ndarray:
    """Return the ids of <extra_id_0>, <extra_id_1>, ... that the vocabulary has: int32 [N].

    Raises:
        SettingError: It has none.
    """
    sentinel_ids: list[int] = []
    while (number := tokenizer.token_id(SENTINEL.format(len(sentinel_ids)))) is not None:
        sentinel_ids.append(number)
    if not sentinel_ids:
        raise SettingError(
            f"The vocabulary has no sentinels ({SENTINEL.format(0)}, ...) to mark spans with. Use "
            "T5's, or learn one with them as special tokens."
        )
    return np.array(sentinel_ids, np.int32)


def text_length(
    inputs: int, density: float = NOISE_DENSITY, mean_span: float = MEAN_SPAN
) -> tuple[int, int]:
    """Return the tokens of a text, and of its target, that fill a source.

    `random_spans_helper` of T5: no padding is needed where all texts have this length.

    Args:
        inputs: Tokens of the source, end of sequence included.
        density: Share of tokens that are masked.
        mean_span: Mean tokens of a masked span.
    """

    def sizes(length: int) -> tuple[int, int]:
        masked, count = count_spans(length, density, mean_span)
        return length - masked + count + 1, masked + count + 1

    length = inputs
    while sizes(length + 1)[0] <= inputs:
        length += 1
    target = sizes(length)[1]
    if density == 0.5 and target > inputs:
        length, target = length - 1, target - 1
    return length, target


@dataclass(frozen=True)
class SpanCorruption:
    """Windows of a stream of texts, corrupted differently in every epoch."""

    stream: TokenStream | CorpusTokenStream
    length: int
    """tokens of a window"""
    sentinels: np.ndarray
    eos_token_id: int | None
    density: float = NOISE_DENSITY
    mean_span: float = MEAN_SPAN

    def __len__(self) -> int:
        return -(-len(self.stream) // self.length)

    def row(self, number: int, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw source and target of a row, by (seed, epoch, number): int32 [S] and [T]."""
        begin = number * self.length
        size = min(self.length, len(self.stream) - begin)
        moved = packing.epoch_shift(self.length, seed, epoch)
        ids = self.stream.tokens(np.arange(begin + moved, begin + moved + size))
        rng = np.random.default_rng((seed, epoch, number))
        noise = noise_mask(size, rng, self.density, self.mean_span)
        return corrupt(ids, noise, self.sentinels, self.eos_token_id)


def corrupt_corpus(
    corpus: TokenCorpus,
    tokenizer: Tokenizer,
    inputs: int,
    density: float = NOISE_DENSITY,
    mean_span: float = MEAN_SPAN,
) -> SpanCorruption:
    """Return rows with sources of `inputs` tokens over a prepared corpus, or a `MemoryCorpus`.

    Texts follow one another without anything between, as in T5's own data.

    Args:
        corpus: The tokenized texts.
        tokenizer: Has the sentinels.
        inputs: Tokens of a source, end of sequence included.
        density: Share of tokens that are masked.
        mean_span: Mean tokens of a masked span.
    """
    length, _ = text_length(inputs, density, mean_span)
    stream = CorpusTokenStream(corpus, documents=False)
    return SpanCorruption(
        stream, length, sentinels(tokenizer), tokenizer.eos_token_id, density, mean_span
    )


@dataclass(frozen=True)
class CorruptedPairs(EpochPairs):
    """Sources and targets of one epoch, computed at access."""

    rows: SpanCorruption

    def __len__(self) -> int:
        return len(self.rows)

    def pair(self, row: int) -> Pair:
        """Return source and target of a row: int32 [S] and [T]."""
        return self.rows.row(row, *self.draw)

    @property
    def lengths(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the tokens of all sources, and of all targets: int64 [rows] each."""
        full, count = self.rows.length, len(self)
        sizes = [full, len(self.rows.stream) - full * (count - 1)]
        either = np.array([self._lengths(size) for size in sizes], np.int64)
        every = np.repeat(either, [count - 1, 1], axis=0)
        return every[:, 0], every[:, 1]

    def _lengths(self, size: int) -> tuple[int, int]:
        """Tokens of the source and the target of a text of `size` tokens."""
        rng = np.random.default_rng(0)  # any: the numbers of both depend on the length alone
        noise = noise_mask(size, rng, self.rows.density, self.rows.mean_span)
        source, target = corrupt(
            np.zeros(size, np.int32), noise, self.rows.sentinels, self.rows.eos_token_id
        )
        return len(source), len(target)


def corrupted_pairs(
    corpus: TokenCorpus,
    tokenizer: Tokenizer,
    *,
    source_length: int,
    noise_density: float,
    mean_span: float,
) -> CorruptedPairs:
    """Return sources with masked spans, and the spans as targets.

    Args:
        corpus: The tokenized texts.
        tokenizer: Has the sentinels.
        source_length: Tokens of a source, end of sequence included.
        noise_density: Share of tokens that are masked.
        mean_span: Mean tokens of a masked span.
    """
    return CorruptedPairs(
        corrupt_corpus(corpus, tokenizer, source_length, noise_density, mean_span)
    )
