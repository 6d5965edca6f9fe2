"""TFLite (LiteRT) files: token ids in, or the text itself; built-in operations only.

    OUT/model.tflite    one signature per batch size and length; "serving_default" is the first
        tfllm.json      what the file is for, and the checks it passed
        labels.txt      and the tokenizer's files

Ids are int32 and outputs float32 in every quantization. Models that generate text: see
`tflite_generation`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import keras
import numpy as np

from tfllm.checkpoints.base import Checkpoint
from tfllm.data.sources import read
from tfllm.errors import SettingError
from tfllm.export import (
    flatbuffer,
    tflite_converter,
    tflite_generation,
    tflite_metadata,
    tflite_text_input,
)
from tfllm.export.artifact import (
    Check,
    generates,
    is_causal_lm,
    report,
    save_metadata,
    variables_module,
    weight_bytes_check,
    write_assets,
)
from tfllm.export.flatbuffer import TFLITE_FILE
from tfllm.export.profile import Profile
from tfllm.export.tflite_activation_scaling import ScaledChannels
from tfllm.export.verify import causal_lm, encoder, seq2seq
from tfllm.export.verify.sample_texts import sentence_examples
from tfllm.layers.attention import EXACT_MASK
from tfllm.runtimes.protocols import Example

# Masked scores share one int8 scale with all others: a large constant would make all of them equal.
INT8_MASK_VALUE = -30.0
# Weights may take this much less in the file than counted (equal ones are shared), and this much
# more (scales, shapes, constants of the graph).
MIN_WEIGHT_RATIO, MAX_WEIGHT_RATIO = 0.97, 1.2
CONSTANT_BYTES = 200_000

MATRIX_PRODUCTS = ("FULLY_CONNECTED", "BATCH_MATMUL")

Inputs = dict[str, np.ndarray]


def artifact_path(output: Path) -> Path:
    """Return `output` itself: an older artifact there is replaced once the new one has passed."""
    return output


def validate(checkpoint: Checkpoint, profile: Profile) -> None:
    """Check that a .tflite file can hold the model as the profile asks. See Target.validate.

    Raises:
        SettingError: It cannot.
    """
    if generates(checkpoint):
        return tflite_generation.validate(checkpoint, profile)
    if profile.quantization not in tflite_converter.WEIGHT_BYTES:
        raise SettingError(
            f"quantization: {profile.target} is {', '.join(tflite_converter.WEIGHT_BYTES)}, not "
            f"{profile.quantization}. The savedmodel profiles have it."
        )
    positions = checkpoint.config.max_sequence_length
    for length in fixed_lengths(checkpoint, profile):
        if length > positions:
            raise SettingError(
                f"profile: length {length} is more than the {positions} positions of the model. "
                "Lower max_length."
            )
    if not all(size >= 1 for size in profile.batch_sizes) or not profile.batch_sizes:
        raise SettingError("profile: batch_sizes must name at least one size, each 1 or more.")
    full_int8 = profile.quantization in tflite_converter.CALIBRATED
    if full_int8 and (profile.extra_lengths or len(profile.batch_sizes) > 1 or profile.text_input):
        raise SettingError(
            "profile: full int8 is calibrated for one shape. Remove extra_lengths, text_input, and "
            "all but one of batch_sizes."
        )
    if profile.text_input:
        tflite_text_input.validate(checkpoint)


def fixed_lengths(checkpoint: Checkpoint, profile: Profile) -> list[int]:
    """Return the fixed lengths of the file, the longest first."""
    longest = profile.max_length or checkpoint.task.max_length
    return sorted({longest, *profile.extra_lengths}, reverse=True)


def write(checkpoint: Checkpoint, profile: Profile, directory: Path) -> None:
    """Write model.tflite and the files beside it."""
    content = convert(checkpoint, profile)
    (directory / TFLITE_FILE).write_bytes(add_metadata(checkpoint, profile, content))
    write_assets(checkpoint, directory)


def convert(checkpoint: Checkpoint, profile: Profile) -> bytes:
    """Return the file's bytes, without metadata."""
    if generates(checkpoint):
        return tflite_generation.convert(checkpoint, profile)
    if profile.text_input:
        return tflite_text_input.convert(checkpoint, profile)
    model, output = checkpoint.model, checkpoint.task.output_name
    lengths = fixed_lengths(checkpoint, profile)
    shapes = [(size, length) for length in lengths for size in profile.batch_sizes]
    inputs = calibration_inputs(checkpoint, profile, *shapes[0])
    with prepare_for_int8(model, profile, inputs) as scaled:
        functions = {
            signature_name(index, *shape): tflite_converter.concrete_function(
                model, *shape, output, scaled
            )
            for index, shape in enumerate(shapes)
        }
        return tflite_converter.convert(
            functions,
            variables_module(model),
            profile.quantization,
            inputs,
            float_operations=profile.float_operations,
            oldest_runtime=profile.oldest_runtime,
        )


@contextlib.contextmanager
def prepare_for_int8(
    model: keras.Model, profile: Profile, inputs: Sequence[Inputs]
) -> Iterator[ScaledChannels | None]:
    """Prepare the model, inside the block, for graphs in the profile's quantization.

    Sets the number at masked attention scores and, in full int8, scales the channels of
    activations.

    Args:
        model: The model.
        profile: The profile.
        inputs: Of the calibration examples.

    Yields:
        The scaled channels in full int8, else None.
    """
    full_int8 = profile.quantization in tflite_converter.CALIBRATED
    constant = profile.mask_value or (INT8_MASK_VALUE if full_int8 else EXACT_MASK)
    with tflite_converter.mask_constant(model, constant):
        if full_int8:
            with ScaledChannels(model, inputs) as scaled:
                yield scaled
        else:
            yield None


def signature_name(index: int, batch_size: int, length: int) -> str:
    """Return the name of a shape's signature; runtimes take the first where none is named.

    Args:
        index: The shape's number in the file, from 0.
        batch_size: Its rows.
        length: Its tokens per row.
    """
    return "serving_default" if index == 0 else f"batch_{batch_size}_length_{length}"


def calibration_inputs(
    checkpoint: Checkpoint, profile: Profile, batch_size: int, length: int
) -> list[Inputs]:
    """Return the inputs of the calibration examples; none where nothing is calibrated.

    Args:
        checkpoint: The model.
        profile: The profile, which names the data.
        batch_size: Rows of each.
        length: Tokens of a row.

    Returns:
        Inputs by name, int32 [B, T], of each batch.
    """
    if profile.quantization not in tflite_converter.CALIBRATED:
        return []
    source: Iterable[Example] = sentence_examples(checkpoint.task)
    if profile.calibration.data:
        source = read(profile.calibration.data, profile.data)
    examples = list(islice(source, profile.calibration.examples))
    task = checkpoint.task.model_copy(update={"max_length": length})
    features = task.features(examples, checkpoint.tokenizer, targets=False)
    batches = (features.inputs([row] * batch_size, length) for row in range(len(features)))
    return [{name: inputs[name] for name in checkpoint.model.input} for inputs in batches]


def add_metadata(
    checkpoint: Checkpoint, profile: Profile, content: bytes, title: str = ""
) -> bytes:
    """Add metadata to the file, its labels and a WordPiece vocabulary, where it has them.

    Args:
        checkpoint: The model.
        profile: The profile.
        content: The file.
        title: What readers of the metadata call the model; unset: the task's kind.

    Returns:
        The file's new content.
    """
    files = associated_files(checkpoint, profile)
    if not files:
        return content
    model, task = flatbuffer.parse(content), checkpoint.task
    title = title or task.kind
    (output,) = model.signatureDefs[0].outputs
    metadata = tflite_metadata.text_model(
        title,
        f"{title} exported by tfllm",
        flatbuffer.input_names(model),
        output.name.decode(),
        labels="labels.txt" in files,
        vocabulary="vocab.txt" in files,
    )
    return flatbuffer.with_metadata(content, metadata, files)


def associated_files(checkpoint: Checkpoint, profile: Profile) -> dict[str, bytes]:
    """Return the files of the archive at a .tflite file's end; none in models that generate."""
    if generates(checkpoint):
        return {}
    files = {}
    if checkpoint.tokenizer.kind == "wordpiece" and not profile.text_input:
        files["vocab.txt"] = _as_lines(checkpoint.tokenizer.vocabulary)
    if labels := getattr(checkpoint.task, "labels", ()):
        files["labels.txt"] = _as_lines(labels)
    return files


def _as_lines(words: Sequence[str]) -> bytes:
    return "".join(f"{word}\n" for word in words).encode()


def write_metadata(
    checkpoint: Checkpoint, profile: Profile, directory: Path, checks: Sequence[Check]
) -> None:
    """Write `tfllm.json`, which records the checks."""
    save_metadata(checkpoint, profile, directory, checks)


def check_outputs(
    checkpoint: Checkpoint,
    profile: Profile,
    directory: Path,
    examples: Sequence[Example],
) -> Iterator[Check]:
    """Run the file in ai-edge-litert, and compare it with the checkpoint."""
    if is_causal_lm(checkpoint):
        yield from causal_lm.check_tflite(checkpoint, profile, directory, examples)
    elif generates(checkpoint):
        yield from seq2seq.check_tflite(checkpoint, profile, directory, examples)
    else:
        yield from encoder.check_tflite(checkpoint, profile, directory, examples)


def check_files(checkpoint: Checkpoint, profile: Profile, directory: Path) -> list[Check]:
    """Check operations, weights, runtime version and associated files."""
    content = (directory / TFLITE_FILE).read_bytes()
    operations = flatbuffer.count_operations(content)
    allowed = tflite_text_input.OPERATIONS if profile.text_input else ()
    unknown = sorted(set(operations.custom) - set(allowed))
    custom = ", ".join(operations.custom) if profile.text_input else "built-in only"
    checks = [
        Check("operations", ", ".join(unknown) or custom, "no others", not unknown),
        check_weights(checkpoint, profile, content),
        check_runtime_version(profile, content),
        *_check_associated_files(checkpoint, profile, directory),
        report("output types", _type_counts(operations.builtin)),
    ]
    if not generates(checkpoint):
        source = "the profile's" if profile.max_length else "the task's; max_length sets another"
        length = fixed_lengths(checkpoint, profile)[0]
        checks.append(report("fixed length", f"{length} tokens ({source})"))
    if profile.text_input:
        checks.append(tflite_text_input.report_token_differences(checkpoint))
    return checks


def _check_associated_files(
    checkpoint: Checkpoint, profile: Profile, directory: Path
) -> list[Check]:
    expected = associated_files(checkpoint, profile)
    if not expected:
        return []
    stored = flatbuffer.associated_files(directory / TFLITE_FILE)
    names = ", ".join(sorted(stored)), ", ".join(sorted(expected))
    return [Check("associated files", *names, stored == expected)]


def check_runtime_version(profile: Profile, content: bytes) -> Check:
    """Check the runtime that the file needs against the profile's `oldest_runtime`."""
    version = flatbuffer.oldest_runtime(flatbuffer.parse(content))
    oldest = profile.oldest_runtime
    limit = f"runs in {oldest} (oldest_runtime)" if oldest else ""
    if version is None:
        return Check("oldest runtime", "the file does not say", limit, not oldest)
    passed = not oldest or (
        flatbuffer.version_numbers(version) <= flatbuffer.version_numbers(oldest)
    )
    return Check("oldest runtime", f"TensorFlow Lite {version}", limit, passed)


def check_weights(checkpoint: Checkpoint, profile: Profile, content: bytes) -> Check:
    """Check that the file holds every weight exactly once."""
    if generates(checkpoint):
        return tflite_generation.check_weights(checkpoint, profile, content)
    longest = fixed_lengths(checkpoint, profile)[0]
    # A fixed length needs only that many rows of the position table.
    unused = sum(
        (weight.shape[0] - longest) * weight.shape[1]
        for weight in checkpoint.model.weights
        if "position_embedding" in weight.path
    )
    count = sum(int(np.prod(weight.shape)) for weight in checkpoint.model.weights) - unused
    expected = count * tflite_converter.WEIGHT_BYTES[profile.quantization]
    vocabulary = tflite_text_input.vocabulary_bytes(checkpoint) if profile.text_input else 0
    constants = CONSTANT_BYTES * len(profile.extra_lengths or (1,)) + vocabulary
    return weight_bytes_check(
        flatbuffer.weight_bytes(content),
        expected * MIN_WEIGHT_RATIO,
        expected * MAX_WEIGHT_RATIO + constants,
    )


def _type_counts(builtin: Mapping[str, int]) -> str:
    """Return how many matrix products and other operations give each number type, as text."""
    counts: dict[str, dict[str, int]] = {"matrix products": {}, "others": {}}
    for name, count in builtin.items():
        operation, _, dtype = name.partition(":")
        group = counts["matrix products" if operation in MATRIX_PRODUCTS else "others"]
        group[dtype] = group.get(dtype, 0) + count
    return "; ".join(
        f"{name} " + ", ".join(f"{dtype} {count}" for dtype, count in sorted(group.items()))
        for name, group in counts.items()
        if group
    )
