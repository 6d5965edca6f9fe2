"""Losses over the batches of `Features`: targets first, outputs second, one number back.

All are computed in float32 from raw scores. Each is a mean over what counts (examples, real tokens,
pairs), so that padding changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from tfllm.errors import SettingError, did_you_mean
from tfllm.tasks.base import IGNORED, ClassWeights


class CrossEntropy(keras.losses.Loss):
    """Softmax cross entropy: targets int [...], outputs [..., C]; targets of -100 do not count.

    With class weights it is the weighted mean, sum(w_target * loss) / sum(w_target), as in
    torch.nn.CrossEntropyLoss. Label smoothing: Szegedy et al. 2016, the target is
    1 - smoothing + smoothing / C.
    """

    def __init__(
        self,
        label_smoothing: float = 0.0,
        class_weights: Sequence[float] | None = None,
        name: str = "cross_entropy",
    ):
        super().__init__(name=name)
        self.label_smoothing = label_smoothing
        self.class_weights = (
            None if class_weights is None else np.asarray(class_weights, np.float32)
        )

    def counts(self, y_true: Any) -> Any:
        """What each target counts for in the mean: its class weight, 0 where it is ignored."""
        targets = ops.cast(y_true, "int32")
        counts = ops.cast(ops.not_equal(targets, IGNORED), "float32")
        if self.class_weights is not None:
            counts = counts * ops.take(self.class_weights, ops.maximum(targets, 0))
        return counts

    def call(self, y_true: Any, y_pred: Any) -> Any:
        counts = self.counts(y_true)
        targets = ops.maximum(ops.cast(y_true, "int32"), 0)
        losses = ops.sparse_categorical_crossentropy(targets, y_pred, from_logits=True)
        if self.label_smoothing:
            uniform = -ops.mean(ops.log_softmax(y_pred, axis=-1), axis=-1)
            losses = (1.0 - self.label_smoothing) * losses + self.label_smoothing * uniform
        return weighted_mean(losses, counts)


class MaskedCrossEntropy(CrossEntropy):
    """Cross entropy of hidden tokens: targets int [B, T]; outputs [B, T, V], or the dict of a model
    that gives scores at some places only (`tfllm.layers.heads.at_positions`)."""

    def call(self, y_true: Any, y_pred: Any) -> Any:
        return super().call(*at_positions(y_true, y_pred))


class PretrainingLoss(keras.losses.Loss):
    """The mean over hidden tokens plus the mean over pairs (Devlin et al. 2019, appendix A.2).

    Targets int [B, T]: the pair's label at the first token, hidden tokens at theirs, -100
    elsewhere. Outputs: `tokens` [B, T, V] or at positions, `next_sentence` [B, 2].
    """

    def __init__(self):
        super().__init__(name="pretraining")
        self.cross_entropy = CrossEntropy()

    def counts(self, y_true: Any) -> dict[str, Any]:
        """What counts in each of the two means."""
        targets = pretraining_targets(y_true)
        return {name: self.cross_entropy.counts(part) for name, part in targets.items()}

    def parts(self, y_true: Any, y_pred: Any) -> dict[str, Any]:
        """Both means, of which the loss is the sum."""
        targets = pretraining_targets(y_true)
        return {
            "tokens": self.cross_entropy.call(*at_positions(targets["tokens"], y_pred)),
            "next_sentence": self.cross_entropy.call(
                targets["next_sentence"], y_pred["next_sentence"]
            ),
        }

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        return self.call(y_true, y_pred)  # Keras' own wants a target for every output

    def call(self, y_true: Any, y_pred: Any) -> Any:
        return sum(self.parts(y_true, y_pred).values())


def pretraining_targets(y_true: Any) -> dict[str, Any]:
    """Targets of both kinds, of one array [B, T]: `tokens` [B, T] and `next_sentence` [B]."""
    targets = ops.cast(y_true, "int32")
    nothing = ops.full_like(targets[:, :1], IGNORED)
    return {
        "tokens": ops.concatenate([nothing, targets[:, 1:]], axis=1),
        "next_sentence": targets[:, 0],
    }


def at_positions(y_true: Any, y_pred: Any) -> tuple[Any, Any]:
    """Targets and scores of tokens, at the places where there are scores.

    Targets [B, T] with outputs [B, T, V], or with `tokens` [B, P, V] and `positions` [B, P]: then
    targets [B, P].
    """
    if not isinstance(y_pred, dict):
        return y_true, y_pred
    if "positions" in y_pred:
        targets = ops.cast(y_true, "int32")
        y_true = ops.take_along_axis(targets, ops.cast(y_pred["positions"], "int32"), axis=1)
    return y_true, y_pred["tokens"]


class SigmoidCrossEntropy(keras.losses.Loss):
    """Every label is its own yes or no: targets float [B, C] of 0 and 1, outputs [B, C].

    The weighted mean over examples and labels; smoothing moves targets towards 1/2.
    """

    def __init__(self, label_smoothing: float = 0.0, class_weights: Sequence[float] | None = None):
        super().__init__(name="sigmoid_cross_entropy")
        self.label_smoothing = label_smoothing
        self.class_weights = (
            None if class_weights is None else np.asarray(class_weights, np.float32)
        )

    def counts(self, y_true: Any) -> Any:
        """What each label of each example counts for in the mean: its weight."""
        weights = ops.ones_like(ops.cast(y_true, "float32"))
        return weights if self.class_weights is None else weights * self.class_weights

    def call(self, y_true: Any, y_pred: Any) -> Any:
        targets = y_true * (1.0 - self.label_smoothing) + 0.5 * self.label_smoothing
        losses = ops.binary_crossentropy(targets, y_pred, from_logits=True)
        return weighted_mean(losses, self.counts(y_true))


class SquaredError(keras.losses.Loss):
    """Mean squared error: targets float [B] or [B, C], outputs [B, 1] or [B, C]."""

    def __init__(self):
        super().__init__(name="squared_error")

    def call(self, y_true: Any, y_pred: Any) -> Any:
        return ops.mean(ops.square(ops.reshape(y_true, ops.shape(y_pred)) - y_pred))


class SpanCrossEntropy(keras.losses.Loss):
    """Half the sum of the start's and the end's cross entropy over the tokens of a row.

    Targets int [B, 2], outputs [B, T, 2] (Devlin et al. 2019, section 4.2).
    """

    def __init__(self):
        super().__init__(name="span_cross_entropy")

    def call(self, y_true: Any, y_pred: Any) -> Any:
        scores = ops.transpose(y_pred, (0, 2, 1))  # [B, 2, T]
        targets = ops.cast(y_true, "int32")
        return ops.mean(
            ops.sparse_categorical_crossentropy(targets, scores, from_logits=True)  # [B, 2]
        )


class InBatchNegatives(keras.losses.Loss):
    """Every text must find its partner among those of the batch.

    Outputs [2B, D], rows 2i and 2i + 1 a pair; the targets are not read. Cross entropy of
    scale * cosine over the second texts, as MultipleNegativesRankingLoss of sentence-transformers
    (Henderson et al. 2017, section 4.4).
    """

    def __init__(self, scale: float = 20.0):
        super().__init__(name="in_batch_negatives")
        self.scale = scale

    def call(self, y_true: Any, y_pred: Any) -> Any:
        scores = self.scale * pair_cosines(y_pred)  # [B, B]
        partner = ops.arange(ops.shape(scores)[0])
        return ops.mean(ops.sparse_categorical_crossentropy(partner, scores, from_logits=True))


class CosineError(keras.losses.Loss):
    """Mean squared error of the cosines of pairs (Reimers and Gurevych 2019, section 3.1).

    Outputs [2B, D] and targets float [2B], rows 2i and 2i + 1 a pair with the same target.
    """

    def __init__(self):
        super().__init__(name="cosine_error")

    def call(self, y_true: Any, y_pred: Any) -> Any:
        pairs = unit_pairs(y_pred)
        cosines = ops.sum(pairs[:, 0] * pairs[:, 1], axis=-1)
        return ops.mean(ops.square(cosines - ops.reshape(y_true, (-1, 2))[:, 0]))


def pair_cosines(vectors: Any) -> Any:
    """Cosines [B, B] of every first text with every second: vectors [2B, D], interleaved."""
    pairs = unit_pairs(vectors)
    return ops.matmul(pairs[:, 0], ops.transpose(pairs[:, 1]))


def unit_pairs(vectors: Any) -> Any:
    """Vectors [2B, D], interleaved, at length 1 in float32: [B, 2, D]."""
    size = ops.shape(vectors)[-1]
    return ops.reshape(ops.normalize(ops.cast(vectors, "float32"), axis=-1), (-1, 2, size))


def weighted_mean(values: Any, weights: Any) -> Any:
    """sum(values * weights) / sum(weights), 0 where nothing counts."""
    total = ops.sum(weights)
    return ops.sum(values * weights) / ops.where(total > 0, total, ops.ones_like(total))


def weights_of(class_weights: ClassWeights, labels: Sequence[str]) -> list[float] | None:
    """Weights in the order of the labels; a mapping may leave labels out (weight 1)."""
    if class_weights is None:
        return None
    if isinstance(class_weights, Mapping):
        for label in class_weights:
            if label not in labels:
                raise SettingError(
                    f"train.class_weights names '{label}', which is no label of the task. "
                    f"{did_you_mean(label, labels)}"
                )
        return [float(class_weights.get(label, 1.0)) for label in labels]
    if len(class_weights) != len(labels):
        raise SettingError(
            f"train.class_weights has {len(class_weights)} numbers for {len(labels)} labels "
            f"({', '.join(labels)}). Give one per label, in this order."
        )
    return [float(weight) for weight in class_weights]


def refuse(kind: str, **options: Any) -> None:
    """Raises SettingError for a set option that the task `kind` has no use for."""
    for name, value in options.items():
        if value is not None and value != 0:
            raise SettingError(
                f"train.{name} has no meaning for the task {kind}. Remove it from the recipe."
            )
