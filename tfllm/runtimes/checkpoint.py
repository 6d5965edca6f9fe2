"""Answers from a checkpoint, a run's checkpoint, or a Hugging Face directory."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfllm.checkpoints import store
from tfllm.checkpoints.store import Checkpoint
from tfllm.runtimes.causal_lm import LanguagePredictor
from tfllm.runtimes.predictor import Inputs, RowPredictor
from tfllm.runtimes.seq2seq import SourcePredictor


def open_checkpoint(
    source: str | Checkpoint,
) -> RowPredictor | LanguagePredictor | SourcePredictor:
    """The checkpoint at `source` (or already loaded), its model compiled for any length."""
    import tensorflow as tf

    checkpoint = store.load(source) if not isinstance(source, Checkpoint) else source
    if checkpoint.task.generates == "continuation":
        return LanguagePredictor(checkpoint, _facts(source, checkpoint))
    if checkpoint.task.generates == "target":
        return SourcePredictor(checkpoint, _facts(source, checkpoint))
    model = checkpoint.model
    names = list(model.input)
    forward = tf.function(
        lambda inputs: model(inputs, training=False),
        input_signature=[{name: tf.TensorSpec([None, None], tf.int32, name) for name in names}],
    )

    def call(inputs: Inputs) -> Any:
        outputs = forward({name: tf.constant(inputs[name]) for name in names})
        return tf.nest.map_structure(lambda output: output.numpy(), outputs)

    return RowPredictor(
        task=checkpoint.task,
        tokenizer=checkpoint.tokenizer,
        facts=_facts(source, checkpoint),
        row_values=sum(
            values_per_row(output.shape, checkpoint.task.max_length) for output in model.outputs
        ),
        call=call,
    )


def values_per_row(shape: Any, length: int) -> int:
    """How many numbers a model gives for a row of `length` tokens; `shape` is [B, (T,) C]."""
    return int(np.prod([length if size is None else size for size in shape[1:]]))


def _facts(source: str | Checkpoint, checkpoint: Checkpoint) -> dict[str, Any]:
    model = checkpoint.model
    return {
        "kind": "checkpoint",
        "path": str(checkpoint.path or source) if not isinstance(source, Checkpoint) else None,
        "family": checkpoint.family,
        "task": checkpoint.task.kind,
        "parameters": model.count_params(),
        "size_bytes": sum(
            weight.value.dtype.size * int(np.prod(weight.shape)) for weight in model.weights
        ),
    }
