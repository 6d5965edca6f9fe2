"""The Keras model that `model.fit` trains: one optimizer step with all that transformers need.

It differs from `keras.Model.train_step` in six points: gradients of embeddings are made dense
(Keras' Adam adds the squares of repeated rows instead of squaring their sum), micro-batches
are accumulated inside the step, every target counts alike whatever its micro-batch or device,
gradients are summed over devices before they are clipped, their norm is reported, and the logs are
those of the step, not running means.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfllm.tasks.base import IGNORED


class TrainingModel(keras.Model):
    """A functional model with its own `train_step`: `TrainingModel(model.input, model.output)`."""

    micro_batches: int = 1
    clip_norm: float | None = None

    def train_step(self, data: Any) -> dict[str, Any]:
        """One optimizer step over a global batch; logs: loss, gradient_norm."""
        x, y, _ = keras.utils.unpack_x_y_sample_weight(data)
        context = tf.distribute.get_replica_context()
        replicas = context.num_replicas_in_sync
        total = None
        if self.micro_batches > 1 or replicas > 1:
            total = self._counted(y)
        if replicas > 1:
            total = context.all_reduce("SUM", total)
        loss, gradients = self._accumulated(x, y, total)
        optimizer = self.optimizer
        if replicas > 1:
            gradients = context.all_reduce("SUM", gradients)
            loss = context.all_reduce("SUM", loss)
        norm = tf.linalg.global_norm(gradients) / unscaled(optimizer, 1.0)
        if self.clip_norm is not None:
            factor = self.clip_norm / tf.maximum(norm, self.clip_norm)  # NaN stays NaN
            inner(optimizer).gradient_factor = factor
        optimizer.apply_gradients(zip(gradients, self.trainable_weights, strict=True))
        return {"loss": loss, "gradient_norm": norm}

    def _counted(self, y: Any) -> Any:
        """What the loss over `y` is divided by: targets that count, with their class weights."""
        counts = getattr(self.loss, "counts", counted)
        return tf.reduce_sum(tf.cast(counts(y), tf.float32))

    def _gradients(self, x: Any, y: Any, share: Any = 1.0) -> tuple[Any, list[Any]]:
        """The loss times `share`, and its dense gradients (scaled, for float16)."""
        variables = self.trainable_weights
        with tf.GradientTape() as tape:
            outputs = self(x, training=True)
            # Not `compute_loss`, which divides some losses by the number of devices.
            loss = share * tf.reduce_mean(self.loss.call(y, outputs))
            scaled = self.optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, [variable.value for variable in variables])
        dense = [
            tf.zeros(variable.shape) if gradient is None else tf.convert_to_tensor(gradient)
            for gradient, variable in zip(gradients, variables, strict=True)
        ]
        return loss, dense

    def _accumulated(self, x: Any, y: Any, total: Any) -> tuple[Any, list[Any]]:
        """The same over micro-batches, one after the other, each weighted by what counts in it.

        `total`: what counts in the whole batch; None: this is all of it.
        """
        if total is None:
            return self._gradients(x, y)
        rows = tf.shape(y)[0]
        loss, gradients = 0.0, None
        for part in range(self.micro_batches):
            start, end = rows * part // self.micro_batches, rows * (part + 1) // self.micro_batches
            y_part = y[start:end]
            share = tf.math.divide_no_nan(self._counted(y_part), total)
            x_part = {name: value[start:end] for name, value in x.items()}
            # Without the dependency all parts would run, and take memory, at once.
            with tf.control_dependencies(gradients or []):
                x_part = {name: tf.identity(value) for name, value in x_part.items()}
                part_loss, part_gradients = self._gradients(x_part, y_part, share)
            loss = loss + part_loss
            gradients = [
                new if gradients is None else gradients[i] + new
                for i, new in enumerate(part_gradients)
            ]
        assert gradients is not None
        return loss, gradients


def counted(y: Any) -> Any:
    """1.0 for every target that counts in the loss, 0.0 for ignored ones, flat."""
    flat = tf.reshape(y, [-1])
    return tf.cast(tf.not_equal(flat, tf.cast(IGNORED, flat.dtype)), tf.float32)


def inner(optimizer: Any) -> Any:
    """The optimizer inside the loss scaling of float16, or the optimizer itself."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def unscaled(optimizer: Any, value: float) -> Any:
    """What a loss of `value` becomes by float16's loss scaling."""
    return optimizer.scale_loss(tf.constant(value)) if inner(optimizer) is not optimizer else value
