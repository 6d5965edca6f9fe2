"""AdamW whose step is one pass over each variable. Private hooks of Keras are used here alone.

Keras' own update writes the moments and the variable in a dozen separate operations and is the
reference that this is tested against. TensorFlow's fused kernel has the same formula.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf


class AdamW(keras.optimizers.AdamW):
    """`keras.optimizers.AdamW` with a fused update.

    Gradients come in reduced over all devices, dense and unclipped; `gradient_factor` (a scalar
    tensor, set before `apply_gradients`) is multiplied to each: the clipping.
    """

    gradient_factor: Any = None

    def _all_reduce_sum_gradients(self, grads_and_vars: Any) -> Any:
        return list(grads_and_vars)  # the training step has reduced them, to clip the sum

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        step = tf.cast(self.iterations + 1, tf.float32)
        index = self._get_variable_index(variable)
        if self.gradient_factor is not None:
            gradient = gradient * tf.cast(self.gradient_factor, gradient.dtype)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].value.handle,
            v=self._velocities[index].value.handle,
            beta1_power=tf.pow(self.beta_1, step),
            beta2_power=tf.pow(self.beta_2, step),
            lr=tf.cast(learning_rate, tf.float32),
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=self.epsilon,
            grad=tf.cast(gradient, tf.float32),
        )
