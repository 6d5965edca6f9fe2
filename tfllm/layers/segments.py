"""Attention masks for rows of one document, or of several packed one after another.

Segment ids are int32 (B, T): 0 is padding, 1 the first (or only) document of a row, 2 the next one,
and so on; a document's tokens are contiguous. A padding mask is the case of one document. All
functions work on symbolic tensors of unknown length: positions are counted with a cumulative sum,
because a functional graph has no range over T.
"""

from __future__ import annotations

from keras import ops

from tfllm.layers.types import Tensor


def attention_mask(segment_ids: Tensor, window: int | None = None) -> Tensor:
    """Build the causal attention mask of rows of packed documents.

    A token attends to itself and to earlier tokens of its own document. Padding attends to nothing
    and is never attended to.

    Args:
        segment_ids: int32 (B, T), 0 on padding; see the module.
        window: How many tokens a query attends to, itself included (Beltagy et al. 2020; Mistral,
            Jiang et al. 2023). None: to the document's start.

    Returns:
        Boolean (B, T, T): true where a query (axis 1) attends to a key (axis 2).
    """
    places = ops.cumsum(ops.ones_like(segment_ids), axis=1)
    queries, keys = ops.expand_dims(places, 2), ops.expand_dims(places, 1)
    of_query, of_key = ops.expand_dims(segment_ids, 2), ops.expand_dims(segment_ids, 1)
    mask = ops.logical_and(ops.less_equal(keys, queries), ops.equal(of_query, of_key))
    mask = ops.logical_and(mask, ops.greater(of_key, 0))
    return mask if window is None else apply_sliding_window(mask, places, places, window)


def positions(segment_ids: Tensor) -> Tensor:
    """Return each token's position in its own document, from 0.

    Args:
        segment_ids: int32 (B, T), 0 on padding.

    Returns:
        int32 (B, T); 0 on padding.
    """
    attended = ops.sum(ops.cast(attention_mask(segment_ids), "int32"), axis=-1)
    return ops.maximum(ops.subtract(attended, 1), 0)


def window_mask(padding_mask: Tensor, positions: Tensor, distance: int) -> Tensor:
    """Build the attention mask of an encoder's layer with a window (Beltagy et al. 2020).

    Args:
        padding_mask: int32 (B, T), 0 on padding.
        positions: int32 (B or 1, T).
        distance: The farthest token that a query attends to, on both sides.

    Returns:
        Boolean (B, T, T): true where a query (axis 1) attends to a key (axis 2).
    """
    apart = ops.subtract(ops.expand_dims(positions, 2), ops.expand_dims(positions, 1))
    near = ops.less_equal(ops.abs(apart), distance)
    return ops.logical_and(near, ops.expand_dims(ops.cast(padding_mask, "bool"), 1))


def apply_sliding_window(
    mask: Tensor, query_positions: Tensor, key_positions: Tensor, window: int
) -> Tensor:
    """Remove from an attention mask the keys that are `window` or more tokens back.

    Args:
        mask: Boolean (B, S, K).
        query_positions: int32 (B, S), positions in the document.
        key_positions: int32 (B, K), positions in the same document.
        window: How many tokens a query attends to, itself included.

    Returns:
        Boolean (B, S, K).
    """
    distance = ops.subtract(ops.expand_dims(query_positions, 2), ops.expand_dims(key_positions, 1))
    return ops.logical_and(mask, ops.less(distance, window))
