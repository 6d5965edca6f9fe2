"""Batches to a `tf.data.Dataset` that `model.fit` reads, for one device or for each of several."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tfllm.data.batching import Batch, Batches

if TYPE_CHECKING:
    import tensorflow as tf

PREFETCH = 4  # batches


class RowBatcher(Protocol):
    """Pads rows into a batch, as `tfllm.tasks` Features do."""

    def batch(
        self, rows: np.ndarray, length: int | None = None
    ) -> tuple[dict[str, np.ndarray], Any]:
        """Pad rows to one length.

        Args:
            rows: Indices of rows: int [B].
            length: Tokens of a row; None: those of the longest.

        Returns:
            Inputs {name: [B, ..., T]}; targets, an array [B, ...], several of them, or None.
        """
        ...


@dataclass(frozen=True)
class Split:
    """How a batch is split over replicas."""

    replicas: int = 1
    """The number of replicas."""
    own: range = range(1)
    """The replicas that this process feeds."""

    def rows(self, batch: Batch, group: int) -> Iterator[tuple[np.ndarray, bool]]:
        """Yield the rows of every part that is fed here, and whether they belong to the batch.

        The sizes of the parts differ by one unit of `group` rows at most. A replica for which no
        unit remains gets the first one of the batch, with sample weight 0.

        Args:
            batch: The batch of all replicas.
            group: Rows that must stay together.
        """
        units = batch.rows.reshape(-1, group)
        for replica in self.own:
            start = len(units) * replica // self.replicas
            end = len(units) * (replica + 1) // self.replicas
            yield (units[start:end] if end > start else units[:1]).ravel(), end > start


def dataset(
    features: Callable[[int], RowBatcher],
    batches: Batches,
    inputs: list[str],
    epoch: int = 0,
    step: int = 0,
    split: Split = Split(),
) -> tf.data.Dataset:
    """Build an endless dataset of batches for `keras.Model.fit`.

    Args:
        features: (epoch) -> the rows of an epoch.
        batches: Which rows make which batch.
        inputs: Names of the model's inputs.
        epoch: The first epoch, from 0.
        step: The first step of that epoch.
        split: Over replicas.

    Returns:
        A `tf.data.Dataset` of (inputs {name: [B, ..., T]}, targets [B, ...]); B and T differ from
        batch to batch. With several replicas there is one element for each that is fed here, in
        order, with a third part: sample weights float32 [B], 1, or 0 for rows that are ignored.
    """
    import tensorflow as tf

    group = batches.units.shape[1]

    def pad(
        rows: RowBatcher, indices: np.ndarray, length: int
    ) -> tuple[dict[str, np.ndarray], Any]:
        arrays, targets = rows.batch(indices, length)
        assert targets is not None, "training rows have targets"
        return {name: arrays[name] for name in inputs}, targets

    def generate() -> Iterator[tuple[Any, ...]]:
        current, first = epoch, step
        while True:
            rows = features(current)
            for batch in batches.epoch(current)[first:]:
                for indices, counts in split.rows(batch, group):
                    element = pad(rows, indices, batch.length)
                    if split.replicas > 1:
                        yield *element, np.full(len(indices) // group, counts, np.float32)
                    else:
                        yield element
            current, first = current + 1, 0

    signature = element_spec(features(epoch), batches.units[0], inputs)
    if split.replicas > 1:
        signature = (*signature, tf.TensorSpec((None,), tf.float32))
    batches_of_rows = tf.data.Dataset.from_generator(generate, output_signature=signature)
    return batches_of_rows.prefetch(PREFETCH * len(split.own))


def epochs(
    features: Callable[[int], RowBatcher],
    batches: Batches,
    inputs: list[str],
    sample_weight: Sequence[float] | None = None,
) -> tf.data.Dataset:
    """Return the batches of one epoch as a dataset; each further iteration is the next epoch.

    Args:
        features: The rows of an epoch, counted from 0.
        batches: Which rows make which batch. Without `shuffle` they are in order.
        inputs: Names of the model's inputs.
        sample_weight: A weight for each row, or None.

    Returns:
        A `tf.data.Dataset` of known length of (inputs {name: [B, ..., T]}, targets [B, ...]) and,
        with `sample_weight`, weights float32 [B]; of inputs alone where rows have no targets.
    """
    import tensorflow as tf

    group = batches.units.shape[1]
    weights = None if sample_weight is None else np.asarray(sample_weight, np.float32)
    epoch_numbers = itertools.count()

    def plan(epoch: int) -> list[Batch]:
        return batches.epoch(epoch) if batches.shuffle else batches.in_order()

    def generate() -> Iterator[Any]:
        epoch = next(epoch_numbers)
        rows = features(epoch)
        for batch in plan(epoch):
            arrays, targets = rows.batch(batch.rows, batch.length)
            x = {name: arrays[name] for name in inputs}
            if targets is None:
                yield x
            elif weights is None:
                yield x, targets
            else:
                yield x, targets, weights[batch.rows[::group]]

    signature = element_spec(features(0), batches.units[0], inputs)
    if weights is not None:
        signature = (*signature, tf.TensorSpec((None,), tf.float32))
    batches_of_rows = tf.data.Dataset.from_generator(generate, output_signature=signature)
    cardinality = tf.data.experimental.assert_cardinality(len(plan(0)))
    return batches_of_rows.apply(cardinality).prefetch(PREFETCH)


def element_spec(rows: RowBatcher, unit: np.ndarray, inputs: list[str]) -> Any:
    """Return the TensorSpecs of batches of any size and length.

    Args:
        rows: The rows.
        unit: The indices of the rows of one unit.
        inputs: Names of the model's inputs.

    Returns:
        Specs of (inputs, targets), or of inputs where the rows have no targets.
    """
    import tensorflow as tf

    def input_spec(array: np.ndarray) -> tf.TensorSpec:
        return tf.TensorSpec((None, *array.shape[1:-1], None), tf.as_dtype(array.dtype))

    def target_spec(short: np.ndarray, long: np.ndarray) -> tf.TensorSpec:
        """An axis that depends on the length has no fixed size; one of classes has."""
        shape = [None if a != b else a for a, b in zip(short.shape, long.shape, strict=True)]
        return tf.TensorSpec((None, *shape[1:]), tf.as_dtype(short.dtype))

    arrays, short = rows.batch(unit, 8)
    _, long = rows.batch(unit, 16)
    x = {name: input_spec(arrays[name]) for name in inputs}
    if short is None:
        return x
    return x, tf.nest.map_structure(target_spec, short, long)
