"""How far the probabilities that a file gives lie from its checkpoint's: KL divergence in nats.

Rounding that goes wrong shows here first, where the likeliest answer may still be the same. Of
files that give scores, every position of the texts counts exactly. Files that only write tell the
probability of what they drew, from which the same number is estimated.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfllm.errors import CheckFailed
from tfllm.export.base import Check, Profile, at_least, at_most, stated

# Numbers of a vocabulary's scores that are held in float64 at once.
AT_ONCE = 2**22
MASKED = -1e9


class Vocabulary:
    """The ids that can be told. A table of embeddings may have rows without a token, which files
    bar and a checkpoint does not: they are left out of both."""

    def __init__(self, tokenizer: Any, size: int):
        from tfllm.tokenizers.base import valid_id_ranges

        self.unk_token_id: int | None = tokenizer.unk_token_id
        self.known = np.full(size, not valid_id_ranges(tokenizer, size))
        for start, stop in valid_id_ranges(tokenizer, size):
            self.known[start:stop] = True

    def log_softmax(self, scores: np.ndarray) -> np.ndarray:
        """As `log_softmax`, over the ids that have a token."""
        return log_softmax(np.where(self.known, scores, MASKED))


@dataclass
class Told:
    """Sums over the tokens of texts, each told from those before it."""

    tokens: int = 0
    unknown: int = 0
    """Tokens that stand for what the vocabulary does not have; they are left out."""
    before: float = 0.0
    """Log-probability by the checkpoint."""
    after: float = 0.0
    """The same by the file."""
    divergence: float = 0.0
    agreeing: int = 0
    """Positions whose likeliest token is the same."""

    def add(
        self,
        wanted: np.ndarray,
        found: np.ndarray,
        targets: Sequence[int],
        vocabulary: Vocabulary,
    ) -> None:
        """Scores [N, V] of checkpoint and file before the N tokens `targets`."""
        chosen = np.asarray(targets)
        unknown = vocabulary.unk_token_id
        known = np.full(chosen.shape, True) if unknown is None else chosen != unknown
        self.unknown += int((~known).sum())
        places = np.flatnonzero(known)
        step = max(1, AT_ONCE // wanted.shape[-1])
        for start in range(0, len(places), step):
            some = places[start : start + step]
            first, second = (vocabulary.log_softmax(one[some]) for one in (wanted, found))
            self.divergence += float(divergences(first, second).sum())
            rows = np.arange(len(some))
            self.before += float(first[rows, chosen[some]].sum())
            self.after += float(second[rows, chosen[some]].sum())
            self.agreeing += int((first.argmax(-1) == second.argmax(-1)).sum())
        self.tokens += len(places)

    def __add__(self, other: Told) -> Told:
        names = vars(self)
        return Told(**{name: getattr(self, name) + getattr(other, name) for name in names})

    @property
    def perplexities(self) -> tuple[float, float]:
        """The checkpoint's and the file's."""
        return tuple(  # type: ignore[return-value]
            math.exp(min(-total / max(1, self.tokens), 700.0))
            for total in (self.before, self.after)
        )


def log_softmax(scores: np.ndarray) -> np.ndarray:
    """Logarithms float64 of the probabilities that scores [..., C] mean."""
    values = np.asarray(scores, np.float64)
    values = values - values.max(axis=-1, keepdims=True)
    return values - np.log(np.exp(values).sum(axis=-1, keepdims=True))


def divergences(wanted: np.ndarray, found: np.ndarray) -> np.ndarray:
    """KL(wanted || found) [...] of logarithms of probabilities [..., C]; not a number where the
    file's are none."""
    return (np.exp(wanted) * (wanted - found)).sum(axis=-1)


def checks(profile: Profile, told: dict[str, Told], vocabulary_size: int) -> Iterator[Check]:
    """What was told of the texts of each language (or of the data).

    A language of which the checkpoint tells less than an equal chance for every token would has not
    been learned, and small differences there mean nothing: it is stated and does not count, where
    there is another. Raises CheckFailed where the vocabulary has nothing of any.
    """
    learned = {
        name: one
        for name, one in told.items()
        if one.tokens and one.perplexities[0] <= vocabulary_size
    }
    counted = learned or told
    whole = sum(counted.values(), Told())
    if not whole.tokens:
        raise CheckFailed(
            "The tokenizer makes no tokens of the texts that the check reads. Give texts that it "
            "knows: --data FILE."
        )
    first, second = whole.perplexities
    limit = profile.perplexity_rise
    yield Check(
        f"perplexity on {whole.tokens:,} tokens",
        f"{second:.4f} (checkpoint {first:.4f})",
        f"at most {limit:.2g} of it above",
        bool(second <= first * (1 + limit)),
    )
    for name, one in told.items():
        if len(told) > 1 or one.unknown:
            beside = "" if name in counted else "; not learned, not counted"
            yield stated(f"texts: {name}", _of(one) + beside)
    yield at_most(
        "KL divergence from the checkpoint a token",
        whole.divergence / whole.tokens,
        profile.largest_divergence,
    )
    yield at_least("same likeliest tokens", whole.agreeing / whole.tokens, _agreement(profile))


def _agreement(profile: Profile) -> float:
    """float32 sums in another order may swap two tokens that are as likely as each other."""
    if profile.tolerance.agreement is None and profile.quantization == "float32":
        return 0.999
    return profile.least_agreement


def _of(told: Told) -> str:
    unknown = f"; {told.unknown:,} unknown to the vocabulary, left out" if told.unknown else ""
    if not told.tokens:
        return f"0 tokens{unknown}"
    first, second = told.perplexities
    return f"{told.tokens:,} tokens, {second:.4f} (checkpoint {first:.4f}){unknown}"


def of_written(
    profile: Profile, found: Sequence[Sequence[float]], wanted: Sequence[Sequence[float]]
) -> Check:
    """Of a file that only writes: log-probabilities of the tokens that it drew at temperature 1, by
    itself and by the checkpoint. The mean of r - 1 - log r over them, r the checkpoint's
    probability by the file's, is KL(file || checkpoint), and no term is below zero."""
    own = np.concatenate([np.asarray(row, np.float64) for row in found])
    ratio = np.concatenate([np.asarray(row, np.float64) for row in wanted]) - own
    return at_most(
        f"KL divergence from the checkpoint a token, by {len(own):,} drawn ones",
        float((np.exp(ratio) - 1 - ratio).mean()),
        profile.largest_divergence,
    )


def of_answers(
    profile: Profile,
    task: Any,
    counted: Sequence[np.ndarray],
    wanted: Sequence[np.ndarray],
    found: Sequence[np.ndarray],
) -> Iterator[Check]:
    """Of encoders: the probabilities that their scores mean, over batches of rows, at
    the places `counted` (boolean [B, T]) where there is one for each token; of a regression, how
    far its numbers lie from the checkpoint's."""
    if getattr(task, "problem", "") == "regression":
        yield _of_numbers(profile, np.concatenate(wanted), np.concatenate(found))
        return
    count, total = 0, 0.0
    for places, before, after in zip(counted, wanted, found, strict=True):
        first, second = (_distributions(task, places, scores) for scores in (before, after))
        if first is None or second is None:
            return
        total += float(divergences(log_softmax(first), log_softmax(second)).sum())
        count += len(first)
    name = f"KL divergence from the checkpoint, mean of {count:,}"
    yield at_most(name, total / max(1, count), profile.largest_divergence)


def _distributions(task: Any, counted: np.ndarray, scores: Any) -> np.ndarray | None:
    """Raw scores as rows [N, C], each of one distribution; None where there is none."""
    if not task.softmax_over or isinstance(scores, dict):
        return None
    values = np.asarray(scores, np.float64)
    if task.softmax_over == "positions":
        kept = np.where(counted[..., None], values, MASKED)
        return kept.swapaxes(1, 2).reshape(-1, counted.shape[1])
    if getattr(task, "problem", "") == "multi_label":
        return np.stack([values, np.zeros_like(values)], axis=-1).reshape(-1, 2)
    if values.ndim == 3:
        return values[counted]
    return values


def _of_numbers(profile: Profile, wanted: np.ndarray, found: np.ndarray) -> Check:
    apart = float(np.sqrt(np.mean(np.square(found - wanted))))
    spread = float(np.std(wanted))
    return at_most(
        f"numbers differ, of their spread {spread:.3g}",
        apart / max(spread, float(np.finfo(np.float32).tiny)),
        profile.largest_spread,
    )
