"""Which tokens see which, for rows that hold one document or several, one after another.

A mask of segments is int32 (B, T): 0 is padding, 1 the first (or only) document, 2 the next one of
the same row, and so on. A document's tokens stand together. The functions work on symbolic tensors
of unknown length too: places are counted, because a functional graph has no range of T.
"""

from __future__ import annotations

from typing import Any

from keras import ops


def attention_mask(mask: Any, window: int | None = None) -> Any:
    """Segments (B, T) to boolean (B, T, T): True where a query (axis 1) sees a key (axis 2).

    A token sees itself and what came before it in its own document, with `window` only that many
    tokens, itself included (Beltagy et al. 2020; Mistral). Padding sees nothing and is never seen.
    """
    places = ops.cumsum(ops.ones_like(mask), axis=1)
    queries, keys = ops.expand_dims(places, 2), ops.expand_dims(places, 1)
    of_query, of_key = ops.expand_dims(mask, 2), ops.expand_dims(mask, 1)
    seen = ops.logical_and(ops.less_equal(keys, queries), ops.equal(of_query, of_key))
    seen = ops.logical_and(seen, ops.greater(of_key, 0))
    return seen if window is None else apply_sliding_window(seen, places, places, window)


def positions(mask: Any) -> Any:
    """Segments (B, T) to int32 (B, T): each token's place in its own document, from 0.

    Padding is at 0.
    """
    seen = ops.sum(ops.cast(attention_mask(mask), "int32"), axis=-1)
    return ops.maximum(ops.subtract(seen, 1), 0)


def apply_sliding_window(seen: Any, query_positions: Any, key_positions: Any, window: int) -> Any:
    """`seen`, boolean (B, S, K), without the keys that lie `window` or more tokens back.

    `query_positions` int32 (B, S), `key_positions` int32 (B, K): places in the same document.
    """
    distance = ops.subtract(ops.expand_dims(query_positions, 2), ops.expand_dims(key_positions, 1))
    return ops.logical_and(seen, ops.less(distance, window))
