"""TFLite files for MediaPipe's text tasks: TextClassifier and TextEmbedder.

One fixed length, three int32 inputs, probabilities or an embedding out, and metadata inside the
file: MediaPipe's own tokenizer reads the vocabulary from there, and the names of the labels.

That tokenizer is BERT's with one difference: it lowercases ASCII letters only and keeps accents.
Other text in an uncased model is therefore tokenized differently; the exporter counts how often.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import tensorflow as tf

from tfllm.checkpoints.base import Checkpoint
from tfllm.errors import SettingError
from tfllm.export import tflite, tflite_converter
from tfllm.export.artifact import Check, report, variables_module
from tfllm.export.flatbuffer import TFLITE_FILE
from tfllm.export.profile import Profile
from tfllm.export.tflite_activation_scaling import ScaledChannels
from tfllm.export.verify import encoder, mediapipe_package
from tfllm.export.verify.sample_texts import UNICODE_SENTENCES
from tfllm.runtimes.protocols import Example
from tfllm.tasks import TASKS

INPUTS = ("token_ids", "padding_mask", "segment_ids")  # MediaPipe always feeds all three
TOKENIZER = "wordpiece"

artifact_path = tflite.artifact_path
write_metadata = tflite.write_metadata


def validate(checkpoint: Checkpoint, profile: Profile) -> None:
    """Check that MediaPipe's text tasks can run the model. See Target.validate.

    Raises:
        SettingError: They cannot.
    """
    task = checkpoint.task
    if not task.mediapipe_title or task.takes_pair:
        able = " and ".join(kind for kind, known in TASKS.items() if known.mediapipe_title)
        raise SettingError(
            f"mediapipe: its text tasks are {able} of one text; this model is for "
            f"{task.kind}{' of pairs' if task.mediapipe_title else ''}. Export it to tflite."
        )
    if getattr(task, "prompt", ""):
        raise SettingError(
            "mediapipe: its text tasks put no prompt before a text (task.prompt_name). Export to "
            "tflite, or without the prompt."
        )
    if checkpoint.tokenizer.kind != TOKENIZER:
        raise SettingError(
            f"mediapipe: its text tasks have a {TOKENIZER} tokenizer, and this model's is "
            f"{checkpoint.tokenizer.kind}. Export it to tflite, and give it token ids."
        )
    if getattr(checkpoint.tokenizer, "roberta_rows", False):
        raise SettingError(
            "mediapipe: its text tasks put [CLS] and [SEP] around a text, and this model has "
            "<s> a </s>. Export it to tflite."
        )
    if getattr(task, "problem", "") == "regression":
        raise SettingError("mediapipe: a classifier needs labels, and this model gives a number.")
    if profile.text_input or profile.extra_lengths or profile.batch_sizes != (1,):
        raise SettingError(
            "mediapipe: text_input, extra_lengths and batch_sizes are for tflite; MediaPipe feeds "
            "one row of max_length tokens. Remove them."
        )
    tflite.validate(checkpoint, profile)


def write(checkpoint: Checkpoint, profile: Profile, directory: Path) -> None:
    """Write model.tflite with its metadata, and the files beside it."""
    length = profile.max_length or checkpoint.task.max_length
    rows = tflite.calibration_inputs(checkpoint, profile, 1, length)
    with tflite.prepare_for_int8(checkpoint.model, profile, rows) as scaled:
        content = tflite_converter.convert(
            {"serving_default": _concrete_function(checkpoint, length, scaled)},
            variables_module(checkpoint.model),
            profile.quantization,
            [{name: row.get(name, row["padding_mask"] * 0) for name in INPUTS} for row in rows],
            float_operations=profile.float_operations,
            oldest_runtime=profile.oldest_runtime,
        )
    content = tflite.add_metadata(checkpoint, profile, content, checkpoint.task.mediapipe_title)
    (directory / TFLITE_FILE).write_bytes(content)
    tflite.write_assets(checkpoint, directory)


def check_files(checkpoint: Checkpoint, profile: Profile, directory: Path) -> list[Check]:
    """Check as every .tflite file, and report how MediaPipe's tokenizer differs."""
    return [
        *tflite.check_files(checkpoint, profile, directory),
        report_token_differences(checkpoint),
    ]


def check_outputs(
    checkpoint: Checkpoint,
    profile: Profile,
    directory: Path,
    examples: Sequence[Example],
) -> Iterator[Check]:
    """Run the file in ai-edge-litert, and in MediaPipe's own package where that is installed."""
    yield from encoder.check_tflite(checkpoint, profile, directory, examples)
    yield from mediapipe_package.check_outputs(checkpoint, profile, directory)


def report_token_differences(checkpoint: Checkpoint) -> Check:
    """Report how many non-ASCII sample sentences MediaPipe tokenizes differently."""
    texts = [text for text in UNICODE_SENTENCES if not text.isascii()]
    theirs = checkpoint.tokenizer.graph("mediapipe").tokenize(tf.constant(texts)).to_list()
    ours = [encoding.ids[1:-1] for encoding in checkpoint.tokenizer.encode_batch(texts)]
    differing = sum(list(a) != list(b) for a, b in zip(theirs, ours, strict=True))
    return report(
        "non-ASCII texts tokenized differently",
        f"{differing} of {len(texts)} sentences: MediaPipe lowercases ASCII letters only and "
        "keeps accents",
    )


def _concrete_function(
    checkpoint: Checkpoint, length: int, scaled: ScaledChannels | None
) -> tf.types.experimental.ConcreteFunction:
    """Return the graph: INPUTS int32 [1, T] to probabilities [1, C] or an embedding [1, D]."""
    model, task = checkpoint.model, checkpoint.task
    multi_label = getattr(task, "problem", "") == "multi_label"

    def forward(
        token_ids: tf.Tensor, padding_mask: tf.Tensor, segment_ids: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        if scaled:
            scaled.trace(padding_mask)
        inputs = dict(zip(INPUTS, (token_ids, padding_mask, segment_ids), strict=True))
        output = model({name: inputs[name] for name in model.input}, training=False)
        if "segment_ids" not in model.input:
            # An unused input would be dropped, and MediaPipe needs three. Segment ids are never
            # below zero, so this adds nothing.
            unused = tf.reduce_sum(tf.minimum(segment_ids, 0))
            output += tf.cast(unused, tf.float32)
        if not task.softmax_over:
            return {task.output_name: output}
        return {"probability": tf.sigmoid(output) if multi_label else tf.nn.softmax(output)}

    specs = [tf.TensorSpec([1, length], tf.int32, name) for name in INPUTS]
    return tf.function(forward, autograph=False).get_concrete_function(*specs)
