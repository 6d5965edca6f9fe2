"""Rows of model input from token ids as TensorFlow ops: truncation, special tokens, padding.

A row is not built by concatenation: each of its positions ([B, T] of 0..T-1) looks up the token
that belongs there.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from tfllm.tokenizers.base import RowTemplate
from tfllm.tokenizers.rows import WINDOW_SHARE, check_max_length, check_stride


class RowIds(NamedTuple):
    """The ids of a row besides those of its texts."""

    template: RowTemplate
    pad_token_id: int | None


class _Part(NamedTuple):
    """A range of each row's text: flat values [N], where each range starts and its length, [R]."""

    values: tf.Tensor
    starts: tf.Tensor
    lengths: tf.Tensor

    def at(self, positions: tf.Tensor) -> tf.Tensor:
        """The values at positions [R, T] of the ranges; outside of them they are unspecified."""
        last = tf.maximum(tf.size(self.values, out_type=tf.int64) - 1, 0)
        index = tf.clip_by_value(self.starts[:, None] + positions, 0, last)
        padded = tf.concat([self.values, [0]], 0)  # so that there is always a value
        return tf.gather(padded, index)


def pack(
    first: tf.RaggedTensor, second: tf.RaggedTensor | None, max_length: int, ids: RowIds
) -> dict[str, tf.Tensor]:
    """Build rows of one or two texts, with pairs truncated longest-first.

    Args:
        first: Ids of the first texts, int32 [B, None].
        second: Ids of the second texts, int32 [B, None]; None: rows of one text.
        max_length: Tokens of a row at most, special tokens included.
        ids: The special tokens.

    Returns:
        "token_ids", "segment_ids" and "padding_mask": int32 [B, T], T the longest row.

    Raises:
        SettingError: `max_length` has no room for the special tokens.
    """
    lengths, template = first.row_lengths(), ids.template
    if second is None:
        check_max_length(max_length, template.num_special_tokens)
        kept = tf.minimum(lengths, max_length - template.num_special_tokens)
        return _rows([_Part(first.flat_values, first.row_starts(), kept)], ids)[0]
    check_max_length(max_length, template.num_pair_special_tokens)
    kept, kept_second = truncated_lengths(
        lengths, second.row_lengths(), max_length - template.num_pair_special_tokens
    )
    parts = [
        _Part(first.flat_values, first.row_starts(), kept),
        _Part(second.flat_values, second.row_starts(), kept_second),
    ]
    return _rows(parts, ids)[0]


def truncated_lengths(
    first: tf.Tensor, second: tf.Tensor, budget: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Return how many tokens of each text of a pair are kept: int64 [B] each.

    The same as `tfllm.tokenizers.rows.truncated_lengths`.

    Args:
        first: Tokens of the first texts, int64 [B].
        second: Tokens of the second texts, int64 [B].
        budget: Tokens of a pair at most, without special tokens.
    """
    shorter, longer = tf.minimum(first, second), tf.maximum(first, second)
    longer = tf.where(shorter > budget, shorter, tf.maximum(shorter, budget - shorter))
    half = tf.cast(budget // 2, first.dtype)
    too_long = shorter + longer > budget
    shorter, longer = tf.where(too_long, half, shorter), tf.where(too_long, budget - half, longer)
    swapped = first > second
    fits = first + second <= budget
    cut_first = tf.where(swapped, longer, shorter)
    cut_second = tf.where(swapped, shorter, longer)
    return tf.where(fits, first, cut_first), tf.where(fits, second, cut_second)


def windows(
    question: tf.RaggedTensor,
    context: tf.RaggedTensor,
    starts: tf.RaggedTensor,
    ends: tf.RaggedTensor,
    max_length: int,
    stride: int,
    ids: RowIds,
) -> dict[str, tf.Tensor]:
    """Build rows of a question and overlapping windows, as `Tokenizer.encode_windows` does.

    Args:
        question: Ids, int32 [B, None].
        context: Ids, int32 [B, None].
        starts: Where the tokens of the context start, int32 [B, None].
        ends: Where they end, int32 [B, None].
        max_length: Tokens of a row at most, special tokens included.
        stride: Tokens that two neighbouring windows share.
        ids: The special tokens.

    Returns:
        int32 [R, T]: "token_ids", "segment_ids", "padding_mask", "starts" and "ends" (-1 outside
        the context); int32 [R]: "example", the index of the example that each row belongs to.

    Raises:
        SettingError: Windows of `max_length` tokens cannot overlap by `stride`.
    """
    check_stride(max_length, stride, ids.template.num_pair_special_tokens)
    room = tf.constant(max_length - ids.template.num_pair_special_tokens, tf.int64)
    asked, length = question.row_lengths(), context.row_lengths()
    longest = room - stride - -(-(room - stride) // WINDOW_SHARE)  # see truncated_question_length
    asked = tf.where(asked + length > room, tf.minimum(asked, longest), asked)
    size = room - asked
    step = size - stride  # above 0 wherever there is more than one window
    more = tf.maximum(length - size, 0)
    count = 1 + tf.where(more > 0, (more + step - 1) // tf.maximum(step, 1), 0)
    example = tf.repeat(tf.range(tf.size(count, out_type=tf.int64)), count)
    number = tf.range(tf.size(example, out_type=tf.int64)) - tf.gather(
        tf.cumsum(count, exclusive=True), example
    )

    def per_row(values: tf.Tensor) -> tf.Tensor:
        return tf.gather(values, example)

    begin = number * per_row(step)
    head = _Part(question.flat_values, per_row(question.row_starts()), per_row(asked))
    body = _Part(
        context.flat_values,
        per_row(context.row_starts()) + begin,
        tf.minimum(per_row(size), per_row(length) - begin),
    )
    rows, positions = _rows([head, body], ids)
    inside = (positions >= 0) & (positions < body.lengths[:, None])
    return {
        **rows,
        "starts": tf.where(inside, body._replace(values=starts.flat_values).at(positions), -1),
        "ends": tf.where(inside, body._replace(values=ends.flat_values).at(positions), -1),
        "example": tf.cast(example, tf.int32),
    }


def _rows(parts: list[_Part], ids: RowIds) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
    """The rows of the parts, and their positions counted from the start of the last part."""
    template = ids.template
    specials = template.num_special_tokens if len(parts) == 1 else template.num_pair_special_tokens
    total = specials + tf.add_n([part.lengths for part in parts])  # [R]
    longest = tf.reduce_max(tf.concat([total, [specials]], 0))
    position = tf.range(longest)[None, :]  # [1, T]
    # Without a token for padding as in Python: what the mask hides may be any token.
    token_ids = tf.fill(_shape(total, longest), ids.pad_token_id or 0)
    segment_ids = tf.zeros_like(token_ids)
    for number, token in enumerate(template.prefix):
        token_ids = tf.where(position == number, token, token_ids)
    offset = tf.fill(
        tf.shape(total), tf.constant(len(template.prefix), tf.int64)
    )  # where a part starts
    for number, part in enumerate(parts):
        inner = position - offset[:, None]
        length = part.lengths[:, None]
        inside = (inner >= 0) & (inner < length)
        token_ids = tf.where(inside, part.at(inner), token_ids)
        type_id = template.pair_type_id if number else 0
        last = number == len(parts) - 1
        after = template.suffix if last else template.separator
        types = (type_id,) * len(after) if last else template.separator_type_ids
        if type_id:
            segment_ids = tf.where(inside, type_id, segment_ids)
        for distance, (token, kind) in enumerate(zip(after, types, strict=True)):
            token_ids = tf.where(inner == length + distance, token, token_ids)
            if kind:
                segment_ids = tf.where(inner == length + distance, kind, segment_ids)
        offset += part.lengths + len(after)
    rows = {
        "token_ids": token_ids,
        "segment_ids": segment_ids,
        "padding_mask": tf.cast(position < total[:, None], tf.int32),
    }
    return rows, inner


def _shape(rows: tf.Tensor, longest: tf.Tensor) -> tf.Tensor:
    return tf.stack([tf.size(rows, out_type=tf.int64), longest])
