"""SavedModel for TF Serving: text in, predictions out, one directory per version.

    OUT/<version>/saved_model.pb, variables/      the graph and the weights, once
                  assets/                         tfllm.json, labels.txt, the tokenizer's files
                  assets.extra/                   warm-up requests

The graph belongs to a plain tf.Module that owns the model's variables, so the serving process
imports neither keras nor tfllm. No function is compiled by XLA, unless the profile asks for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2

from tfllm.checkpoints.base import Checkpoint, new_model
from tfllm.checkpoints.weights import variables_of
from tfllm.errors import SettingError, StorageError
from tfllm.export import (
    op_compatibility,
    savedmodel_causal_lm,
    savedmodel_seq2seq,
    warmup_requests,
)
from tfllm.export.artifact import (
    Check,
    Signatures,
    context_length,
    generates,
    is_causal_lm,
    is_seq2seq,
    report,
    save_metadata,
    variables_module,
    write_assets,
)
from tfllm.export.profile import Profile
from tfllm.export.verify import causal_lm, encoder, seq2seq
from tfllm.runtimes.protocols import Example
from tfllm.tasks import METHODS
from tfllm.tokenizers.base import Tokenizer

PRECISIONS = ("float32", "bfloat16")
# The file may hold slightly more numbers than the model has weights: counters.
MAX_STORED_RATIO = 1.01


def artifact_path(output: Path) -> Path:
    """Return the directory of the next version in `output`.

    Raises:
        StorageError: `output` is a file.
    """
    if output.exists() and not output.is_dir():
        raise StorageError(f"--output: '{output}' is a file. Name a folder for the versions.")
    versions = [int(path.name) for path in output.glob("*") if path.name.isdigit()]
    return output / str(max(versions, default=0) + 1)


def validate(checkpoint: Checkpoint, profile: Profile) -> None:
    """Check that a SavedModel can hold what the profile asks for. See Target.validate.

    Raises:
        SettingError: A precision or setting is one of another target.
    """
    if profile.quantization not in PRECISIONS:
        raise SettingError(
            f"quantization: a SavedModel is {' or '.join(PRECISIONS)}, not {profile.quantization}. "
            "The tflite profiles have it."
        )
    if profile.oldest_runtime:
        raise SettingError("profile: oldest_runtime is for .tflite files. Remove it.")
    if profile.xla and not is_causal_lm(checkpoint):
        raise SettingError("profile: xla is for language models. Remove it.")
    if generates(checkpoint):
        context_length(checkpoint, profile)


def write(checkpoint: Checkpoint, profile: Profile, directory: Path) -> None:
    """Write graph, weights, assets and warm-up requests of one version. See Target.write.

    Raises:
        StorageError: TensorFlow cannot write the files.
    """
    model = model_in_precision(checkpoint, profile.quantization)
    module = variables_module(model)
    module.tokenizer = checkpoint.tokenizer.graph()
    if is_seq2seq(checkpoint):
        module.target_tokenizer = _target_tokenizer(checkpoint.tokenizer, module.tokenizer)
    functions = build_signatures(checkpoint, model, module, profile)
    try:
        tf.saved_model.save(module, str(directory), signatures=functions)
    except tf.errors.OpError as error:  # how TensorFlow reports a full disk
        raise StorageError(f"cannot write '{directory}': {error.message}") from None
    signatures = _adapt_for_servers(directory)
    assets = directory / "assets"
    assets.mkdir(exist_ok=True)
    write_assets(checkpoint, assets)
    requests = list(warmup_requests.build_requests(signatures, profile.warmup_batch_sizes))
    warmup_requests.write(directory, requests)


def model_in_precision(checkpoint: Checkpoint, precision: str) -> keras.Model:
    """Return the checkpoint's model, or a copy of it that stores and multiplies bfloat16.

    Args:
        checkpoint: The model.
        precision: "float32" or "bfloat16".
    """
    if precision == "float32":
        return checkpoint.model
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        _, model = new_model(checkpoint.family, checkpoint.config, checkpoint.task)
    finally:
        keras.config.set_dtype_policy(policy)
    values = variables_of(checkpoint.model)
    for path, variable in variables_of(model).items():
        variable.assign(values[path])
    return model


def _target_tokenizer(tokenizer: Tokenizer, source_graph: Any) -> Any:
    """Return the in-graph tokenizer of targets: the sources' own where both share a vocabulary."""
    target = tokenizer.target
    same_vocabulary = type(target) is type(tokenizer) and tokenizer.vocabulary == target.vocabulary
    same_model = getattr(tokenizer, "model", None) == getattr(target, "model", None)
    return source_graph if same_vocabulary and same_model else target.graph()


def build_signatures(
    checkpoint: Checkpoint, model: keras.Model, module: tf.Module, profile: Profile
) -> Signatures:
    """Build the signatures.

    Args:
        checkpoint: The checkpoint that is exported.
        model: Its Keras model, or a copy in another precision.
        module: Holds the tokenizers' tables; must stay alive.
        profile: The profile.

    Returns:
        tf.function by signature name.
    """
    tokenizer = module.tokenizer
    if is_seq2seq(checkpoint):
        tokenizers = tokenizer, module.target_tokenizer
        return savedmodel_seq2seq.build_signatures(checkpoint, model, tokenizers, profile)
    if is_causal_lm(checkpoint):
        return savedmodel_causal_lm.build_signatures(checkpoint, model, tokenizer, profile)
    task = checkpoint.task
    if profile.max_length:
        task = task.model_copy(update={"max_length": profile.max_length})
    return task.signatures(model, tokenizer)


def write_metadata(
    checkpoint: Checkpoint, profile: Profile, directory: Path, checks: Sequence[Check]
) -> None:
    """Write `assets/tfllm.json`, which records the checks."""
    save_metadata(checkpoint, profile, directory / "assets", checks)


def check_files(checkpoint: Checkpoint, profile: Profile, directory: Path) -> list[Check]:
    """Check the operations against TF Serving's, and that the weights are stored exactly once."""
    compatibility = op_compatibility.check_graph(directory, profile.xla)
    weights = sum(weight.value.shape.num_elements() for weight in checkpoint.model.weights)
    stored, stored_bytes = stored_size(directory)
    return [
        Check(
            "operations",
            str(compatibility),
            f"known to TF Serving {op_compatibility.NEWEST}",
            compatibility.first_version is not None,
        ),
        Check(
            "weights stored once",
            f"{stored / 1e6:.2f} of {weights / 1e6:.2f} million, {stored_bytes / 1e6:.2f} MB",
            f"{MAX_STORED_RATIO:g} times",
            weights <= stored <= weights * MAX_STORED_RATIO,
        ),
        report("graph size", f"{(directory / 'saved_model.pb').stat().st_size / 1e6:.2f} MB"),
    ]


def check_outputs(
    checkpoint: Checkpoint,
    profile: Profile,
    directory: Path,
    examples: Sequence[Example],
) -> Iterator[Check]:
    """Run all signatures in a fresh process, and compare them with the checkpoint."""
    signatures = signature_defs(directory)
    if is_causal_lm(checkpoint):
        yield from causal_lm.check_savedmodel(checkpoint, profile, directory, signatures, examples)
    elif is_seq2seq(checkpoint):
        yield from seq2seq.check_savedmodel(checkpoint, profile, directory, signatures, examples)
    else:
        yield from encoder.check_savedmodel(checkpoint, profile, directory, signatures, examples)


def stored_size(directory: Path) -> tuple[int, int]:
    """Return the number of values, and of bytes, of all variables of a version.

    TensorFlow's own bookkeeping does not count.
    """
    reader = tf.train.load_checkpoint(str(directory / "variables" / "variables"))
    types = reader.get_variable_to_dtype_map()
    sizes = [
        (int(np.prod(shape)), types[name].size)
        for name, shape in reader.get_variable_to_shape_map().items()
        if not name.startswith("_CHECKPOINTABLE_OBJECT_GRAPH")
    ]
    return sum(count for count, _ in sizes), sum(count * size for count, size in sizes)


def signature_defs(directory: Path) -> dict[str, meta_graph_pb2.SignatureDef]:
    """Return name -> SignatureDef of one version."""
    saved_model = op_compatibility.read_saved_model(directory)
    return dict(saved_model.meta_graphs[0].signature_def)


def _adapt_for_servers(directory: Path) -> dict[str, meta_graph_pb2.SignatureDef]:
    """Set TF Serving's method names, and remove attributes that older servers do not know.

    `classify` and `regress` get TF Serving's names (TensorFlow writes predict for all).
    `debug_name`, a variable's name for messages, is unknown to servers before 2.19. Returns the
    signatures.
    """
    saved_model = op_compatibility.read_saved_model(directory)
    for _, node in op_compatibility.iterate_nodes(saved_model):
        if node.op == "VarHandleOp":
            node.attr.pop("debug_name", None)
    signatures = saved_model.meta_graphs[0].signature_def
    for name in set(METHODS) & set(signatures):
        signatures[name].method_name = METHODS[name]
    (directory / "saved_model.pb").write_bytes(saved_model.SerializeToString(deterministic=True))
    # The fingerprint is of the bytes before; readers accept a version without one.
    (directory / "fingerprint.pb").unlink(missing_ok=True)
    return dict(signatures)
