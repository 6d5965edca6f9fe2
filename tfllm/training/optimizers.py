"""AdamW as transformers are trained with, its learning rate schedules, and averages of weights.

The step of `AdamW` is one pass over each variable: Keras' own update writes the moments and the
variable in a dozen separate operations and is the reference that this is tested against.
TensorFlow's fused kernel has the same formula.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tfllm.keras_internals import AdamWBase
from tfllm.layers.types import Tensor
from tfllm.training.recipe import TrainSettings

ROOT_STEPS = 10_000  # after which an inverse square root without warm-up is at the root of one half
ON_TENSORFLOW = keras.backend.backend() == "tensorflow"

# What carries no weight decay: biases and the scales of normalisations (Devlin et al. 2019 A.3).
UNDECAYED = ("bias", "beta", "gamma", "scale")


def is_decayed(variable: keras.Variable) -> bool:
    """Return whether weight decay acts on a variable: on matrices, by shape and name."""
    return len(variable.shape) > 1 and variable.path.split("/")[-1] not in UNDECAYED


@keras.saving.register_keras_serializable(package="tfllm")
class AdamW(AdamWBase):
    """`keras.optimizers.AdamW` with a fused update, on dense gradients.

    A training step may reduce the gradients over all devices itself (`gradients_reduced`), and give
    a `gradient_factor`, a scalar tensor that is multiplied to each: the clipping.
    """

    gradient_factor: Tensor | None = None

    def num_replicas(self) -> int:
        """Return the number of replicas in sync."""
        context = tf.distribute.get_replica_context()
        return context.num_replicas_in_sync if context else 1

    def sum_over_replicas(self, gradients: list[Tensor]) -> list[Tensor]:
        """Return the sums of the replicas' gradients."""
        context = tf.distribute.get_replica_context()
        return context.all_reduce(tf.distribute.ReduceOp.SUM, gradients)

    def __init__(self, *arguments: Any, decay_vectors: bool = True, **options: Any):
        """`decay_vectors` false: no weight decay of biases and normalisations (`is_decayed`)."""
        super().__init__(*arguments, **options)
        self.decay_vectors = decay_vectors

    def build(self, variables: list[keras.Variable]) -> None:
        """Create the moments; biases and norms are left out of weight decay."""
        if not self.built and not self.decay_vectors:
            undecayed = [variable for variable in variables if not is_decayed(variable)]
            if undecayed:
                self.exclude_from_weight_decay(var_list=undecayed)
        super().build(variables)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments, from which Keras builds the optimizer again."""
        return {**super().get_config(), "decay_vectors": self.decay_vectors}

    def update_step(
        self, gradient: Tensor, variable: keras.Variable, learning_rate: Tensor
    ) -> None:
        """Update one variable and its moments.

        Args:
            gradient: Of the variable's shape; tf.IndexedSlices of embeddings.
            variable: The variable.
            learning_rate: The learning rate of this step.
        """
        if self.amsgrad or variable.dtype not in ("float32", tf.float32) or not ON_TENSORFLOW:
            super().update_step(gradient, variable, learning_rate)
            return
        gradient = tf.convert_to_tensor(gradient)  # one with repeated rows must be added up
        step = tf.cast(self.iterations + 1, tf.float32)
        mean, mean_square = self.moments(variable)
        if self.gradient_factor is not None:
            gradient = gradient * tf.cast(self.gradient_factor, gradient.dtype)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=mean.value.handle,
            v=mean_square.value.handle,
            beta1_power=tf.pow(self.beta_1, step),
            beta2_power=tf.pow(self.beta_2, step),
            lr=tf.cast(learning_rate, tf.float32),
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=self.epsilon,
            grad=tf.cast(gradient, tf.float32),
        )


def warmup_steps(warmup: float, steps: int) -> int:
    """Return the number of warm-up steps.

    Args:
        warmup: `train.warmup`: a share of all steps if below 1, else steps.
        steps: Steps of the run.
    """
    return math.ceil(warmup * steps) if warmup < 1 else int(warmup)


@keras.saving.register_keras_serializable(package="tfllm")
class Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up from 0, then decay to `final`: linear, cosine, inverse_sqrt, or constant.

    Step n (from 0) of `steps` uses the multiplier of transformers' get_*_schedule_with_warmup; of
    "inverse_sqrt" the root of warmup / n, which is Vaswani et al. 2017, section 5.3, with `peak` in
    the place of (hidden_dim * warmup)**-0.5. It does not depend on `steps`.
    """

    def __init__(self, peak: float, kind: str, warmup: int, steps: int, final: float = 0.0):
        self.peak, self.kind, self.warmup, self.steps = peak, kind, warmup, steps
        self.final = final

    def __call__(self, step: Tensor) -> Tensor:
        step = ops.cast(step, "float32")
        rise = step / max(1, self.warmup)
        done = ops.clip((step - self.warmup) / max(1, self.steps - self.warmup), 0.0, 1.0)
        if self.kind == "linear":
            fall = 1.0 - done
        elif self.kind == "cosine":
            fall = 0.5 * (1.0 + ops.cos(math.pi * done))
        elif self.kind == "inverse_sqrt":
            scale = self.warmup or ROOT_STEPS
            fall = ops.sqrt(scale / ops.maximum(step - self.warmup + scale, 1.0))
        else:
            fall = ops.ones_like(done)
        decayed = self.final + (self.peak - self.final) * fall
        return ops.where(step < self.warmup, self.peak * rise, decayed)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments, from which Keras builds the schedule again."""
        names = ("peak", "kind", "warmup", "steps", "final")
        return {name: getattr(self, name) for name in names}


def build_optimizer(settings: TrainSettings, steps: int, variables: list[keras.Variable]) -> AdamW:
    """Build AdamW (Loshchilov and Hutter 2019) with the recipe's schedule.

    Args:
        settings: `train` of the recipe.
        steps: Steps of the run.
        variables: The variables to train.
    """
    result = AdamW(
        learning_rate=Schedule(
            settings.learning_rate,
            settings.schedule,
            warmup_steps(settings.warmup, steps),
            steps,
            settings.final_learning_rate,
        ),
        weight_decay=settings.weight_decay,
        beta_1=settings.beta_1,
        beta_2=settings.beta_2,
        epsilon=settings.epsilon,
        decay_vectors=False,
    )
    result.build(variables)
    if settings.precision == "float16":
        scaled = keras.optimizers.LossScaleOptimizer(result)
        scaled.build(variables)
        return scaled
    return result


def decay_at(momentum: float, step: Tensor) -> Tensor:
    """Return the decay of an average of weights: min(momentum, (1 + step) / (10 + step)).

    As tf.train.ExponentialMovingAverage: otherwise the average of a short run would be mostly its
    random start.

    Args:
        momentum: The decay of a long run.
        step: The update, from 1: int [].
    """
    step = tf.cast(step, tf.float32)
    return tf.minimum(momentum, (1.0 + step) / (10.0 + step))


class WeightAverages:
    """Exponential moving averages of the weights (`train.ema`), float32, beside the weights.

    The averages are measured and saved as the checkpoint; training continues with the weights.
    The same values under every strategy: each device keeps the averages of its own copy. Create
    them in the strategy's scope.
    """

    def __init__(self, weights: Sequence[keras.Variable], momentum: float):
        self.weights, self.momentum = list(weights), momentum
        self.values = [
            keras.Variable(
                keras.ops.convert_to_numpy(weight), trainable=False, name=f"average_{index}"
            )
            for index, weight in enumerate(self.weights)
        ]

    def update(self, step: Tensor) -> None:
        """Set average = decay * average + (1 - decay) * weight after step `step` (from 1).

        Must be called in a replica's context.
        """
        pairs = [
            (average.value, weight.value)
            for average, weight in zip(self.values, self.weights, strict=True)
        ]

        def update_one(average: tf.Variable, weight: tf.Variable, decay: Tensor) -> Any:
            return average.assign(decay * average + (1.0 - decay) * weight)

        def on_each_device(strategy: tf.distribute.StrategyExtended, decay: Tensor) -> None:
            for average, weight in pairs:
                strategy.extended.update(average, update_one, args=(weight, decay), group=False)

        decay = decay_at(self.momentum, step)
        tf.distribute.get_replica_context().merge_call(on_each_device, args=(decay,))

    @contextlib.contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Inside, the weights are the averages; after it they are, to the bit, what they were."""
        original = [weight.numpy() for weight in self.weights]
        for weight, average in zip(self.weights, self.values, strict=True):
            weight.assign(average.numpy())
        try:
            yield
        finally:
            for weight, value in zip(self.weights, original, strict=True):
                weight.assign(value)
