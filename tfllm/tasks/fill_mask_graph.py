"""`masked_lm.fill_masks` as TensorFlow ops."""

from __future__ import annotations

import tensorflow as tf

from tfllm.tokenizers.word_alignment import AS_IS, NO_SPACE, SPACE_BEFORE


def fill_masks(
    text: tf.Tensor, mask: str, tokens: tf.Tensor, manners: tf.Tensor, row: tf.Tensor
) -> tf.Tensor:
    """Replace the mask tokens of texts, as `masked_lm.fill_masks` does.

    Args:
        text: string [B].
        mask: The mask token.
        tokens: What replaces each mask: string [N].
        manners: How each is written, as `word_alignment` numbers it: int [N].
        row: The text that each mask is in, ascending: int64 [N].

    Returns:
        string [B]; masks without a token, beyond the longest row, stay.
    """
    parts = tf.strings.split(text, mask)  # ragged [B, None]: one more than masks
    owner = parts.value_rowids()  # [P]
    size = tf.size(text, out_type=tf.int64)
    counts = tf.math.unsorted_segment_sum(tf.ones_like(row), row, size)  # [B]: masks seen
    number = tf.range(tf.size(owner, out_type=tf.int64)) - tf.gather(parts.row_starts(), owner)
    index = tf.gather(tf.cumsum(counts, exclusive=True), owner) + number
    index = tf.minimum(index, tf.size(tokens, tf.int64))
    filling = tf.gather(tf.concat([tokens, [""]], 0), index)
    last = number == tf.gather(parts.row_lengths(), owner) - 1
    known = (number < tf.gather(counts, owner)) & ~last
    manner = tf.where(known, tf.gather(tf.concat([manners, [AS_IS]], 0), index), AS_IS)
    token = tf.where(last, "", tf.where(known, filling, mask))
    part = parts.flat_values
    before = tf.where(manner == NO_SPACE, tf.strings.regex_replace(part, r"\s+$", ""), part)
    spaced = tf.strings.regex_full_match(part, r"\C*\s") | ((part == "") & (number == 0))
    space = tf.where((manner == SPACE_BEFORE) & ~spaced, " ", "")
    pieces = tf.strings.join([before, space, token])
    return tf.strings.reduce_join(parts.with_flat_values(pieces), axis=-1)
