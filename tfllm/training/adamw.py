"""AdamW whose step is one pass over each variable.

Keras' own update writes the moments and the variable in a dozen separate operations and is the
reference that this is tested against. TensorFlow's fused kernel has the same formula.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfllm.keras_internals import AdamWBase

ON_TENSORFLOW = keras.backend.backend() == "tensorflow"


# What carries no weight decay: biases and the scales of normalisations (Devlin et al. 2019 A.3).
UNDECAYED = ("bias", "beta", "gamma", "scale")


def is_decayed(variable: Any) -> bool:
    """Whether weight decay acts on a variable: on matrices, by shape and name."""
    return len(variable.shape) > 1 and variable.path.split("/")[-1] not in UNDECAYED


@keras.saving.register_keras_serializable(package="tfllm")
class AdamW(AdamWBase):
    """`keras.optimizers.AdamW` with a fused update, on dense gradients.

    A training step may reduce the gradients over all devices itself (`gradients_reduced`), and give
    a `gradient_factor`, a scalar tensor that is multiplied to each: the clipping.
    """

    gradient_factor: Any = None

    def __init__(self, *arguments: Any, decay_vectors: bool = True, **options: Any):
        """`decay_vectors` false: no weight decay of biases and normalisations (`is_decayed`)."""
        super().__init__(*arguments, **options)
        self.decay_vectors = decay_vectors

    def build(self, variables: Any) -> None:
        if not self.built and not self.decay_vectors:
            undecayed = [variable for variable in variables if not is_decayed(variable)]
            if undecayed:
                self.exclude_from_weight_decay(var_list=undecayed)
        super().build(variables)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "decay_vectors": self.decay_vectors}

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
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
