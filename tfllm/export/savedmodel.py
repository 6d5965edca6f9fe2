"""SavedModel for TF Serving: text in, answers out, one folder per version.

    OUT/<version>/saved_model.pb, variables/      the graph and the weights, once
                  assets/                         tfllm.json, labels.txt, the tokenizer's files
                  assets.extra/                   warm-up records

The graph belongs to a plain tf.Module that holds the model's own variables, so that the process
that serves it imports neither keras nor tfllm. No function in it is compiled by XLA, unless the
profile asks for it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tfllm.errors import SettingError, StorageError
from tfllm.export import oplint, warmup
from tfllm.export.base import (
    Check,
    Profile,
    context_of,
    described,
    is_language_model,
    reads_sources,
    stated,
)
from tfllm.keras_internals import backend_variable
from tfllm.tasks import METHODS

PRECISIONS = ("float32", "bfloat16")
# There may be this many more numbers in the file than in the model: counters.
STORED_ONCE = 1.01


def place(output: Path) -> Path:
    """The folder of the next version in `output`. Raises StorageError where that is no folder."""
    if output.exists() and not output.is_dir():
        raise StorageError(f"--output: '{output}' is a file. Name a folder for the versions.")
    versions = [int(path.name) for path in output.glob("*") if path.name.isdigit()]
    return output / str(max(versions, default=0) + 1)


def refuse(checkpoint: Any, profile: Profile) -> None:
    """Raises SettingError for a precision that TensorFlow's graphs do not have."""
    if profile.quantization not in PRECISIONS:
        raise SettingError(
            f"quantization: a SavedModel is {' or '.join(PRECISIONS)}, not {profile.quantization}. "
            "The tflite profiles have it."
        )
    if profile.oldest_runtime:
        raise SettingError("profile: oldest_runtime is for .tflite files. Remove it.")
    if is_language_model(checkpoint):
        context_of(checkpoint, profile)
    elif reads_sources(checkpoint) and not profile.xla:
        context_of(checkpoint, profile)
    elif profile.xla:
        raise SettingError("profile: xla is for language models. Remove it.")


def in_precision(checkpoint: Any, precision: str) -> Any:
    """The checkpoint's model, or a copy of it that holds and multiplies bfloat16."""
    if precision == "float32":
        return checkpoint.model
    import keras

    from tfllm.checkpoints.base import new_model
    from tfllm.checkpoints.weights import variables_of

    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        _, model = new_model(checkpoint.family, checkpoint.config, checkpoint.task)
    finally:
        keras.config.set_dtype_policy(before)
    values = variables_of(checkpoint.model)
    for path, variable in variables_of(model).items():
        variable.assign(values[path])
    return model


def write(checkpoint: Any, profile: Profile, folder: Path) -> None:
    """Writes graph, weights, assets and warm-up records of one version."""
    import tensorflow as tf

    model = in_precision(checkpoint, profile.quantization)
    module = tf.Module()
    module.weights = [backend_variable(weight) for weight in model.weights]
    module.tokenizer = checkpoint.tokenizer.graph()
    if reads_sources(checkpoint):
        module.target_tokenizer = _target_graph(checkpoint.tokenizer, module.tokenizer)
    functions = signatures(checkpoint, model, module, profile)
    try:
        tf.saved_model.save(module, str(folder), signatures=functions)
    except tf.errors.OpError as error:  # how TensorFlow reports a full disk
        raise StorageError(f"cannot write '{folder}': {error.message}") from None
    definitions = _for_servers(folder)
    assets = folder / "assets"
    assets.mkdir(exist_ok=True)
    write_files(checkpoint, assets)
    warmup.write(folder, list(warmup.requests(definitions, profile.warmup_batch_sizes)))


def _target_graph(tokenizer: Any, source_graph: Any) -> Any:
    """The tokenizer of targets as operations: the same where both sides have one vocabulary."""
    sides = tokenizer.vocabulary, tokenizer.target.vocabulary
    same = type(tokenizer.target) is type(tokenizer) and sides[0] == sides[1]
    one_model = getattr(tokenizer, "model", None) == getattr(tokenizer.target, "model", None)
    return source_graph if same and one_model else tokenizer.target.graph()


def signatures(checkpoint: Any, model: Any, module: Any, profile: Profile) -> dict[str, Any]:
    """The task's signatures; those that write texts need generation, which tasks cannot know."""
    tokenizer = module.tokenizer
    if reads_sources(checkpoint):
        from tfllm.export import seq2seq

        return seq2seq.signatures(checkpoint, model, (tokenizer, module.target_tokenizer), profile)
    if is_language_model(checkpoint):
        from tfllm.export import causal_lm

        return causal_lm.signatures(checkpoint, model, tokenizer, profile)
    task = checkpoint.task
    if profile.max_length:
        task = task.model_copy(update={"max_length": profile.max_length})
    return task.signatures(model, tokenizer)


def write_files(checkpoint: Any, folder: Path) -> None:
    """The tokenizer's files, and `labels.txt` with one label a line in the order of the scores."""
    checkpoint.tokenizer.save(folder)
    labels = getattr(checkpoint.task, "labels", ())
    if labels:
        (folder / "labels.txt").write_text("".join(f"{label}\n" for label in labels), "utf-8")


def finish(checkpoint: Any, profile: Profile, folder: Path, checks: Sequence[Check]) -> None:
    """Writes `tfllm.json`, which names the checks that the version passed."""
    text = json.dumps(described(checkpoint, profile, checks), indent=2, ensure_ascii=False)
    (folder / "assets" / "tfllm.json").write_text(text + "\n", "utf-8")


def checks(checkpoint: Any, profile: Profile, folder: Path) -> list[Check]:
    """What can be told from the files alone; `verify` runs them."""
    found = oplint.lint(folder, profile.xla)
    kept = sum(weight.value.shape.num_elements() for weight in checkpoint.model.weights)
    stored, stored_bytes = stored_size(folder)
    return [
        Check(
            "operations",
            str(found),
            f"known to TF Serving {oplint.NEWEST}",
            found.first_version is not None,
        ),
        Check(
            "weights stored once",
            f"{stored / 1e6:.2f} of {kept / 1e6:.2f} million, {stored_bytes / 1e6:.2f} MB",
            f"{STORED_ONCE:g} times",
            kept <= stored <= kept * STORED_ONCE,
        ),
        stated("graph", f"{(folder / 'saved_model.pb').stat().st_size / 1e6:.2f} MB"),
    ]


def stored_size(folder: Path) -> tuple[int, int]:
    """(numbers, bytes) of all variables in a version's `variables/`, without TensorFlow's own
    bookkeeping."""
    import numpy as np
    import tensorflow as tf

    reader = tf.train.load_checkpoint(str(folder / "variables" / "variables"))
    types = reader.get_variable_to_dtype_map()
    sizes = [
        (int(np.prod(shape)), types[name].size)
        for name, shape in reader.get_variable_to_shape_map().items()
        if not name.startswith("_CHECKPOINTABLE_OBJECT_GRAPH")
    ]
    return sum(count for count, _ in sizes), sum(count * size for count, size in sizes)


def signatures_of(folder: Path) -> dict[str, Any]:
    """Name to SignatureDef of one version."""
    return dict(oplint.read(folder).meta_graphs[0].signature_def)


def _for_servers(folder: Path) -> dict[str, Any]:
    """What TensorFlow's writer leaves to do: method names, and no attribute of newer versions.

    `classify` and `regress` get TF Serving's names (TensorFlow knows only predict). `debug_name`, a
    variable's name for messages, is unknown to servers before 2.19. Returns the signatures.
    """
    saved = oplint.read(folder)
    for _, node in oplint.nodes(saved):
        if node.op == "VarHandleOp":
            node.attr.pop("debug_name", None)
    signatures = saved.meta_graphs[0].signature_def
    for name in set(METHODS) & set(signatures):
        signatures[name].method_name = METHODS[name]
    (folder / "saved_model.pb").write_bytes(saved.SerializeToString(deterministic=True))
    # A fingerprint of the bytes before; readers take a version without one.
    (folder / "fingerprint.pb").unlink(missing_ok=True)
    return dict(signatures)
