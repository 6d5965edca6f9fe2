"""Types in the signatures of layers and models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

Tensor = Any
"""A tensor of Keras' backend, a NumPy array, or a symbolic `keras.KerasTensor`."""
Shape = tuple[int | None, ...]
"""A shape; None is an axis whose length is not known."""

KeysAndValues = tuple[Tensor, Tensor]
"""Keys and values, each (B, num_key_value_heads, length, head_dim); keys are rotated already."""
Cache = KeysAndValues | Callable[[Tensor, Tensor], KeysAndValues]
"""Keys and values of earlier tokens; or a function from the new ones to all that are attended to,
for a runtime that stores them first."""


class ModelConfig(Protocol):
    """What heads and tasks ask of a family's Config; `heads.OPTIONAL` has more, with defaults."""

    @property
    def hidden_dim(self) -> int:
        """Width of the hidden states."""
        ...

    @property
    def vocabulary_size(self) -> int:
        """Number of token ids."""
        ...

    @property
    def max_sequence_length(self) -> int:
        """Most tokens of a row."""
        ...
