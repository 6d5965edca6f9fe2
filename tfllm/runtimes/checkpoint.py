"""Checkpoints, runs' checkpoints and Hugging Face directories, open for prediction."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from tfllm.checkpoints import store
from tfllm.checkpoints.store import Checkpoint
from tfllm.runtimes import causal_lm, seq2seq
from tfllm.runtimes.causal_lm import CausalLMPredictor
from tfllm.runtimes.protocols import Facts
from tfllm.runtimes.seq2seq import ScoringSeq2SeqPredictor
from tfllm.runtimes.token_predictor import Inputs, Outputs, TokenPredictor


def open_checkpoint(
    source: str | Checkpoint,
) -> TokenPredictor | CausalLMPredictor | ScoringSeq2SeqPredictor:
    """Open the checkpoint at `source`, or one that is loaded, its model compiled for any length."""
    checkpoint = store.load(source) if not isinstance(source, Checkpoint) else source
    model, facts = checkpoint.model, _facts(source, checkpoint)
    if checkpoint.task.generates == "continuation":
        log_probs = causal_lm.model_log_probs(model, facts["path"])
        return CausalLMPredictor(checkpoint, facts, log_probs)
    if checkpoint.task.generates == "target":
        return ScoringSeq2SeqPredictor(
            checkpoint, facts, log_probs=seq2seq.model_log_probs(model, facts["path"])
        )
    task = checkpoint.task
    return TokenPredictor(
        task=task,
        tokenizer=checkpoint.tokenizer,
        facts=facts,
        row_values=sum(values_per_row(output.shape, task.max_length) for output in model.outputs),
        call=_compile(model),
    )


def _compile(model: keras.Model) -> Callable[[Inputs], Outputs]:
    """The model as a graph, from NumPy arrays to NumPy arrays."""
    names = list(model.input)
    forward = tf.function(
        lambda inputs: model(inputs, training=False),
        input_signature=[{name: tf.TensorSpec([None, None], tf.int32, name) for name in names}],
    )

    def call(inputs: Inputs) -> Outputs:
        outputs = forward({name: tf.constant(inputs[name]) for name in names})
        return tf.nest.map_structure(lambda output: output.numpy(), outputs)

    return call


def values_per_row(shape: Sequence[int | None], length: int) -> int:
    """Count the numbers that a model outputs for a row.

    Args:
        shape: The output's: [B, C] or [B, T, C], None for axes of any length.
        length: Tokens of the row.
    """
    return int(np.prod([length if size is None else size for size in shape[1:]]))


def _facts(source: str | Checkpoint, checkpoint: Checkpoint) -> Facts:
    model = checkpoint.model
    path = checkpoint.path or (None if isinstance(source, Checkpoint) else source)
    return {
        "kind": "checkpoint",
        "path": None if path is None else str(path),
        "family": checkpoint.family,
        "task": checkpoint.task.kind,
        "parameters": model.count_params(),
        "size_bytes": sum(
            weight.value.dtype.size * int(np.prod(weight.shape)) for weight in model.weights
        ),
    }
