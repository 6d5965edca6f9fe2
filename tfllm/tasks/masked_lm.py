"""Filling in masked words (Devlin et al. 2019, section 3.1, task 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from tfllm.tasks.base import IGNORED, ClassWeights, Example, Features, Task, encoded, made, text_of

if TYPE_CHECKING:
    import keras

    from tfllm.tokenizers.base import Tokenizer

# Of the tokens to be told, the share that becomes [MASK], and another token of the vocabulary.
MASKED, RANDOM = 0.8, 0.1
SPACES = " \t\n\f\r"  # RE2's \s, which the serving graph uses


class MaskedLM(Task):
    """Scores over the vocabulary for every token."""

    kind: Literal["masked_lm"] = "masked_lm"
    mask_probability: float = Field(default=0.15, gt=0, lt=1)
    """Training: share of tokens to be told; 80 % become [MASK], 10 % another token, 10 % stay."""
    top_k: int = Field(default=5, ge=1)
    """Candidates in an answer."""

    def model(self, backbone: keras.Model, config: Any) -> keras.Model:
        """Raw scores [B, T, V]."""
        import keras

        from tfllm.layers import heads

        scores = heads.masked(backbone.output, config, backbone)
        return keras.Model(backbone.input, scores, name=self.kind)

    def features(
        self, examples: Sequence[Example], tokenizer: Tokenizer, *, targets: bool = True
    ) -> Features:
        """One row per text, or pair of texts, as it is, without targets: `for_epoch` draws them."""
        details: list[dict[str, Any]] = []
        encodings = encoded(examples, tokenizer, self.max_length)
        for example, encoding in zip(examples, encodings, strict=True):
            ids = np.asarray(encoding.ids)
            special = np.array([number is None for number in encoding.sequence_ids])
            masks = np.flatnonzero((ids == tokenizer.mask_id) & ~special)
            details.append(
                {
                    "text": text_of(example),
                    "fixed": special | (ids == tokenizer.mask_id),
                    "masks": masks,
                    "tokenizer": tokenizer,
                }
            )
        return made(encodings, tokenizer, details=details)

    def for_epoch(self, features: Features, seed: int = 0, epoch: int = 0) -> Features:
        """The rows with masks drawn as a function of (seed, epoch, row); targets int [T].

        Targets are the hidden tokens, -100 elsewhere. Every row with a token hides at least one.
        """
        ids, targets = [], []
        for row, tokens in enumerate(features.token_ids):
            chance = np.random.default_rng((seed, epoch, row))
            hidden, target = self._hidden(tokens, features.details[row], chance)
            ids.append(hidden)
            targets.append(target)
        return replace(features, token_ids=ids, targets=targets, per_token=True)

    def loss(
        self, label_smoothing: float = 0.0, class_weights: ClassWeights = None
    ) -> keras.losses.Loss:
        """Softmax cross entropy over the hidden tokens of the batch."""
        from tfllm.tasks import losses

        losses.refuse(self.kind, class_weights=class_weights)
        return losses.CrossEntropy(label_smoothing)

    def metrics(self) -> list[keras.metrics.Metric]:
        """Accuracy and perplexity over the hidden tokens."""
        from tfllm.tasks import metrics

        return [metrics.Accuracy(), metrics.Perplexity()]

    def answers(self, outputs: Sequence[np.ndarray], features: Features) -> list[dict[str, Any]]:
        """`{"text", "masks": [{"token", "score", "candidates": [{"token", "score"}]}]}`.

        Each [MASK] of the text gets its most probable token; one beyond `max_length` stays.
        """
        rows = zip(outputs, features.details, strict=True)
        return [self._answer(np.asarray(output), detail) for output, detail in rows]

    def signatures(self, model: keras.Model, graph_tokenizer: Any) -> dict[str, Any]:
        """`serving_default`: text -> text, tokens, scores of its masks; and `tokens`."""
        from tfllm.tasks import text_graph

        return text_graph.masked_lm(self, model, graph_tokenizer)

    def _hidden(
        self, tokens: np.ndarray, detail: dict[str, Any], chance: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """A row's tokens with some hidden, and its target."""
        tokenizer = detail["tokenizer"]
        free = np.flatnonzero(~detail["fixed"])
        chosen = free[chance.random(len(free)) < self.mask_probability]
        if not len(chosen) and len(free):
            chosen = chance.choice(free, 1)
        target = np.full(len(tokens), IGNORED, np.int32)
        target[chosen] = tokens[chosen]
        draws = chance.random(len(chosen))
        others = chance.integers(tokenizer.vocabulary_size, size=len(chosen))
        hidden = tokens.copy()
        hidden[chosen[draws < MASKED]] = tokenizer.mask_id
        other = (draws >= MASKED) & (draws < MASKED + RANDOM)
        hidden[chosen[other]] = others[other]
        return hidden, target

    def _answer(self, output: np.ndarray, detail: dict[str, Any]) -> dict[str, Any]:
        vocabulary = detail["tokenizer"].vocabulary
        masks = []
        for place in detail["masks"]:
            scores = output[place].astype(np.float32)
            probabilities = np.exp(scores - scores.max())
            probabilities /= probabilities.sum()
            best = np.argsort(-probabilities, kind="stable")[: self.top_k]
            found = [{"token": vocabulary[i], "score": float(probabilities[i])} for i in best]
            masks.append({**found[0], "candidates": found})
        mask = vocabulary[detail["tokenizer"].mask_id]
        return {"text": filled(detail["text"], mask, masks), "masks": masks}


def filled(text: str, mask: str, masks: Sequence[dict[str, Any]]) -> str:
    """The text with its masks replaced by their tokens; a `##piece` is joined to the word."""
    parts = text.split(mask)
    tokens = [answer["token"] for answer in masks][: len(parts) - 1]
    tokens += [mask] * (len(parts) - 1 - len(tokens))
    result = parts[0]
    for token, part in zip(tokens, parts[1:], strict=True):
        joined = token.startswith("##") and len(token) > 2
        result = (result.rstrip(SPACES) + token[2:] if joined else result + token) + part
    return result
