"""CPU time of one training step with Keras' own, fused and compiled elementwise kernels.

    python benchmarks/training_kernels.py --rows 64 --tokens 16
    python benchmarks/training_kernels.py --layers 2 --width 768 --rows 16 --tokens 128 \
        --threads 1 --kerashub
    python benchmarks/training_kernels.py --layers 12 --width 768 --rows 16 --tokens 128 \
        --threads 1 --repeat 5 --only kerashub fused compiled

The shape is MiniLM's (6 layers of 384) where no other is given, with random weights. The variants
take turns in one process, KerasHub's `train_on_batch` among them where it is asked for. Shown are
the least CPU time of each, over all threads, which other work on the machine disturbs less than the
clock, and the least by the clock.
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
    from tfllm.training import optimizers
    from tfllm.training.acceleration import kernels, precision, rematerialization
    from tfllm.training.model import TrainingModel
    from tfllm.training.recipe import TrainSettings

    settings = TrainSettings()
    with precision.policy(precision_name):
        heads_of = 12 if width == 384 else max(2, width // 64)
        config = bert.Config(num_layers=layers, hidden_dim=width, num_heads=heads_of)
        backbone = bert.backbone(config)
        model = TrainingModel(backbone.input, heads.classification_head(backbone.output, config, 2))
    if kernels_name != "plain":
        kernels.install(model, compiled=kernels_name == "compiled")
    if rematerialize:
        rematerialization.install(model)
    model.micro_batches = accumulate
    model.clip_norm = settings.clip_norm
    model.compile(
        optimizer=optimizers.build_optimizer(settings, 1000, model.trainable_variables),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
        auto_scale_loss=False,
    )
    return model, tf.function(model.train_step, reduce_retracing=True)


def build_kerashub(layers: int, width: int):
    """The same of KerasHub's BertTextClassifier and Keras' AdamW, on the same batches."""
    import keras
    import keras_hub
    import tensorflow as tf

    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=30522,
        num_layers=layers,
        num_heads=12 if width == 384 else max(2, width // 64),
        hidden_dim=width,
        intermediate_dim=4 * width,
        max_sequence_length=512,
    )
    model = keras_hub.models.BertTextClassifier(backbone, 2, None)
    keras.config.set_dtype_policy(before)
    model.compile(
        optimizer=keras.optimizers.AdamW(5e-5, weight_decay=0.01, global_clipnorm=1.0),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )

    def step(data):
        ids, labels = data[0]["token_ids"], data[1]
        inputs = {"token_ids": ids, "segment_ids": tf.zeros_like(ids)}
        return model.train_on_batch({**inputs, "padding_mask": tf.ones_like(ids)}, labels)

    return step


def batch(rows: int, tokens: int):
    """Random token ids of one batch, and labels."""
    import numpy as np
    import tensorflow as tf

    dice = np.random.default_rng(0)
    ids = dice.integers(1000, 30000, (rows, tokens), dtype=np.int32)
    inputs = {
        "token_ids": ids,
        "segment_ids": np.zeros_like(ids),
        "padding_mask": np.ones_like(ids),
    }
    labels = dice.integers(0, 2, rows, dtype=np.int32)
    return {name: tf.constant(value) for name, value in inputs.items()}, tf.constant(labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--repeat", type=int, default=10)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--kerashub", action="store_true", help="KerasHub's step beside ours")
    parser.add_argument("--only", nargs="+", help="kerashub, plain, fused, compiled: in bfloat16")
    arguments = parser.parse_args()
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(arguments.threads)
    tf.config.threading.set_inter_op_parallelism_threads(arguments.threads)
    variants = [("kerashub", "bfloat16")] if arguments.kerashub else []
    variants += [("plain", "float32"), ("plain", "bfloat16"), ("fused", "bfloat16"),
                ("compiled", "bfloat16")]  # fmt: skip
    if arguments.only:
        variants = [(name, "bfloat16") for name in arguments.only]
    data = batch(arguments.rows, arguments.tokens)
    steps, seconds = {}, {variant: [] for variant in variants}
    for variant in variants:
        shape = (arguments.layers, arguments.width)
        hub = variant[0] == "kerashub"
        steps[variant] = build_kerashub(*shape) if hub else build(*variant, *shape)[1]
        started = time.process_time()
        steps[variant](data)
        print(f"{variant}: first step {time.process_time() - started:.1f} s", flush=True)
    for _ in range(arguments.repeat):
        for variant, step in steps.items():
            started = time.process_time(), time.perf_counter()
            step(data)
            ended = time.process_time(), time.perf_counter()
            seconds[variant].append([b - a for a, b in zip(started, ended, strict=True)])
    print(f"\n{arguments.rows} rows of {arguments.tokens} tokens, milliseconds a step: CPU, clock")
    for (kernels_name, precision_name), times in seconds.items():
        cpu, clock = (1000 * min(each) for each in zip(*times, strict=True))
        print(f"{kernels_name:9} {precision_name:9} {cpu:6.0f} {clock:6.0f}")


if __name__ == "__main__":
    main()
