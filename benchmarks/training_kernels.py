"""CPU time of one training step with Keras' own, fused and compiled elementwise kernels.

    python benchmarks/training_kernels.py --rows 64 --tokens 16

The shape is MiniLM's (6 layers of 384) with random weights. The variants take turns, and the least
CPU time of each, over all threads, is shown: other work on the machine disturbs that less than the
clock.
"""

from __future__ import annotations

import argparse
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def build(
    kernels_name: str,
    precision_name: str,
    layers: int = 6,
    width: int = 384,
    accumulate: int = 1,
    rematerialize: bool = False,
):
    """A classifier with heads of 64 (32 for MiniLM's 384), and a function that runs one step."""
    import keras
    import tensorflow as tf

    from tfllm.layers import heads
    from tfllm.models import bert
    from tfllm.training import kernels, optimizers, precision, rematerialisation
    from tfllm.training.model import TrainingModel
    from tfllm.training.recipe import TrainSettings

    settings = TrainSettings()
    with precision.policy(precision_name):
        heads_of = 12 if width == 384 else max(2, width // 64)
        config = bert.Config(num_layers=layers, hidden_dim=width, num_heads=heads_of)
        backbone = bert.backbone(config)
        model = TrainingModel(backbone.input, heads.classify(backbone.output, config, 2))
    if kernels_name != "plain":
        kernels.install(model, compiled=kernels_name == "compiled")
    if rematerialize:
        rematerialisation.install(model)
    model.micro_batches = accumulate
    model.clip_norm = settings.clip_norm
    model.compile(
        optimizer=optimizers.optimizer(settings, 1000, model.trainable_variables),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
        auto_scale_loss=False,
    )
    return model, tf.function(model.train_step, reduce_retracing=True)


def batch(rows: int, tokens: int):
    """Random token ids of one batch, and labels."""
    import numpy as np
    import tensorflow as tf

    dice = np.random.default_rng(0)
    ids = dice.integers(1000, 30000, (rows, tokens), dtype=np.int32)
    inputs = {"token_ids": ids, "token_types": np.zeros_like(ids), "mask": np.ones_like(ids)}
    labels = dice.integers(0, 2, rows, dtype=np.int32)
    return {name: tf.constant(value) for name, value in inputs.items()}, tf.constant(labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--repeat", type=int, default=10)
    arguments = parser.parse_args()
    variants = [("plain", "float32"), ("plain", "bfloat16"), ("fused", "bfloat16"),
                ("compiled", "bfloat16")]  # fmt: skip
    data = batch(arguments.rows, arguments.tokens)
    steps, seconds = {}, {variant: [] for variant in variants}
    for variant in variants:
        _, steps[variant] = build(*variant)
        started = time.process_time()
        steps[variant](data)
        print(f"{variant}: first step {time.process_time() - started:.1f} s", flush=True)
    for _ in range(arguments.repeat):
        for variant, step in steps.items():
            started = time.process_time()
            step(data)
            seconds[variant].append(time.process_time() - started)
    print(f"\n{arguments.rows} rows of {arguments.tokens} tokens, CPU milliseconds a step")
    for (kernels_name, precision_name), times in seconds.items():
        print(f"{kernels_name:9} {precision_name:9} {1000 * min(times):6.0f}")


if __name__ == "__main__":
    main()
