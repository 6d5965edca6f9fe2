"""TFLite files for MediaPipe's text tasks: TextClassifier and TextEmbedder.

One fixed length, three int32 inputs, probabilities or an embedding out, and metadata inside the
file: MediaPipe's own tokenizer reads the vocabulary from there, and the names of the labels.

That tokenizer is BERT's with one difference: it lowers ASCII letters only and keeps accents. Other
text in an uncased model is therefore read differently; the exporter counts how often.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tfllm.errors import SettingError
from tfllm.export import convert, tflite
from tfllm.export.base import Check, Profile, stated
from tfllm.export.verify.sentences import VARIED
from tfllm.tasks import TASKS

INPUTS = ("token_ids", "padding_mask", "segment_ids")  # MediaPipe gives all three, always
TOKENIZER = "wordpiece"

place = tflite.place
finish = tflite.finish


def refuse(checkpoint: Any, profile: Profile) -> None:
    """Raises SettingError for what MediaPipe's text tasks cannot do."""
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
    if getattr(task, "problem", "") == "regression":
        raise SettingError("mediapipe: a classifier needs labels, and this model gives a number.")
    if profile.text or profile.lengths or profile.batch_sizes != (1,):
        raise SettingError(
            "mediapipe: text, lengths and batch_sizes are for tflite; MediaPipe feeds one row of "
            "max_length tokens. Remove them."
        )
    tflite.refuse(checkpoint, profile)


def write(checkpoint: Any, profile: Profile, folder: Path) -> None:
    """Writes model.tflite with its metadata, and the files beside it."""
    length = profile.max_length or checkpoint.task.max_length
    rows = tflite.calibration_rows(checkpoint, profile, 1, length)
    with tflite.prepared(checkpoint.model, profile, rows) as scaled:
        content = convert.convert(
            {"serving_default": _function(checkpoint, length, scaled)},
            convert.keeper(checkpoint.model),
            profile.quantization,
            [{name: row.get(name, row["padding_mask"] * 0) for name in INPUTS} for row in rows],
            in_float=profile.float_operations,
            oldest_runtime=profile.oldest_runtime,
        )
    (folder / tflite.FILE).write_bytes(
        tflite.with_files(checkpoint, profile, content, checkpoint.task.mediapipe_title)
    )
    tflite.write_files(checkpoint, folder)


def checks(checkpoint: Any, profile: Profile, folder: Path) -> list[Check]:
    """Those of every .tflite file, and how many texts MediaPipe reads otherwise."""
    return [
        *tflite.checks(checkpoint, profile, folder),
        reads_differently(checkpoint),
    ]


def reads_differently(checkpoint: Any) -> Check:
    """How many of tfllm's non-ASCII sentences MediaPipe reads otherwise than the checkpoint."""
    import tensorflow as tf

    texts = [text for text in VARIED if not text.isascii()]
    theirs = checkpoint.tokenizer.graph("mediapipe").tokenize(tf.constant(texts)).to_list()
    ours = [encoding.ids[1:-1] for encoding in checkpoint.tokenizer.encode_batch(texts)]
    differing = sum(list(a) != list(b) for a, b in zip(theirs, ours, strict=True))
    return stated(
        "other than ASCII",
        f"{differing} of {len(texts)} sentences are read differently: MediaPipe lowers ASCII "
        "letters only and keeps accents",
    )


def _function(checkpoint: Any, length: int, scaled: Any) -> Any:
    """The graph: INPUTS int32 [1, length] to probabilities [1, C] or an embedding [1, D]."""
    import tensorflow as tf

    model, task = checkpoint.model, checkpoint.task
    many = getattr(task, "problem", "") == "multi_label"

    def forward(token_ids: Any, mask: Any, segment_ids: Any) -> dict[str, Any]:
        if scaled:
            scaled.trace(mask)
        given = {"token_ids": token_ids, "padding_mask": mask, "segment_ids": segment_ids}
        output = model({name: given[name] for name in model.input}, training=False)
        if "segment_ids" not in model.input:
            # An input that nothing reads would be dropped, and MediaPipe wants three. The types are
            # never below zero, so this adds nothing.
            unused = tf.reduce_sum(tf.minimum(segment_ids, 0))
            output += tf.cast(unused, tf.float32)
        if not task.softmax_over:
            return {task.output_name: output}
        return {"probability": tf.sigmoid(output) if many else tf.nn.softmax(output)}

    specs = [tf.TensorSpec([1, length], tf.int32, name) for name in INPUTS]
    return tf.function(forward, autograph=False).get_concrete_function(*specs)
