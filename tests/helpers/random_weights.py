"""Language models with random weights, biases and norms: large, so that a wrong mask shows."""

import keras
import numpy as np

from tfllm.layers import heads
from tfllm.models import FAMILIES

VECTORS = ("bias", "beta", "gamma", "scale")


def language_model(family: str, config, names: tuple[str, ...] = ("",)) -> keras.Model:
    """A model of a family with its head; the weights whose paths end in `names` are drawn anew."""
    keras.utils.set_random_seed(0)
    backbone = FAMILIES[family].backbone(config)
    model = keras.Model(backbone.input, heads.lm_head(backbone.output, config, backbone))
    generator = np.random.default_rng(0)
    for weight in model.weights:
        if weight.path.endswith(names):
            mean = 1.0 if weight.path.endswith(("gamma", "scale")) else 0.0
            weight.assign(generator.normal(mean, 0.3, weight.shape))
    return model
