"""TFLite files that take the text itself, through TensorFlow Text's operations for TFLite.

The exact tokenizer of tfllm.tokenizers.graph.wordpiece needs Unicode operations that TFLite lacks,
so these files hold TensorFlow Text's own BERT tokenizer. It reads ordinary text alike; the exporter
counts on its own sentences where the two differ. The runtime must register OPERATIONS: in Python
`tensorflow_text.tflite_registrar.SELECT_TFTEXT_OPS`, in an app a build with these kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tfllm.errors import SettingError
from tfllm.export.base import Check, Profile, stated
from tfllm.export.verify.sentences import SENTENCES
from tfllm.tasks import TASKS

OPERATIONS = ("FastBertNormalize", "FastWordpieceTokenizeWithOffsets")
TOKENIZER = "wordpiece"  # the only kind that the operations know


def refuse(checkpoint: Any) -> None:
    """Raises SettingError for tasks whose answers point into the text, and for other tokenizers."""
    if not checkpoint.task.pooled:
        able = ", ".join(kind for kind, task in TASKS.items() if task.pooled)
        raise SettingError(
            f"profile: a file that takes text can do {able}, not "
            f"{checkpoint.task.kind}, which needs its tokens' offsets. Export with text: false."
        )
    if getattr(checkpoint.task, "prompt", ""):
        raise SettingError(
            "profile: a file that takes text puts no prompt before it (task.prompt_name). Export "
            "with text: false, or without the prompt."
        )
    if checkpoint.tokenizer.kind != TOKENIZER:
        raise SettingError(
            f"profile: a file that takes text has a {TOKENIZER} tokenizer inside, and this model's "
            f"is {checkpoint.tokenizer.kind}. Export with text: false, and give it token ids."
        )


def converted(checkpoint: Any, profile: Profile) -> bytes:
    """The .tflite file: `text` (and `text_pair`) string [1] to `logits` or `embedding`."""
    import tensorflow as tf

    from tfllm.export import convert
    from tfllm.export.tflite import output_name
    from tfllm.layers.attention import EXACT_MASK, set_mask_constant

    model, task = checkpoint.model, checkpoint.task
    length = profile.max_length or task.max_length
    kept = convert.keeper(model)
    kept.tokenizer = tokenizer(checkpoint.tokenizer)
    names = ("text", "text_pair") if task.takes_pair else ("text",)

    def forward(**texts: Any) -> dict[str, Any]:
        tokens = [kept.tokenizer.tokenize(texts[name]).flat_values for name in names]
        inputs = _row(tokens, checkpoint.tokenizer, length)
        output = model({name: inputs[name] for name in model.input}, training=False)
        return {output_name(task): output}

    specs = {name: tf.TensorSpec([1], tf.string, name) for name in names}
    set_mask_constant(model, profile.mask_constant or EXACT_MASK)
    function = tf.function(forward, autograph=False).get_concrete_function(**specs)
    set_mask_constant(model, EXACT_MASK)
    return convert.convert(
        {"serving_default": function},
        kept,
        profile.quantization,
        custom=True,
        oldest_runtime=profile.oldest_runtime,
    )


def tokenizer(python: Any) -> Any:
    """TensorFlow Text's tokenizer with the vocabulary and the case of tfllm's."""
    import tensorflow as tf
    import tensorflow_text as tf_text

    return tf_text.FastBertTokenizer(
        vocab=python.vocabulary[: python.model_size],
        token_out_type=tf.int32,
        unknown_token=python.vocabulary[python.unk_token_id],
        lower_case_nfd_strip_accents=python.lowercase,
        support_detokenization=False,
    )


def read_alike(python: Any, texts: Sequence[str]) -> list[bool]:
    """For each text whether TensorFlow Text's tokenizer gives the same ids as the exact one."""
    import tensorflow as tf

    fast = tokenizer(python).tokenize(tf.constant(list(texts))).to_list()
    exact = (encoding.ids[1:-1] for encoding in python.encode_batch(list(texts)))
    return [list(a) == list(b) for a, b in zip(fast, exact, strict=True)]


def reads_differently(checkpoint: Any) -> Check:
    """How many of tfllm's own sentences get other ids than from the exact tokenizer."""
    alike = read_alike(checkpoint.tokenizer, SENTENCES)
    differing = [text for text, same in zip(SENTENCES, alike, strict=True) if not same]
    plain = sum(text.isascii() for text in differing)
    return stated(
        "texts read differently",
        f"{len(differing)} of {len(SENTENCES)} of tfllm's own sentences ({plain} of them ASCII)",
    )


def table_bytes(checkpoint: Any) -> int:
    """Room that the vocabulary takes in the file: TensorFlow Text keeps it as a trie."""
    return 2_000_000 + 100 * checkpoint.tokenizer.vocabulary_size


def _row(tokens: list[Any], python: Any, length: int) -> dict[str, Any]:
    """`[CLS] a [SEP] (b [SEP])` of ids [N], cut longest-first and padded: int32 [1, length]."""
    import tensorflow as tf

    sizes = [tf.size(part) for part in tokens]
    if len(tokens) == 1:
        kept = [tf.minimum(sizes[0], length - 2)]
    else:
        from tfllm.tokenizers.graph.rows import truncated_lengths

        kept = list(truncated_lengths(sizes[0], sizes[1], length - 3))
    ids, types = [[python.bos_token_id]], [[0]]
    for number, (part, size) in enumerate(zip(tokens, kept, strict=True)):
        ids += [part[:size], [python.eos_token_id]]
        types += [tf.fill([size + 1], number)]
    row = tf.concat(ids, 0)
    used = tf.size(row)
    blank = [[0, length - used]]
    rows = {
        "token_ids": tf.pad(row, blank, constant_values=python.pad_token_id),
        "segment_ids": tf.pad(tf.concat(types, 0), blank),
        "padding_mask": tf.cast(tf.range(length) < used, tf.int32),
    }
    return {name: tf.reshape(value, [1, length]) for name, value in rows.items()}
