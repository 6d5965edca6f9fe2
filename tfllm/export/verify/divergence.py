"""KL divergence of an artifact's probabilities from its checkpoint's, in nats.

Faulty rounding shows here first, where the most likely prediction may still be the same. For files
that give logits, every position of the texts counts exactly. Files that only generate give the
log-probabilities of the tokens they sampled, from which the same number is estimated.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from tfllm.errors import CheckFailed
from tfllm.export.artifact import Check, at_least, at_most, report
from tfllm.export.profile import Profile
from tfllm.runtimes.token_predictor import Outputs
from tfllm.tasks import Task
from tfllm.tokenizers.base import Tokenizer, valid_id_ranges

CHUNK_VALUES = 2**22  # logits that are converted to float64 at once
MASKED = -1e9
FLOAT32_AGREEMENT = 0.999  # sums in another order may swap two equally likely tokens


class Vocabulary:
    """The ids that have a token. An embedding table may have more rows, which files exclude and a
    checkpoint does not: they are left out of both distributions."""

    def __init__(self, tokenizer: Tokenizer, size: int):
        self.unk_token_id: int | None = tokenizer.unk_token_id
        ranges = valid_id_ranges(tokenizer, size)
        self.known = np.full(size, not ranges)
        for start, stop in ranges:
            self.known[start:stop] = True

    def log_softmax(self, logits: np.ndarray) -> np.ndarray:
        """Return log-probabilities float64 [..., V] over the ids that have a token."""
        return log_softmax(np.where(self.known, logits, MASKED))

    def token_log_probs(self, logits: np.ndarray, ids: Sequence[int]) -> np.ndarray:
        """Return the log-probability of ids: float64 [N].

        Args:
            logits: [N, V].
            ids: Token ids [N].
        """
        return self.log_softmax(logits)[np.arange(len(ids)), ids]


@dataclass
class TokenScores:
    """Sums over scored tokens, each predicted from the tokens before it."""

    tokens: int = 0
    unknown: int = 0
    """Unknown tokens, which are left out."""
    log_probability: float = 0.0
    """Sum of the tokens' log-probabilities by the checkpoint."""
    artifact_log_probability: float = 0.0
    """The same by the artifact."""
    divergence: float = 0.0
    """Sum of the KL divergences at the tokens' positions."""
    agreeing: int = 0
    """Positions with the same most likely token."""

    def add(
        self,
        expected: np.ndarray,
        actual: np.ndarray,
        targets: Sequence[int],
        vocabulary: Vocabulary,
    ) -> None:
        """Add N scored tokens.

        Args:
            expected: The checkpoint's logits [N, V].
            actual: The artifact's logits [N, V].
            targets: The N token ids that these predict.
            vocabulary: The ids that have a token.
        """
        ids = np.asarray(targets)
        unk = vocabulary.unk_token_id
        is_known = np.full(ids.shape, True) if unk is None else ids != unk
        self.unknown += int((~is_known).sum())
        positions = np.flatnonzero(is_known)
        step = max(1, CHUNK_VALUES // expected.shape[-1])
        for start in range(0, len(positions), step):
            chunk = positions[start : start + step]
            p, q = (vocabulary.log_softmax(logits[chunk]) for logits in (expected, actual))
            self.divergence += float(kl_divergence(p, q).sum())
            rows = np.arange(len(chunk))
            self.log_probability += float(p[rows, ids[chunk]].sum())
            self.artifact_log_probability += float(q[rows, ids[chunk]].sum())
            self.agreeing += int((p.argmax(-1) == q.argmax(-1)).sum())
        self.tokens += len(positions)

    def __add__(self, other: TokenScores) -> TokenScores:
        names = vars(self)
        return TokenScores(**{name: getattr(self, name) + getattr(other, name) for name in names})

    @property
    def perplexities(self) -> tuple[float, float]:
        """The checkpoint's and the artifact's perplexity."""
        return (
            self._perplexity(self.log_probability),
            self._perplexity(self.artifact_log_probability),
        )

    def _perplexity(self, log_probability: float) -> float:
        return math.exp(min(-log_probability / max(1, self.tokens), 700.0))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return log-probabilities float64 of logits [..., C]."""
    values = np.asarray(logits, np.float64)
    values = values - values.max(axis=-1, keepdims=True)
    return values - np.log(np.exp(values).sum(axis=-1, keepdims=True))


def kl_divergence(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Compute KL(p || q) in nats: [...]; NaN where `q` has any.

    Args:
        p: Log-probabilities [..., C].
        q: Log-probabilities [..., C].
    """
    return (np.exp(p) * (p - q)).sum(axis=-1)


def check_token_scores(
    profile: Profile, scores: Mapping[str, TokenScores], vocabulary_size: int
) -> Iterator[Check]:
    """Check perplexity, KL divergence and agreement on texts of one or more languages.

    A language in which the checkpoint is worse than a uniform distribution has not been learned,
    and small differences there mean nothing: it is reported and does not count, where there is
    another.

    Raises:
        CheckFailed: The vocabulary has no token of any text.
    """
    learned = {
        name: score
        for name, score in scores.items()
        if score.tokens and score.perplexities[0] <= vocabulary_size
    }
    counted = learned or scores
    total = sum(counted.values(), TokenScores())
    if not total.tokens:
        raise CheckFailed(
            "The tokenizer makes no tokens of the texts that the check reads. Give texts that it "
            "knows: --data FILE."
        )
    expected, actual = total.perplexities
    limit = profile.limits.perplexity_increase
    yield Check(
        f"perplexity on {total.tokens:,} tokens",
        f"{actual:.4f} (checkpoint {expected:.4f})",
        f"at most {100 * limit:.2g} % above",
        bool(actual <= expected * (1 + limit)),
    )
    for name, score in scores.items():
        if len(scores) > 1 or score.unknown:
            suffix = "" if name in counted else "; not learned, not counted"
            yield report(f"perplexity: {name}", _describe(score) + suffix)
    yield at_most(
        "KL divergence (nats per token)",
        total.divergence / total.tokens,
        profile.limits.kl_divergence,
    )
    yield at_least(
        "same most likely next token", total.agreeing / total.tokens, _agreement_limit(profile)
    )


def _agreement_limit(profile: Profile) -> float:
    if profile.tolerance.agreement is None and profile.quantization == "float32":
        return FLOAT32_AGREEMENT
    return profile.limits.agreement


def _describe(score: TokenScores) -> str:
    unknown = f"; {score.unknown:,} unknown to the vocabulary, left out" if score.unknown else ""
    if not score.tokens:
        return f"0 tokens{unknown}"
    expected, actual = score.perplexities
    return f"{score.tokens:,} tokens, {actual:.4f} (checkpoint {expected:.4f}){unknown}"


def check_sampled_tokens(
    profile: Profile, actual: Sequence[ArrayLike], expected: Sequence[ArrayLike]
) -> Check:
    """Check the estimated KL divergence of a file that only generates.

    The mean of r - 1 - log r over the sampled tokens, with r the checkpoint's probability divided
    by the file's, is an unbiased estimate of KL(file || checkpoint), and no term is negative
    (Schulman 2020, http://joschu.net/blog/kl-approx.html).

    Args:
        profile: Has the limit.
        actual: Log-probabilities of each text's tokens, sampled at temperature 1, by the file.
        expected: The same by the checkpoint.
    """
    own = np.concatenate([np.asarray(row, np.float64) for row in actual])
    log_ratio = np.concatenate([np.asarray(row, np.float64) for row in expected]) - own
    return at_most(
        f"KL divergence (nats per token), from {len(own):,} sampled tokens",
        float((np.exp(log_ratio) - 1 - log_ratio).mean()),
        profile.limits.kl_divergence,
    )


def check_predictions(
    profile: Profile,
    task: Task,
    counted: Sequence[np.ndarray],
    expected: Sequence[np.ndarray],
    actual: Sequence[np.ndarray],
) -> Iterator[Check]:
    """Check the KL divergence of an encoder's predictions; of a regression, its error.

    Args:
        profile: Has the limits.
        task: The model's task.
        counted: For each batch the positions bool [B, T] that count, where predictions are made
            per token.
        expected: The checkpoint's raw outputs for each batch.
        actual: The artifact's raw outputs for each batch.
    """
    if getattr(task, "problem", "") == "regression":
        yield _check_regression(profile, np.concatenate(expected), np.concatenate(actual))
        return
    count, total = 0, 0.0
    for positions, before, after in zip(counted, expected, actual, strict=True):
        p, q = (_distributions(task, positions, outputs) for outputs in (before, after))
        if p is None or q is None:
            return
        total += float(kl_divergence(log_softmax(p), log_softmax(q)).sum())
        count += len(p)
    mean = total / max(1, count)
    yield at_most(f"KL divergence (nats), mean of {count:,}", mean, profile.limits.kl_divergence)


def _distributions(task: Task, positions: np.ndarray, outputs: Outputs) -> np.ndarray | None:
    """Return raw outputs as logits [N, C], a distribution per row; None where there is none."""
    if not task.softmax_over or isinstance(outputs, dict):
        return None
    logits = np.asarray(outputs, np.float64)
    if task.softmax_over == "positions":
        masked = np.where(positions[..., None], logits, MASKED)
        return masked.swapaxes(1, 2).reshape(-1, positions.shape[1])
    if getattr(task, "problem", "") == "multi_label":
        return np.stack([logits, np.zeros_like(logits)], axis=-1).reshape(-1, 2)
    if logits.ndim == 3:
        return logits[positions]
    return logits


def _check_regression(profile: Profile, expected: np.ndarray, actual: np.ndarray) -> Check:
    error = float(np.sqrt(np.mean(np.square(actual - expected))))
    deviation = float(np.std(expected))
    return at_most(
        f"root mean square error, relative to the standard deviation {deviation:.3g}",
        error / max(deviation, float(np.finfo(np.float32).tiny)),
        profile.limits.regression_error,
    )
