"""Models of every family and task, compiled as users do, and what they come to after a load.

As a script (`python -m tests.training.saved_runs FOLDER`) a process that knows nothing of the
models but `import tfllm.saving` loads each file, and writes outputs and further steps beside it.
"""

import sys
from pathlib import Path

import keras
import numpy as np

BATCH, LENGTH, STEPS = 4, 6, 2


def encoder(task, variant="bert", **changes):
    from tests.models import test_families

    return task, "bert", test_families.CONFIGS[variant], changes


def cases():
    """Name: (task, family, config, LoRA or precision)."""
    from tests.helpers import decoders, encoder_decoders
    from tfllm import tasks

    labels = {"labels": ("a", "b", "c")}
    single = tasks.Classification(**labels)
    lora = {"lora": True}
    return {
        "classification": encoder(single),
        "multi label": encoder(tasks.Classification(problem="multi_label", **labels), "electra"),
        "regression": encoder(tasks.Classification(problem="regression"), "distilbert"),
        "tags": encoder(tasks.TokenClassification(**labels), "roberta"),
        "answers": encoder(tasks.QuestionAnswering()),
        "masked lm": encoder(tasks.MaskedLM(), "electra"),
        "next sentence": encoder(tasks.NextSentence()),
        "pretraining": encoder(tasks.Pretraining()),
        **{
            f"pairs {pooling}": encoder(tasks.Embedding(pooling=pooling))
            for pooling in ("mean", "max", "first", "pooler")
        },
        "scored pairs": encoder(tasks.Embedding(score_range=(0, 5)), "distilbert"),
        "bfloat16": encoder(single, policy="mixed_bfloat16"),
        "float16": encoder(single, policy="mixed_float16"),
        "lora": encoder(single, **lora),
        **{
            name: (tasks.CausalLM(), name.split()[0], config, {})
            for name, config in decoders.CONFIGS.items()
        },
        "causal lora": (tasks.CausalLM(), "llama", decoders.CONFIGS["llama"], lora),
        **{
            name: (tasks.Seq2Seq(max_source_length=16, max_length=16), name.split()[0], config, {})
            for name, config in encoder_decoders.CONFIGS.items()
        },
    }


def built(name):
    """A compiled model of the case."""
    from tfllm import lora
    from tfllm.models import FAMILIES
    from tfllm.training import optimizers
    from tfllm.training.optimizers import AdamW

    task, family, config, changes = cases()[name]
    keras.utils.set_random_seed(3)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(changes.get("policy", "float32"))
    try:
        model = task.model(FAMILIES[family].backbone(config), config)
        model = task.training_model(model) if task.kind == "embedding" else model
    finally:
        keras.config.set_dtype_policy(before)
    if changes.get("lora"):
        lora.enable(model, rank=2)
    schedule = optimizers.Schedule(0.01, "linear", warmup=3, steps=20)
    weights = [1.0, 2.0, 0.5] if name == "classification" else None
    optimizer = AdamW(schedule, weight_decay=0.1, decay_vectors=False)
    if changes.get("policy") == "mixed_float16":
        # Keras adds it by itself, but not when it loads the file under another policy.
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    model.compile(
        optimizer,
        loss=task.loss(class_weights=weights) if weights else task.loss(),
        metrics=task.metrics(),
        run_eagerly=True,  # quicker than tracing for a few steps
    )
    return model


def batch(model, name):
    """Inputs and targets, by the shapes of the model's outputs."""
    chance = np.random.default_rng(0)
    shape = (BATCH, 2, LENGTH) if len(model.input["token_ids"].shape) == 3 else (BATCH, LENGTH)
    x = {key: np.ones(shape, "int32") for key in model.input}
    for key in x:
        if key.endswith("_ids"):
            x[key] = chance.integers(1, 25, shape).astype("int32")
        if key == "segment_ids":
            x[key] = np.zeros(shape, "int32")
    outputs = model.output
    if isinstance(outputs, dict):
        tokens = chance.integers(0, 25, (BATCH, LENGTH)).astype("int32")
        return x, {"tokens": tokens, "next_sentence": np.arange(BATCH, dtype="int32") % 2}
    if name in ("regression", "scored pairs") or name.startswith("pairs"):
        return x, np.linspace(0, 1, BATCH).astype("float32")
    if name == "multi label":
        return x, chance.integers(0, 2, (BATCH, 3)).astype("float32")
    if name == "answers":
        return x, chance.integers(0, LENGTH, (BATCH, 2)).astype("int32")
    targets = chance.integers(0, outputs.shape[-1], (BATCH, *(len(outputs.shape) - 2) * [LENGTH]))
    return x, targets.astype("int32")


def outputs_of(model, x):
    found = model(x, training=False)
    return [np.asarray(keras.ops.cast(each, "float32")) for each in keras.tree.flatten(found)]


def steps(model, x, y):
    """A few steps of training without dropout's chance: weights and losses after them."""
    dropouts = [each for each in model._flatten_layers() if isinstance(each, keras.layers.Dropout)]
    rates = [layer.rate for layer in dropouts]
    for layer in dropouts:
        layer.rate = 0.0
    losses = [float(np.ravel(model.train_on_batch(x, y))[0]) for _ in range(STEPS)]
    for layer, rate in zip(dropouts, rates, strict=True):
        layer.rate = rate
    return [np.array(losses, "float32"), *(np.asarray(w.value) for w in model.trainable_variables)]


def keep(path, arrays):
    np.savez(path, *[np.asarray(keras.ops.cast(array, "float32")) for array in arrays])


def kept(path):
    with np.load(path) as arrays:
        return [arrays[name] for name in arrays.files]


def write(name, folder):
    """A model after some steps as FOLDER/NAME.keras, its outputs, and where more steps lead."""
    model = built(name)
    x, y = batch(model, name)
    steps(model, x, y)
    model.save(folder / f"{name}.keras")
    keep(folder / f"{name}.outputs.npz", outputs_of(model, x))
    keep(folder / f"{name}.steps.npz", steps(model, x, y))
    return model


def main(folder):
    import tfllm.saving  # noqa: F401

    for path in sorted(folder.glob("*.keras")):
        model = keras.models.load_model(path)
        x, y = batch(model, path.stem)
        keep(folder / f"{path.stem}.loaded.outputs.npz", outputs_of(model, x))
        keep(folder / f"{path.stem}.loaded.steps.npz", steps(model, x, y))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
