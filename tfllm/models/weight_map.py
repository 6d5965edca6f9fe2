"""How a family says which Hugging Face tensor each Keras variable is read from and written to.

The keys of a `TensorMap` are Keras variable paths; its values are tensor names, where shapes are
equal, or a `TensorLayout`. `{i}` in both stands for the layer's index.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class TensorLayout:
    """A tensor whose layout differs from its variable's."""

    name: str
    inputs: int = 0
    """How many leading axes of the variable are inputs, for a matrix that torch stores transposed
    as (outputs, inputs); 0: a vector, such as the bias (heads, head_dim) of a query; -1: the tensor
    has the variable's layout."""
    part: int = 0
    parts: int = 1
    """Where several variables are fused in one tensor, side by side along its outputs: which of how
    many; each has the size of its variable. Outputs are the last axis of a tensor in the variable's
    layout, the first of any other."""
    groups: int = 1
    """Into how many groups the outputs are split first: each has a piece of every part."""

    @property
    def part_axis(self) -> int:
        """The tensor's axis along which parts are concatenated."""
        return -1 if self.inputs < 0 else 0


TensorMap = Mapping[str, str | TensorLayout]


def linear(variable: str, tensor: str, inputs: int = 1) -> dict[str, str | TensorLayout]:
    """Map kernel and bias of a dense layer to a torch Linear.

    Args:
        variable: The Keras layer's path.
        tensor: The torch module's name.
        inputs: How many leading axes of the kernel are inputs.
    """
    return {
        f"{variable}/kernel": TensorLayout(f"{tensor}.weight", inputs),
        f"{variable}/bias": TensorLayout(f"{tensor}.bias"),
    }


def fused(tensor: str, part: int, parts: int, inputs: int = -1) -> TensorLayout:
    """Describe a variable that is one of several parts of a tensor.

    Args:
        tensor: The tensor's name.
        part: Which part, from 0.
        parts: Number of parts.
        inputs: As of `TensorLayout`.
    """
    return TensorLayout(tensor, inputs, part, parts)


def rms_norm(variable: str, tensor: str) -> dict[str, str | TensorLayout]:
    """Map the scale of a root-mean-square normalization."""
    return {f"{variable}/scale": f"{tensor}.weight"}


def layer_norm(variable: str, tensor: str) -> dict[str, str | TensorLayout]:
    """Map gamma and beta of a layer normalization."""
    return {f"{variable}/gamma": f"{tensor}.weight", f"{variable}/beta": f"{tensor}.bias"}


def decoder_heads(logits: str, *architectures: str) -> dict[str, Any]:
    """Describe the heads of a decoder, as arguments of `WeightMap`.

    Args:
        logits: The tensor of the logits, where the embeddings do not give them.
        architectures: As in `config.json`: with logits, without a head, and, in families that have
            one, with a classifier of the last token.
    """
    heads: dict[str, TensorMap] = {"causal_lm": {"logits/kernel": TensorLayout(logits, 1)}}
    if len(architectures) > 2:
        heads["classification"] = {"classifier/kernel": TensorLayout("score.weight", 1)}
    return {
        "heads": heads,
        "architectures": {
            "causal_lm": architectures[:2],
            **({"classification": architectures[2:]} if len(architectures) > 2 else {}),
        },
    }


@dataclass(frozen=True)
class WeightMap:
    """Every tensor that checkpoints of one model type may hold."""

    prefix: str
    """Of the names of the backbone's tensors in a checkpoint with a head."""
    backbone: TensorMap
    heads: Mapping[str, TensorMap]
    """By kind of task; other kinds have no head in Hugging Face."""
    architectures: Mapping[str, tuple[str, ...]]
    """Names in `config.json`, by kind of task; the first one is written."""
    tied: Mapping[str, str] = field(default_factory=dict)
    """Tensors that a checkpoint may hold although they equal another one, and that one."""
    always_tied: bool = False
    """Whether transformers ties them whatever `tie_word_embeddings` says."""
    buffers: tuple[str, ...] = ()
    """Counters in old checkpoints; no weights."""
    ignored: tuple[str, ...] = ()
    """Large constants in old checkpoints, such as causal masks; they are dropped."""
    optional: tuple[str, ...] = ()
    """Tensors that a checkpoint may lack; the variable is zero then, its initial value."""
    grouped_by: str = ""
    """The Config's field with the number of groups in fused tensors; empty: they have none."""

    def for_config(self, config: Any) -> WeightMap:
        """Return the map with the number of groups of a family's Config."""
        if not self.grouped_by:
            return self
        groups = getattr(config, self.grouped_by)
        backbone = {
            path: replace(row, groups=groups)
            if isinstance(row, TensorLayout) and row.parts > 1
            else row
            for path, row in self.backbone.items()
        }
        return replace(self, backbone=backbone)
