"""Losses over the batches of `Features`: targets first, outputs second.

A loss gives a value for every target, as Keras' own do, and Keras takes the mean: over examples, or
over the tokens that count. With `sample_weight` (one per example, or one per target) it is
sum(weight * value) / number of targets, Keras' rule. Each value is computed in float32 from raw
scores.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops, tree

from tfllm.errors import SettingError, did_you_mean
from tfllm.layers.types import Tensor
from tfllm.tasks import cross_replica
from tfllm.tasks.features import IGNORED, ClassWeights

registered = keras.saving.register_keras_serializable(package="tfllm")


class TaskLoss(keras.losses.Loss):
    """A loss with one value per target: [B], or [B, T] where every token has a target.

    Under `tf.distribute` the mean is over the targets of all replicas, as on one device. (That of
    Keras' own losses weighs replicas alike, however many tokens each of them has.)
    """

    def values(self, targets: Tensor, outputs: Tensor) -> Tensor:
        """Return the loss of every target, float32, not yet weighted by `counts`.

        Args:
            targets: Of `align_targets`, in the shape that the class names.
            outputs: The model's outputs, float32, in the shape that the class names.
        """
        raise NotImplementedError

    def counts(self, targets: Tensor) -> Tensor:
        """Return the weight of every target in the mean: float32 in the shape of `values`."""
        return ops.ones_like(ops.cast(targets, "float32"))

    def align_targets(self, y_true: Tensor, y_pred: Tensor) -> tuple[Tensor, Tensor]:
        """Return the targets and outputs that `values` compares.

        Args:
            y_true: The batch's targets.
            y_pred: The model's outputs.
        """
        return y_true, y_pred

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Return the weighted loss of every target, which Keras reduces.

        Args:
            y_true: The batch's targets.
            y_pred: The model's outputs.
        """
        targets, outputs = self.align_targets(y_true, y_pred)
        return self.values(targets, outputs) * self.counts(targets)

    def parts(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Return the weighted mean, which the training step differentiates.

        A structure of means where the loss is a sum of several; `counts` has the same structure.

        Args:
            y_true: The batch's targets.
            y_pred: The model's outputs.
        """
        targets, outputs = self.align_targets(y_true, y_pred)
        return weighted_mean(self.values(targets, outputs), self.counts(targets))

    def __call__(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor = None) -> Tensor:
        """The losses, reduced as `reduction` says."""
        with keras.name_scope(self.name):
            y_true = tree.map_structure(ops.convert_to_tensor, y_true)
            y_pred = tree.map_structure(to_float32, y_pred)
            targets, outputs = self.align_targets(y_true, y_pred)
            counts = self.counts(targets)
            losses = self.values(targets, outputs) * counts
            if sample_weight is not None:
                weights = align_weights(sample_weight, losses)
                losses = losses * weights
                if self.reduction == "mean_with_sample_weight":
                    counts = counts * weights
            if self.reduction in (None, "none"):
                return losses
            total = ops.sum(losses)
            if self.reduction == "sum":
                return total
            return ops.divide_no_nan(total, cross_replica.all_reduce_sum(ops.sum(counts)))


@registered
class CrossEntropy(TaskLoss):
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
        **options: Any,
    ):
        super().__init__(name=name, **options)
        self.label_smoothing = label_smoothing
        self.class_weights = None if class_weights is None else tuple(map(float, class_weights))

    def counts(self, targets: Tensor) -> Tensor:
        """Return the class weight of each target, 0 where it is ignored."""
        targets = ops.cast(targets, "int32")
        counts = ops.cast(ops.not_equal(targets, IGNORED), "float32")
        if self.class_weights is not None:
            weights = ops.convert_to_tensor(self.class_weights, "float32")
            counts = counts * ops.take(weights, ops.maximum(targets, 0))
        return counts

    def values(self, targets: Tensor, outputs: Tensor) -> Tensor:
        """Return the cross entropy of targets int [...] and logits [..., C]: [...]."""
        targets = ops.maximum(ops.cast(targets, "int32"), 0)
        losses = ops.sparse_categorical_crossentropy(targets, outputs, from_logits=True)
        if self.label_smoothing:
            uniform = -ops.mean(ops.log_softmax(outputs, axis=-1), axis=-1)
            losses = (1.0 - self.label_smoothing) * losses + self.label_smoothing * uniform
        return losses

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments, from which Keras builds the loss again."""
        weights = None if self.class_weights is None else list(self.class_weights)
        own = {"label_smoothing": self.label_smoothing, "class_weights": weights}
        return {**super().get_config(), **own}


@registered
class MaskedCrossEntropy(CrossEntropy):
    """Cross entropy of masked tokens: targets int [B, T]; outputs [B, T, V], or the dict of a model
    that gives scores at some positions only (`tfllm.layers.heads.masked_lm_at_positions`)."""

    def align_targets(self, y_true: Tensor, y_pred: Tensor) -> tuple[Tensor, Tensor]:
        """Return the targets and logits at masked tokens. See `at_positions`."""
        return at_positions(y_true, y_pred)


@registered
class PretrainingLoss(CrossEntropy):
    """The mean over masked tokens plus the mean over pairs (Devlin et al. 2019, appendix A.2).

    Targets {`tokens`: int [B, T], `next_sentence`: int [B]}; outputs with the same names. Keras
    calls it for each of both, and adds up.
    """

    def __init__(self, name: str = "pretraining", **options: Any):
        super().__init__(name=name, **options)

    def counts(self, targets: Tensor) -> Tensor:
        """Return what counts in each of the two means."""
        return tree.map_structure(super().counts, targets)

    def parts(self, y_true: Tensor, y_pred: Tensor) -> dict[str, Tensor]:
        """Return the means over `tokens` and over `next_sentence`; the loss is their sum."""
        each = self._each(y_true, y_pred)
        return {name: super(PretrainingLoss, self).parts(*both) for name, both in each.items()}

    def __call__(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor = None) -> Tensor:
        if not isinstance(y_pred, dict):
            return super().__call__(y_true, y_pred, sample_weight)
        each = self._each(y_true, y_pred).values()
        return sum(super(PretrainingLoss, self).__call__(*both, sample_weight) for both in each)

    def _each(self, y_true: Tensor, y_pred: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        pairs = y_true["next_sentence"], y_pred["next_sentence"]
        return {"tokens": at_positions(y_true["tokens"], y_pred), "next_sentence": pairs}


def at_positions(y_true: Tensor, y_pred: Tensor) -> tuple[Tensor, Tensor]:
    """Return targets and logits of tokens, at the positions that have logits.

    Args:
        y_true: Targets int [B, T].
        y_pred: Logits [B, T, V], or a dict of `tokens` [B, P, V] and `positions` int [B, P].

    Returns:
        Targets [B, T] or [B, P], and logits [B, T, V] or [B, P, V].
    """
    if not isinstance(y_pred, dict):
        return y_true, y_pred
    if "positions" in y_pred:
        targets = ops.cast(y_true, "int32")
        y_true = ops.take_along_axis(targets, ops.cast(y_pred["positions"], "int32"), axis=1)
    return y_true, y_pred["tokens"]


@registered
class SigmoidCrossEntropy(TaskLoss):
    """Every label is its own yes or no: targets float [B, C] of 0 and 1, outputs [B, C] to [B].

    The weighted mean over labels; smoothing moves targets towards 1/2.
    """

    def __init__(
        self,
        label_smoothing: float = 0.0,
        class_weights: Sequence[float] | None = None,
        name: str = "sigmoid_cross_entropy",
        **options: Any,
    ):
        super().__init__(name=name, **options)
        self.label_smoothing = label_smoothing
        self.class_weights = None if class_weights is None else tuple(map(float, class_weights))

    def counts(self, targets: Tensor) -> Tensor:
        """Return 1 for every example: float32 [B]."""
        return ops.ones_like(ops.cast(targets[..., 0], "float32"))

    def values(self, targets: Tensor, outputs: Tensor) -> Tensor:
        """Return the weighted mean over labels of targets [B, C] and logits [B, C]: float32 [B]."""
        targets = ops.cast(targets, "float32")
        targets = targets * (1.0 - self.label_smoothing) + 0.5 * self.label_smoothing
        losses = ops.binary_crossentropy(targets, outputs, from_logits=True)
        weights = ops.ones_like(losses)
        if self.class_weights is not None:
            weights = weights * ops.convert_to_tensor(self.class_weights, "float32")
        return weighted_mean(losses, weights, axis=-1)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments, from which Keras builds the loss again."""
        weights = None if self.class_weights is None else list(self.class_weights)
        own = {"label_smoothing": self.label_smoothing, "class_weights": weights}
        return {**super().get_config(), **own}


@registered
class SquaredError(TaskLoss):
    """Squared error: targets float [B] or [B, C], outputs [B, 1] or [B, C], to the mean [B]."""

    def __init__(self, name: str = "squared_error", **options: Any):
        super().__init__(name=name, **options)

    def counts(self, targets: Tensor) -> Tensor:
        """Return 1 for every example: float32 [B]."""
        targets = ops.cast(targets, "float32")
        return ops.ones_like(targets if len(targets.shape) == 1 else targets[..., 0])

    def values(self, targets: Tensor, outputs: Tensor) -> Tensor:
        """Return the mean over C of targets [B] or [B, C] and outputs [B, 1] or [B, C]: [B]."""
        targets = ops.reshape(ops.cast(targets, outputs.dtype), ops.shape(outputs))
        return ops.mean(ops.square(targets - outputs), axis=-1)


@registered
class SpanCrossEntropy(TaskLoss):
    """Half the sum of the start's and the end's cross entropy over the tokens of a row: [B].

    Targets int [B, 2], outputs [B, T, 2] (Devlin et al. 2019, section 4.2).
    """

    def __init__(self, name: str = "span_cross_entropy", **options: Any):
        super().__init__(name=name, **options)

    def counts(self, targets: Tensor) -> Tensor:
        """Return 1 for every row: float32 [B]."""
        return ops.ones_like(ops.cast(targets[..., 0], "float32"))

    def values(self, targets: Tensor, outputs: Tensor) -> Tensor:
        """Return half the sum of both cross entropies: int [B, 2] and logits [B, T, 2] to [B]."""
        scores = ops.transpose(outputs, (0, 2, 1))  # [B, 2, T]
        targets = ops.cast(targets, "int32")
        both = ops.sparse_categorical_crossentropy(targets, scores, from_logits=True)  # [B, 2]
        return ops.mean(both, axis=-1)


@registered
class InBatchNegatives(TaskLoss):
    """Every text must find its partner among those of the batch, of all replicas: [B].

    Outputs [B, 2, D], a pair per row; the targets are not read. Cross entropy of scale * cosine
    over the second texts, as MultipleNegativesRankingLoss of sentence-transformers (Henderson et
    al. 2017, section 4.4).
    """

    def __init__(self, scale: float = 20.0, name: str = "in_batch_negatives", **options: Any):
        super().__init__(name=name, **options)
        self.scale = scale

    def values(self, targets: Tensor, outputs: Tensor) -> Tensor:
        """Return the cross entropy of each pair's own second text: outputs [B, 2, D] to [B]."""
        cosines, partner = pair_cosines(outputs)
        return ops.sparse_categorical_crossentropy(partner, self.scale * cosines, from_logits=True)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments, from which Keras builds the loss again."""
        return {**super().get_config(), "scale": self.scale}


@registered
class CosineError(TaskLoss):
    """Squared error of the cosines of pairs (Reimers and Gurevych 2019, section 3.1): [B].

    Outputs [B, 2, D], a pair per row, and targets float [B].
    """

    def __init__(self, name: str = "cosine_error", **options: Any):
        super().__init__(name=name, **options)

    def values(self, targets: Tensor, outputs: Tensor) -> Tensor:
        """Return the squared error of cosines: targets float [B], outputs [B, 2, D] to [B]."""
        pairs = unit_pairs(outputs)
        cosines = ops.sum(pairs[:, 0] * pairs[:, 1], axis=-1)
        return ops.square(cosines - ops.cast(targets, "float32"))


def pair_cosines(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Return cosines [B, R] of every first text with every second of all replicas, and int32 [B]:
    which of these is its own."""
    pairs = unit_pairs(vectors)
    seconds, before = cross_replica.all_gather_rows(pairs[:, 1])
    own = before + ops.arange(ops.shape(pairs)[0], dtype="int32")
    return ops.matmul(pairs[:, 0], ops.transpose(seconds)), own


def unit_pairs(vectors: Tensor) -> Tensor:
    """Scale vectors [B, 2, D] to length 1 in float32.

    Raises:
        SettingError: The vectors are of single texts, whose shuffled rows are no pairs.
    """
    if len(vectors.shape) != 3 or vectors.shape[1] != 2:
        raise SettingError(
            f"The loss of the task embedding compares pairs, [B, 2, D], and the model gives "
            f"{tuple(vectors.shape)}. Train task.training_model(model), whose rows are pairs."
        )
    return ops.normalize(ops.cast(vectors, "float32"), axis=-1)


def to_float32(outputs: Tensor) -> Tensor:
    """Convert to a tensor; numbers of another precision to float32."""
    outputs = ops.convert_to_tensor(outputs)
    is_float = keras.backend.is_float_dtype(keras.backend.standardize_dtype(outputs.dtype))
    return ops.cast(outputs, "float32") if is_float else outputs


def align_weights(weights: Tensor, values: Tensor) -> Tensor:
    """Return weights with axes so that they multiply values.

    Args:
        weights: Per example [B], or in the shape of the values.
        values: [B, ...].
    """
    weights = ops.cast(ops.convert_to_tensor(weights), "float32")
    missing = len(values.shape) - len(weights.shape)
    if missing < 0:  # Keras gives [B] weights as [B, 1] too
        return ops.reshape(weights, ops.shape(weights)[: len(values.shape)])
    return ops.reshape(weights, (*ops.shape(weights), *(1,) * missing))


def weighted_mean(values: Tensor, weights: Tensor, axis: int | None = None) -> Tensor:
    """Compute sum(values * weights) / sum(weights), 0 where all weights are 0.

    Args:
        values: Of any shape.
        weights: In the same shape.
        axis: The axis to reduce; None: all.
    """
    total = ops.sum(weights, axis=axis)
    return ops.sum(values * weights, axis=axis) / ops.where(total > 0, total, ops.ones_like(total))


def ordered_class_weights(class_weights: ClassWeights, labels: Sequence[str]) -> list[float] | None:
    """Return class weights in the order of the labels; None where there are none.

    Args:
        class_weights: A number per label, or {label: number}; a label left out has 1.
        labels: The labels' names.

    Raises:
        SettingError: A label is not known, or a weight is negative or not finite.
    """
    if class_weights is None:
        return None
    weights = _ordered(class_weights, labels)
    for label, weight in zip(labels, weights, strict=True):
        if not (math.isfinite(weight) and weight >= 0):
            raise SettingError(
                f"train.class_weights: the weight of '{label}' is {weight}. "
                "Give 0 or a positive number."
            )
    if not any(weights):
        raise SettingError(
            "train.class_weights: all weights are 0, so nothing would be learned. "
            "Give one label at least a positive weight."
        )
    return weights


def _ordered(class_weights: Mapping[str, float] | Sequence[float], labels: Sequence[str]) -> list:
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


def reject_options(kind: str, **options: Any) -> None:
    """Check that options of `loss` are not set.

    Args:
        kind: The task that does not use them.
        **options: Values by name; None and 0 are not set.

    Raises:
        SettingError: One is set.
    """
    for name, value in options.items():
        if value is not None and value != 0:
            raise SettingError(
                f"train.{name} has no meaning for the task {kind}. Remove it from the recipe."
            )
