"""Token ids to rows of model input in the graph: special tokens, truncation, windows, padding.

A row is never built by concatenating: its places are counted out ([B, T] of 0..T-1), and each
place looks up the token that belongs there.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from tfllm.tokenizers.base import RowTemplate
from tfllm.tokenizers.rows import WINDOW_SHARE, check_max_length, check_stride


class Ids(NamedTuple):
    """What a row is made with besides the ids of its texts."""

    template: RowTemplate
    pad_token_id: int | None


class _Part(NamedTuple):
    """A range of each row's text: flat values [N], where each range starts and its length, [R]."""

    values: tf.Tensor
    starts: tf.Tensor
    lengths: tf.Tensor

    def at(self, places: tf.Tensor) -> tf.Tensor:
        """The values at places [R, T] of the ranges; anything outside of them is unspecified."""
        last = tf.maximum(tf.size(self.values, out_type=tf.int64) - 1, 0)
        index = tf.clip_by_value(self.starts[:, None] + places, 0, last)
        padded = tf.concat([self.values, [0]], 0)  # so that there is always something to look up
        return tf.gather(padded, index)


def pack(
    first: tf.RaggedTensor, second: tf.RaggedTensor | None, max_length: int, ids: Ids
) -> dict[str, tf.Tensor]:
    """`start a end` or `start a between b end`, the pair cut longest-first.

    Ragged int32 [B, None] to int32 [B, T], T the longest row, at most `max_length`.
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
    """`tokenizers.rows.truncated_lengths` on int64 [B]."""
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
    ids: Ids,
) -> dict[str, tf.Tensor]:
    """Rows `start question between window end`, as `Tokenizer.encode_windows` gives them.

    Ragged int32 [B, None] of ids and of the context's offsets, to int32 [R, T] "token_ids",
    "segment_ids", "padding_mask", "starts", "ends" (-1 outside the context) and "example" [R], the
    index of the example that each row belongs to.
    """
    check_stride(max_length, stride, ids.template.num_pair_special_tokens)
    room = tf.constant(max_length - ids.template.num_pair_special_tokens, tf.int64)
    asked, length = question.row_lengths(), context.row_lengths()
    longest = room - stride - -(-(room - stride) // WINDOW_SHARE)  # as truncated_question_length
    asked = tf.where(asked + length > room, tf.minimum(asked, longest), asked)
    size = room - asked
    step = size - stride  # above 0 wherever there is more than one window
    more = tf.maximum(length - size, 0)
    count = 1 + tf.where(more > 0, (more + step - 1) // tf.maximum(step, 1), 0)
    example = tf.repeat(tf.range(tf.size(count, out_type=tf.int64)), count)
    number = tf.range(tf.size(example, out_type=tf.int64)) - tf.gather(
        tf.cumsum(count, exclusive=True), example
    )

    def of(values: tf.Tensor) -> tf.Tensor:
        return tf.gather(values, example)

    begin = number * of(step)
    head = _Part(question.flat_values, of(question.row_starts()), of(asked))
    body = _Part(
        context.flat_values,
        of(context.row_starts()) + begin,
        tf.minimum(of(size), of(length) - begin),
    )
    rows, places = _rows([head, body], ids)
    inside = (places >= 0) & (places < body.lengths[:, None])
    return {
        **rows,
        "starts": tf.where(inside, body._replace(values=starts.flat_values).at(places), -1),
        "ends": tf.where(inside, body._replace(values=ends.flat_values).at(places), -1),
        "example": tf.cast(example, tf.int32),
    }


def _rows(parts: list[_Part], ids: Ids) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
    """The parts and the special tokens; also the places counted from the last part's start."""
    template = ids.template
    specials = template.num_special_tokens if len(parts) == 1 else template.num_pair_special_tokens
    total = specials + tf.add_n([part.lengths for part in parts])  # [R]
    longest = tf.reduce_max(tf.concat([total, [specials]], 0))
    place = tf.range(longest)[None, :]  # [1, T]
    token_ids = tf.fill(_shape(total, longest), ids.pad_token_id)
    segment_ids = tf.zeros_like(token_ids)
    for number, token in enumerate(template.prefix):
        token_ids = tf.where(place == number, token, token_ids)
    offset = tf.fill(
        tf.shape(total), tf.constant(len(template.prefix), tf.int64)
    )  # where a part starts
    for number, part in enumerate(parts):
        inner = place - offset[:, None]
        length = part.lengths[:, None]
        inside = (inner >= 0) & (inner < length)
        token_ids = tf.where(inside, part.at(inner), token_ids)
        own_type = template.pair_type_id if number else 0
        last = number == len(parts) - 1
        after = template.suffix if last else template.separator
        types = (own_type,) * len(after) if last else template.separator_type_ids
        if own_type:
            segment_ids = tf.where(inside, own_type, segment_ids)
        for distance, (token, kind) in enumerate(zip(after, types, strict=True)):
            token_ids = tf.where(inner == length + distance, token, token_ids)
            if kind:
                segment_ids = tf.where(inner == length + distance, kind, segment_ids)
        offset += part.lengths + len(after)
    rows = {
        "token_ids": token_ids,
        "segment_ids": segment_ids,
        "padding_mask": tf.cast(place < total[:, None], tf.int32),
    }
    return rows, inner


def _shape(rows: tf.Tensor, longest: tf.Tensor) -> tf.Tensor:
    return tf.stack([tf.size(rows, out_type=tf.int64), longest])
