"""How a family says which Hugging Face tensor each Keras variable is made from.

A table's left side is a Keras variable path, its right side a tensor's name, where shapes are
equal, or a Row. `{i}` in both stands for the layer's number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Row:
    """A tensor that is laid out otherwise than its variable."""

    name: str
    inputs: int = 0
    """How many leading axes of the variable are inputs, of a matrix that torch keeps transposed as
    (outputs, inputs); 0: a vector, such as the bias (heads, head_dim) of a query; -1: the tensor
    is laid out as the variable."""
    part: int = 0
    parts: int = 1
    """Several variables that lie in one tensor, side by side along its outputs: which, of how many.
    Outputs are the last axis of a tensor laid out as its variable, the first of any other."""

    @property
    def part_axis(self) -> int:
        """The tensor's axis along which the parts lie."""
        return -1 if self.inputs < 0 else 0


Table = Mapping[str, str | Row]


def linear(variable: str, tensor: str, inputs: int = 1) -> dict[str, str | Row]:
    """The two rows of a torch Linear. `inputs`: leading axes of the kernel that are inputs."""
    return {
        f"{variable}/kernel": Row(f"{tensor}.weight", inputs),
        f"{variable}/bias": Row(f"{tensor}.bias"),
    }


def part(tensor: str, number: int, of: int, inputs: int = -1) -> Row:
    """The row of a variable that is the part `number` (from 0) `of` so many in a tensor."""
    return Row(tensor, inputs, number, of)


def scale(variable: str, tensor: str) -> dict[str, str | Row]:
    """The row of a root-mean-square normalisation."""
    return {f"{variable}/scale": f"{tensor}.weight"}


def norm(variable: str, tensor: str) -> dict[str, str | Row]:
    """The two rows of a layer normalisation."""
    return {f"{variable}/gamma": f"{tensor}.weight", f"{variable}/beta": f"{tensor}.bias"}


@dataclass(frozen=True)
class Weights:
    """Every tensor that files of one model type may hold."""

    prefix: str
    """Stands before the names of the backbone's tensors in a file with a head."""
    backbone: Table
    heads: Mapping[str, Table]
    """By kind of task. Kinds that are missing have no head in Hugging Face."""
    architectures: Mapping[str, tuple[str, ...]]
    """Names in `config.json`, by kind of task; the first is the one that is written."""
    tied: Mapping[str, str] = field(default_factory=dict)
    """Tensors that a file may hold although they are another one under a second name."""
    buffers: tuple[str, ...] = ()
    """Counters that old files hold; no weights."""
    ignored: tuple[str, ...] = ()
    """Constants that old files hold and that are large, such as causal masks; they are not kept."""
    optional: tuple[str, ...] = ()
    """Tensors that a file may lack: the variable is zero then, as it starts."""
