"""The inputs and results of pipelines, as transformers' have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

BATCH_SIZE = 32

TextInput = str | Mapping[str, str]
"""A text, or `{"text", "text_pair"}`."""
Result = dict[str, Any]

T = TypeVar("T")


def examples_of(inputs: TextInput | Sequence[TextInput]) -> tuple[list[dict[str, Any]], bool]:
    """Return examples with `text` and `text_pair`, and whether it was one input and no list."""
    if isinstance(inputs, str):
        return [{"text": inputs}], True
    if isinstance(inputs, Mapping):
        return [dict(inputs)], True
    return [{"text": each} if isinstance(each, str) else dict(each) for each in inputs], False


def chunks(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """Return the items in groups of `size` neighbours."""
    return [items[start : start + size] for start in range(0, len(items), size)]
