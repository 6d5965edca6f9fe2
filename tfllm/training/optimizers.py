"""Learning rate schedules, and AdamW as transformers are trained with."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import keras
from keras import ops

from tfllm.training.adamw import AdamW

if TYPE_CHECKING:
    from tfllm.training.recipe import TrainSettings

ROOT_STEPS = 10_000  # after which an inverse square root without warm-up is at the root of one half


def warmup_steps(warmup: float, steps: int) -> int:
    """A number of steps from `train.warmup`: below 1 it is a part of all steps."""
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

    def __call__(self, step: Any) -> Any:
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
        names = ("peak", "kind", "warmup", "steps", "final")
        return {name: getattr(self, name) for name in names}


def optimizer(settings: TrainSettings, steps: int, variables: list[Any]) -> Any:
    """AdamW (Loshchilov and Hutter 2019) over `variables`, built, for a run of `steps` steps."""
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
