"""What the serving signatures of all tasks share. TensorFlow only, no Python at run time.

Every signature has a leading batch axis in all its inputs and outputs, float32 numbers and valid
UTF-8 texts, works for an empty text, and uses no py_function and no XLA operation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import tensorflow as tf

if TYPE_CHECKING:
    import keras

REPLACEMENT = 0xFFFD  # for each invalid byte sequence, as the tokenizer has it
ROWS_AT_ONCE = 8  # 4 to 16 are equally quick; docs/log.md


def select_inputs(model: keras.Model, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the inputs that the model has; some families have no `segment_ids`."""
    return {name: inputs[name] for name in model.input}


def text_inputs(*names: str) -> list[tf.TensorSpec]:
    """Return an input signature of string [B] inputs."""
    return [tf.TensorSpec([None], tf.string, name) for name in names]


def run_model(model: keras.Model, packed: Mapping[str, tf.Tensor]) -> tf.Tensor:
    """Return the model's output in float32 for packed rows int32 [B, T]."""
    return tf.cast(model(select_inputs(model, packed), training=False), tf.float32)


def run_by_length(model: keras.Model, packed: Mapping[str, tf.Tensor]) -> tf.Tensor:
    """Run a model with one output per row in groups of rows of similar length.

    A batch is padded to its longest row; groups of the sorted rows are padded to their own. On a
    batch of 32 sentences that saves a third of the time.

    Args:
        model: Inputs int32 [B, T] to outputs [B, C].
        packed: Inputs by name: int32 [B, T].

    Returns:
        Outputs float32 [B, C] in the order of the rows.
    """
    lengths = tf.reduce_sum(packed["padding_mask"], axis=1)
    order = tf.argsort(lengths, direction="DESCENDING", stable=True)
    lengths = tf.gather(lengths, order)
    inputs = {name: tf.gather(packed[name], order) for name in model.input}
    groups = (tf.size(lengths) + ROWS_AT_ONCE - 1) // ROWS_AT_ONCE
    outputs = tf.TensorArray(
        tf.float32, groups, infer_shape=False, element_shape=[None, model.output.shape[-1]]
    )

    def step(group: tf.Tensor, outputs: tf.TensorArray) -> tuple[tf.Tensor, tf.TensorArray]:
        first = group * ROWS_AT_ONCE
        part = {
            name: rows[first : first + ROWS_AT_ONCE, : lengths[first]]
            for name, rows in inputs.items()
        }
        return group + 1, outputs.write(group, run_model(model, part))

    _, outputs = tf.while_loop(lambda group, _: group < groups, step, (0, outputs))
    return tf.gather(outputs.concat(), tf.math.invert_permutation(order))


def tokens_signature(model: keras.Model, output: str = "logits") -> Any:
    """Return the signature `tokens`: the model's own inputs, int32 [B, T], to its raw output."""
    ids = [tf.TensorSpec([None, None], tf.int32, name) for name in model.input]
    names = [spec.name for spec in ids]

    def forward(*inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        values = dict(zip(names, inputs, strict=True))
        ids = values["token_ids"]
        values["token_ids"] = require("token_ids", "at least 0", ids, ids >= 0)
        return {output: run_model(model, values)}

    return _with_input_names(forward, names, ids)


def require(name: str, rule: str, value: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
    """Return a value whose check fails the signature's call (INVALID_ARGUMENT) where it is wrong.

    Keras would silently count a negative index from the end.

    Args:
        name: The input's name, for the message.
        rule: What it must be, for the message.
        value: The input.
        right: Where it is as it must be: bool, in the shape of `value`.
    """
    wrong = tf.boolean_mask(value, tf.logical_not(right))
    message = f"input {name} must be {rule}; it is"  # TensorFlow escapes quotation marks
    check = tf.raw_ops.Assert(condition=tf.reduce_all(right), data=[message, wrong], summarize=1)
    with tf.control_dependencies([check]):  # nothing is computed with a wrong value before
        return tf.identity(value)


def replace_invalid_utf8(strings: tf.Tensor) -> tf.Tensor:
    """Replace each invalid byte sequence in string [B] by U+FFFD."""
    return tf.strings.unicode_transcode(
        strings, "UTF-8", "UTF-8", errors="replace", replacement_char=REPLACEMENT
    )


def parse_examples(serialized: tf.Tensor, names: list[str]) -> list[tf.Tensor]:
    """Parse text features of serialized tf.Example protos.

    Args:
        serialized: string [B].
        names: The features.

    Returns:
        string [B] for each name.
    """
    features = {name: tf.io.FixedLenFeature([], tf.string) for name in names}
    parsed = tf.io.parse_example(serialized, features)
    return [parsed[name] for name in names]


def signature(signature: list[tf.TensorSpec]) -> Callable[[Callable], Any]:
    """Return a decorator to a tf.function with an input signature, never compiled by XLA."""
    return tf.function(input_signature=signature, jit_compile=False, autograph=False)


def _with_input_names(forward: Callable, names: list[str], specs: list[tf.TensorSpec]) -> Any:
    """`forward` as a tf.function whose arguments have the names of the model's inputs."""
    if names == ["token_ids", "padding_mask"]:

        @signature(specs)
        def without_segments(token_ids: tf.Tensor, padding_mask: tf.Tensor) -> Any:
            return forward(token_ids, padding_mask)

        return without_segments

    by_name = {spec.name: spec for spec in specs}

    @signature([by_name["token_ids"], by_name["segment_ids"], by_name["padding_mask"]])
    def with_segments(token_ids: tf.Tensor, segment_ids: tf.Tensor, padding_mask: tf.Tensor) -> Any:
        inputs = {
            "token_ids": token_ids, "segment_ids": segment_ids, "padding_mask": padding_mask,
        }  # fmt: skip
        return forward(*(inputs[name] for name in names))

    return with_segments


def over_texts(answer: Any, names: list[str]) -> Any:
    """Return a function as a signature over `text`, or over `text` and `text_pair`.

    Args:
        answer: One or two string [B] to outputs by name.
        names: The inputs' names.
    """
    if len(names) == 1:

        @signature(text_inputs("text"))
        def single(text: tf.Tensor) -> Any:
            return answer(text)

        return single

    @signature(text_inputs("text", "text_pair"))
    def pair(text: tf.Tensor, text_pair: tf.Tensor) -> Any:
        return answer(text, text_pair)

    return pair
