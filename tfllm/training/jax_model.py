"""The training step of `tfllm.training.model`, for Keras on JAX."""

from __future__ import annotations

import contextlib
from typing import Any

import keras
from keras import ops, tree

from tfllm.errors import SettingError
from tfllm.tasks.features import IGNORED
from tfllm.training.recipe import TrainSettings


@keras.saving.register_keras_serializable(package="tfllm")
class JaxModel(keras.Model):
    """A functional model with its own `train_step`: loss, clipping and micro-batches as there.

    The gradients of a step are of whole batches, whatever devices they are computed on.
    """

    micro_batches: int = 1
    clip_norm: float | None = None
    steps_per_call: Any = None
    step_logs: dict[str, Any] | None = None
    averages = None

    def train_step(self, state: Any, data: Any) -> tuple[dict[str, Any], Any]:
        """Do one optimizer step.

        Args:
            state: Trainable, other, optimizer's and metrics' variables.
            data: Inputs, targets and the shape of `jax_devices.pad_batches`.

        Returns:
            The logs (loss, gradient_norm) and the new state.
        """
        trainable, fixed, optimizer_variables, metrics = state
        x, y, real = keras.utils.unpack_x_y_sample_weight(data)
        x, y = tree.map_structure(lambda array: array[: real.shape[1]], (x, y))
        loss, gradients, fixed = self._accumulate(trainable, fixed, x, y)
        norm = ops.sqrt(sum(ops.sum(ops.square(gradient)) for gradient in gradients))
        if self.clip_norm is not None:
            factor = self.clip_norm / ops.maximum(norm, self.clip_norm)
            gradients = [gradient * factor for gradient in gradients]
        trainable, optimizer_variables = self.optimizer.stateless_apply(
            optimizer_variables, gradients, trainable
        )
        logs = {"loss": loss, "gradient_norm": norm}
        return logs, (trainable, fixed, optimizer_variables, metrics)

    def _accumulate(self, trainable: Any, fixed: Any, x: Any, y: Any) -> tuple[Any, Any, Any]:
        """Accumulate loss, gradients and non-trainable variables over all micro-batches."""
        import jax

        def of_part(trainable: Any, fixed: Any, x: Any, y: Any, total: Any) -> tuple[Any, Any]:
            outputs, fixed = self.stateless_call(trainable, fixed, x, training=True)
            parts = getattr(self.loss, "parts", self.loss.call)(y, outputs)
            means = tree.map_structure(
                lambda mean, weight, whole: ops.mean(mean) * weight / ops.maximum(whole, 1e-12),
                parts, self._target_weights(y), total,
            )  # fmt: skip
            return sum(tree.flatten(means)), fixed

        differentiate = jax.value_and_grad(of_part, has_aux=True)
        total, rows = self._target_weights(y), tree.flatten(y)[0].shape[0]
        loss, gradients = 0.0, None
        for part in range(self.micro_batches):
            start, end = rows * part // self.micro_batches, rows * (part + 1) // self.micro_batches
            if start == end:
                continue
            x_part, y_part = tree.map_structure(lambda array: array[start:end], (x, y))  # noqa: B023
            (value, fixed), new = differentiate(trainable, fixed, x_part, y_part, total)
            loss = loss + value
            gradients = (
                new if gradients is None else [a + b for a, b in zip(gradients, new, strict=True)]
            )
        return loss, gradients, fixed

    def _target_weights(self, y: Any) -> Any:
        counts = getattr(self.loss, "counts", target_weights)(y)
        return tree.map_structure(lambda each: ops.sum(ops.cast(each, "float32")), counts)

    def settle(self) -> None:
        """Bring the variables up to the last step, before they are read."""
        self.jax_state_sync()

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        """Inside, the model has its averaged weights: never here."""
        return contextlib.nullcontext()

    def predictor(self) -> Any:
        """Compile a function from inputs {name: [B, T]} to NumPy outputs."""
        import jax

        @jax.jit
        def outputs(trainable: Any, fixed: Any, x: Any) -> Any:
            return self.stateless_call(trainable, fixed, x, training=False)[0]

        def predict(x: Any) -> Any:
            self.settle()
            weights = [variable.value for variable in self.trainable_variables]
            others = [variable.value for variable in self.non_trainable_variables]
            results = outputs(weights, others, {name: x[name] for name in self.input})
            return tree.map_structure(ops.convert_to_numpy, results)

        return predict


def target_weights(y: Any) -> Any:
    """Return 1.0 for every target, 0.0 for ignored ones."""
    return ops.cast(ops.not_equal(y, ops.cast(IGNORED, y.dtype)), "float32")


# Settings of `train` that only TensorFlow has, with the values that are allowed here.
SUPPORTED_VALUES = {
    "ema": (None,),
    "rematerialize": (False,),
    "steps_per_execution": (1,),
    "kernels": ("auto", "plain"),
    "precision": ("auto", "float32", "bfloat16"),
}


def check_settings(settings: TrainSettings) -> None:
    """Check that no setting is one that only the TensorFlow backend has.

    Raises:
        SettingError: One is.
    """
    for name, allowed in SUPPORTED_VALUES.items():
        if getattr(settings, name) not in allowed:
            raise SettingError(
                f"train.{name}: {getattr(settings, name)} is not available with Keras on JAX. "
                "Remove the key, or train with KERAS_BACKEND=tensorflow."
            )
