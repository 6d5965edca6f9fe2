"""TFLite (LiteRT) files: token ids in, or the text itself; built-in operations only.

Language models: see `lite_decoder`.

    OUT/model.tflite    one signature per batch size and length; "serving_default" is the first
        tfllm.json      what the file is for, and the checks it passed
        labels.txt      and the tokenizer's files

Ids are int32 and outputs float32 in every quantization.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfllm.errors import SettingError
from tfllm.export import convert, flatbuffer, lite_decoder, metadata, text_graph
from tfllm.export.base import (
    Check,
    Profile,
    described,
    is_language_model,
    reads_sources,
    stated,
)
from tfllm.export.int8 import ScaledChannels
from tfllm.export.savedmodel import write_files
from tfllm.export.verify.sentences import examples as own_examples

FILE = "model.tflite"
# Masked scores share one int8 scale with all others: a large constant would make all of them one.
INT8_MASK = -30.0
EXACT_MASK = -1e9
# Weights may take this much less in the file than counted (equal ones are shared), and this much
# more (scales, shapes, constants of the graph).
LEAST_WEIGHTS, MOST_WEIGHTS = 0.97, 1.2
CONSTANTS = 200_000  # bytes


def place(output: Path) -> Path:
    """The folder itself; an older artifact there is replaced once the new one has passed."""
    return output


def refuse(checkpoint: Any, profile: Profile) -> None:
    """Raises SettingError for what cannot be written."""
    if is_language_model(checkpoint) or reads_sources(checkpoint):
        return lite_decoder.refuse(checkpoint, profile)
    if profile.quantization not in convert.WEIGHT_BYTES:
        raise SettingError(
            f"quantization: {profile.target} is {', '.join(convert.WEIGHT_BYTES)}, not "
            f"{profile.quantization}. The savedmodel profiles have it."
        )
    longest = checkpoint.config.max_sequence_length
    for length in lengths(checkpoint, profile):
        if length > longest:
            raise SettingError(
                f"profile: length {length} is more than the {longest} positions of the model. "
                "Lower max_length."
            )
    if not all(size >= 1 for size in profile.batch_sizes) or not profile.batch_sizes:
        raise SettingError("profile: batch_sizes must name at least one size, each 1 or more.")
    full = profile.quantization in convert.CALIBRATED
    if full and (profile.lengths or len(profile.batch_sizes) > 1 or profile.text):
        raise SettingError(
            "profile: full int8 is calibrated for one shape. Remove lengths, text, and all but one "
            "of batch_sizes."
        )
    if profile.text:
        text_graph.refuse(checkpoint)


def lengths(checkpoint: Any, profile: Profile) -> list[int]:
    """The fixed lengths of the file, the longest first."""
    longest = profile.max_length or checkpoint.task.max_length
    return sorted({longest, *profile.lengths}, reverse=True)


def write(checkpoint: Any, profile: Profile, folder: Path) -> None:
    """Writes model.tflite and the files beside it."""
    content = converted(checkpoint, profile)
    (folder / FILE).write_bytes(with_files(checkpoint, profile, content))
    write_files(checkpoint, folder)


def with_files(checkpoint: Any, profile: Profile, content: bytes, title: str = "") -> bytes:
    """The file with metadata, its labels and a WordPiece vocabulary inside, where it has them.

    `title`: what a reader of metadata calls the model; unset: the task's kind.
    """
    files = files_inside(checkpoint, profile)
    if not files:
        return content
    model, task = flatbuffer.parse(content), checkpoint.task
    title = title or task.kind
    (output,) = model.signatureDefs[0].outputs
    about = metadata.text_model(
        title,
        f"{title} exported by tfllm",
        flatbuffer.input_names(model),
        output.name.decode(),
        labels="labels.txt" in files,
        vocabulary="vocab.txt" in files,
    )
    return flatbuffer.with_metadata(content, about, files)


def files_inside(checkpoint: Any, profile: Profile) -> dict[str, bytes]:
    """The files that stand in the archive at a .tflite file's end; none in models that write."""
    if is_language_model(checkpoint) or reads_sources(checkpoint):
        return {}
    files = {}
    if checkpoint.tokenizer.kind == "wordpiece" and not profile.text:
        files["vocab.txt"] = _lines(checkpoint.tokenizer.vocabulary)
    if labels := getattr(checkpoint.task, "labels", ()):
        files["labels.txt"] = _lines(labels)
    return files


def _lines(words: Sequence[str]) -> bytes:
    return "".join(f"{word}\n" for word in words).encode()


def converted(checkpoint: Any, profile: Profile) -> bytes:
    """The file's bytes."""
    if is_language_model(checkpoint) or reads_sources(checkpoint):
        return lite_decoder.converted(checkpoint, profile)
    if profile.text:
        return text_graph.converted(checkpoint, profile)
    model, output = checkpoint.model, output_name(checkpoint.task)
    shapes = [(b, t) for t in lengths(checkpoint, profile) for b in profile.batch_sizes]
    inputs = calibration_rows(checkpoint, profile, *shapes[0])
    with prepared(model, profile, inputs) as scaled:
        functions = {
            signature_name(place, *shape): convert.function(model, *shape, output, scaled)
            for place, shape in enumerate(shapes)
        }
        return convert.convert(
            functions,
            convert.keeper(model),
            profile.quantization,
            inputs,
            in_float=profile.float_operations,
            oldest_runtime=profile.oldest_runtime,
        )


@contextlib.contextmanager
def prepared(
    model: Any, profile: Profile, inputs: Sequence[dict[str, np.ndarray]]
) -> Iterator[ScaledChannels | None]:
    """The model with the mask and the layers that the profile's quantization needs."""
    from tfllm.layers.attention import set_mask_constant

    full = profile.quantization in convert.CALIBRATED
    set_mask_constant(model, profile.mask_constant or (INT8_MASK if full else EXACT_MASK))
    try:
        if full:
            with ScaledChannels(model, inputs) as scaled:
                yield scaled
        else:
            yield None
    finally:
        set_mask_constant(model, EXACT_MASK)


def signature_name(place: int, batch: int, length: int) -> str:
    """The first shape is the one that runtimes take when none is named."""
    return "serving_default" if place == 0 else f"batch_{batch}_length_{length}"


def output_name(task: Any) -> str:
    """What the model's one output is called."""
    return task.output_name


def calibration_rows(
    checkpoint: Any, profile: Profile, batch: int, length: int
) -> list[dict[str, np.ndarray]]:
    """Inputs int32 [batch, length] of the calibration's examples; none where none are wanted."""
    from itertools import islice

    from tfllm.data.sources import read

    if profile.quantization not in convert.CALIBRATED:
        return []

    chosen: Iterable[dict] = own_examples(checkpoint.task)
    if profile.calibration.data:
        chosen = read(profile.calibration.data, profile.data)
    examples = list(islice(chosen, profile.calibration.examples))
    task = checkpoint.task.model_copy(update={"max_length": length})
    features = task.features(examples, checkpoint.tokenizer, targets=False)
    batches = (features.inputs([row] * batch, length) for row in range(len(features)))
    return [{name: inputs[name] for name in checkpoint.model.input} for inputs in batches]


def finish(checkpoint: Any, profile: Profile, folder: Path, checks: Sequence[Check]) -> None:
    """Writes `tfllm.json`, which names the checks that the file passed."""
    text = json.dumps(described(checkpoint, profile, checks), indent=2, ensure_ascii=False)
    (folder / "tfllm.json").write_text(text + "\n", "utf-8")


def checks(checkpoint: Any, profile: Profile, folder: Path) -> list[Check]:
    """What can be told from the file alone; `verify` runs it."""
    content = (folder / FILE).read_bytes()
    found = flatbuffer.operations(content)
    allowed = text_graph.OPERATIONS if profile.text else ()
    foreign = sorted(set(found.custom) - set(allowed))
    known = ", ".join(found.custom) if profile.text else "built in only"
    found_differences = [text_graph.reads_differently(checkpoint)] if profile.text else []
    return [
        Check("operations", ", ".join(foreign) or known, "no others", not foreign),
        weights_present(checkpoint, profile, content),
        runs_from(profile, content),
        *_inside(checkpoint, profile, folder),
        stated("computed in", _shares(found.builtin)),
        *fixed_length(checkpoint, profile),
        *found_differences,
    ]


def fixed_length(checkpoint: Any, profile: Profile) -> list[Check]:
    """How long the rows of the file are, and who said so."""
    if is_language_model(checkpoint) or reads_sources(checkpoint):
        return []
    chosen = "the profile's" if profile.max_length else "the task's; max_length chooses another"
    return [stated("fixed length", f"{lengths(checkpoint, profile)[0]} tokens ({chosen})")]


def _inside(checkpoint: Any, profile: Profile, folder: Path) -> list[Check]:
    """Whether the files inside are those that there should be."""
    wanted = files_inside(checkpoint, profile)
    found = flatbuffer.associated_files(folder / FILE)
    shown = ", ".join(sorted(wanted))
    return [Check("files inside", ", ".join(sorted(found)), shown, found == wanted)] * bool(shown)


def runs_from(profile: Profile, content: bytes) -> Check:
    """Which runtime the file needs, against the oldest that the profile names."""
    found = flatbuffer.oldest_runtime(flatbuffer.parse(content))
    wanted = profile.oldest_runtime
    limit = f"runs in {wanted} (oldest_runtime)" if wanted else ""
    if found is None:
        return Check("oldest runtime", "the file does not say", limit, not wanted)
    right = not wanted or flatbuffer.as_numbers(found) <= flatbuffer.as_numbers(wanted)
    return Check("oldest runtime", f"TensorFlow Lite {found}", limit, right)


def weights_present(checkpoint: Any, profile: Profile, content: bytes) -> Check:
    """The file holds every weight, and holds it once."""
    if is_language_model(checkpoint) or reads_sources(checkpoint):
        return lite_decoder.weights_present(checkpoint, profile, content)
    longest = lengths(checkpoint, profile)[0]
    # A fixed length needs only so many rows of the position table.
    cut = sum(
        (weight.shape[0] - longest) * weight.shape[1]
        for weight in checkpoint.model.weights
        if "position_embedding" in weight.path
    )
    kept = sum(int(np.prod(weight.shape)) for weight in checkpoint.model.weights) - cut
    wanted = kept * convert.WEIGHT_BYTES[profile.quantization]
    stored = flatbuffer.weight_bytes(content)
    extra = text_graph.table_bytes(checkpoint) if profile.text else 0
    most = wanted * MOST_WEIGHTS + CONSTANTS * len(profile.lengths or (1,)) + extra
    return Check(
        "weights present, once",
        f"{stored / 1e6:.2f} MB",
        f"{wanted * LEAST_WEIGHTS / 1e6:.2f} to {most / 1e6:.2f} MB",
        wanted * LEAST_WEIGHTS <= stored <= most,
    )


def _shares(builtin: dict[str, int]) -> str:
    """Which number types the matrix products and the rest of the operations give."""
    products = ("FULLY_CONNECTED", "BATCH_MATMUL")
    kinds: dict[str, dict[str, int]] = {"products": {}, "others": {}}
    for name, count in builtin.items():
        operation, _, kind = name.partition(":")
        row = kinds["products" if operation in products else "others"]
        row[kind] = row.get(kind, 0) + count
    return "; ".join(
        f"{name} " + ", ".join(f"{kind} {count}" for kind, count in sorted(row.items()))
        for name, row in kinds.items()
        if row
    )
