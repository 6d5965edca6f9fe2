"""All that a `.keras` file can name: after `import tfllm.saving` Keras can load such files.

    import keras, tfllm.saving
    model = keras.models.load_model("model.keras")

Layers, losses, metrics, schedule, optimizer and training model are registered with Keras where they
are defined, as `tfllm>NAME`; this module imports them all.
"""

from __future__ import annotations

from tfllm.layers import (
    activations,
    attention,
    blocks,
    causal,
    cross,
    embeddings,
    heads,
    normalization,
    pairs,
    positions,
    relative,
)
from tfllm.tasks import losses, metrics
from tfllm.training import jax_model, model, optimizers

MODULES = (
    activations, attention, blocks, causal, cross, embeddings, heads, normalization, pairs,
    positions, relative, losses, metrics, jax_model, model, optimizers,
)  # fmt: skip
"""Where registered classes and functions are defined."""
