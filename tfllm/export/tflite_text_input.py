"""TFLite files that take the text itself, with TensorFlow Text's operations for TFLite.

The exact tokenizer of tfllm.tokenizers.graph.wordpiece needs Unicode operations that TFLite lacks,
so these files hold TensorFlow Text's own BERT tokenizer. It reads ordinary text the same; the
exporter counts the built-in sentences that the two tokenize differently. The runtime must register
OPERATIONS: in Python `tensorflow_text.tflite_registrar.SELECT_TFTEXT_OPS`, in an app a build with
these kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tensorflow_text as tf_text

from tfllm.checkpoints.base import Checkpoint
from tfllm.errors import SettingError
from tfllm.export import tflite_converter
from tfllm.export.artifact import Check, report, variables_module
from tfllm.export.profile import Profile
from tfllm.export.verify.sample_texts import SENTENCES
from tfllm.layers.attention import EXACT_MASK
from tfllm.tasks import TASKS
from tfllm.tokenizers.base import Tokenizer
from tfllm.tokenizers.graph.rows import truncated_lengths
from tfllm.tokenizers.wordpiece import WordPiece

OPERATIONS = ("FastBertNormalize", "FastWordpieceTokenizeWithOffsets")
TOKENIZER = "wordpiece"  # the only kind that the operations know


def validate(checkpoint: Checkpoint) -> None:
    """Check that a file that takes text can hold the model.

    Raises:
        SettingError: Its answers point into the text, or its tokenizer is not supported.
    """
    if not checkpoint.task.pooled:
        able = ", ".join(kind for kind, task in TASKS.items() if task.pooled)
        raise SettingError(
            f"profile: a file that takes text can do {able}, not "
            f"{checkpoint.task.kind}, which needs its tokens' offsets. Export with "
            "text_input: false."
        )
    if getattr(checkpoint.task, "prompt", ""):
        raise SettingError(
            "profile: a file that takes text puts no prompt before it (task.prompt_name). Export "
            "with text_input: false, or without the prompt."
        )
    if checkpoint.tokenizer.kind != TOKENIZER:
        raise SettingError(
            f"profile: a file that takes text has a {TOKENIZER} tokenizer inside, and this model's "
            f"is {checkpoint.tokenizer.kind}. Export with text_input: false, and give it token ids."
        )


def convert(checkpoint: Checkpoint, profile: Profile) -> bytes:
    """Return the file: `text` (and `text_pair`) string [1] to `logits` or `embedding`."""
    model, task = checkpoint.model, checkpoint.task
    length = profile.max_length or task.max_length
    module = variables_module(model)
    module.tokenizer = fast_tokenizer(checkpoint.tokenizer)
    names = ("text", "text_pair") if task.takes_pair else ("text",)

    def forward(**texts: tf.Tensor) -> dict[str, tf.Tensor]:
        ids = [module.tokenizer.tokenize(texts[name]).flat_values for name in names]
        inputs = _pack_row(ids, checkpoint.tokenizer, length)
        output = model({name: inputs[name] for name in model.input}, training=False)
        return {task.output_name: output}

    specs = {name: tf.TensorSpec([1], tf.string, name) for name in names}
    with tflite_converter.mask_constant(model, profile.mask_value or EXACT_MASK):
        function = tf.function(forward, autograph=False).get_concrete_function(**specs)
    return tflite_converter.convert(
        {"serving_default": function},
        module,
        profile.quantization,
        custom_operations=True,
        oldest_runtime=profile.oldest_runtime,
    )


def fast_tokenizer(tokenizer: Tokenizer) -> tf_text.FastBertTokenizer:
    """Return TensorFlow Text's tokenizer with the vocabulary and the case of `tokenizer`."""
    assert isinstance(tokenizer, WordPiece) and tokenizer.unk_token_id is not None
    return tf_text.FastBertTokenizer(
        vocab=tokenizer.vocabulary[: tokenizer.model_size],
        token_out_type=tf.int32,
        unknown_token=tokenizer.vocabulary[tokenizer.unk_token_id],
        lower_case_nfd_strip_accents=tokenizer.lowercase,
        support_detokenization=False,
    )


def same_token_ids(tokenizer: Tokenizer, texts: Sequence[str]) -> list[bool]:
    """Return for each text whether TensorFlow Text's tokenizer gives the ids of the exact one.

    Args:
        tokenizer: The exact tokenizer.
        texts: The texts.
    """
    fast = fast_tokenizer(tokenizer).tokenize(tf.constant(list(texts))).to_list()
    exact = (encoding.ids[1:-1] for encoding in tokenizer.encode_batch(list(texts)))
    return [list(a) == list(b) for a, b in zip(fast, exact, strict=True)]


def report_token_differences(checkpoint: Checkpoint) -> Check:
    """Report how many of the built-in sentences get other ids than from the exact tokenizer."""
    equal = same_token_ids(checkpoint.tokenizer, SENTENCES)
    differing = [text for text, same in zip(SENTENCES, equal, strict=True) if not same]
    ascii_count = sum(text.isascii() for text in differing)
    return report(
        "texts tokenized differently",
        f"{len(differing)} of {len(SENTENCES)} sample sentences ({ascii_count} of them ASCII)",
    )


def vocabulary_bytes(checkpoint: Checkpoint) -> int:
    """Return the room that the vocabulary takes in the file: TensorFlow Text stores a trie."""
    return 2_000_000 + 100 * checkpoint.tokenizer.vocabulary_size


def _pack_row(ids: list[tf.Tensor], tokenizer: Tokenizer, length: int) -> dict[str, tf.Tensor]:
    """Pack one or two texts' ids [N] in the tokenizer's rows, truncated longest-first and padded:
    int32 [1, length] each."""
    template = tokenizer.row_template
    sizes = [tf.size(part) for part in ids]
    if len(ids) == 1:
        cut_sizes = [tf.minimum(sizes[0], length - template.num_special_tokens)]
    else:
        room = length - template.num_pair_special_tokens
        cut_sizes = list(truncated_lengths(sizes[0], sizes[1], room))
    parts: list[Any] = [template.prefix, ids[0][: cut_sizes[0]]]
    segments: list[Any] = [tf.fill([len(template.prefix) + cut_sizes[0]], 0)]
    if len(ids) > 1:
        parts += [template.separator, ids[1][: cut_sizes[1]]]
        segments += [template.separator_type_ids, tf.fill([cut_sizes[1]], template.pair_type_id)]
    parts.append(template.suffix)
    segments.append([template.pair_type_id if len(ids) > 1 else 0] * len(template.suffix))
    row = tf.concat(parts, 0)
    used = tf.size(row)
    padding = [[0, length - used]]
    rows = {
        "token_ids": tf.pad(row, padding, constant_values=tokenizer.pad_token_id),
        "segment_ids": tf.pad(tf.concat(segments, 0), padding),
        "padding_mask": tf.cast(tf.range(length) < used, tf.int32),
    }
    return {name: tf.reshape(value, [1, length]) for name, value in rows.items()}
