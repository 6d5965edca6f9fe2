"""The right side of a WEIGHTS table: the Hugging Face tensor that a Keras variable is made from.

A plain text is a tensor's name. Shapes may differ when the sizes agree: attention heads are split
by a reshape. `transpose` and `part` say what a reshape cannot.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One tensor or a part of it."""

    name: str
    transposed: bool = False
    """torch keeps Linear weights as (output, input), Keras as (input, output)."""
    index: int = 0
    of: int = 1
    """This variable is part `index` of `of` equal parts along the last axis, after transposing."""


def transpose(name: str) -> Row:
    """A torch Linear's weight."""
    return Row(name, transposed=True)


def part(name: str, index: int, of: int, transposed: bool = False) -> Row:
    """Part `index` of `of` of a fused tensor, such as queries, keys and values in one."""
    return Row(name, transposed, index, of)


Table = dict[str, str | Row]
"""Keras variable path to tensor; `{i}` in both stands for the layer's number."""


def linear(variable: str, tensor: str) -> Table:
    """The two rows of a Dense layer that is a torch Linear."""
    return {
        f"{variable}/kernel": transpose(f"{tensor}.weight"),
        f"{variable}/bias": f"{tensor}.bias",
    }


def norm(variable: str, tensor: str) -> Table:
    """The two rows of a layer normalisation."""
    return {f"{variable}/gamma": f"{tensor}.weight", f"{variable}/beta": f"{tensor}.bias"}
