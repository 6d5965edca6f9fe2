"""Tied tensors, which are one weight under two names: which of them a file has, and which are used.

Equal tensors are one weight, a tensor that the file has only under its other name is read from
there, and two different ones are two weights, whatever `config.json` says.

Source: transformers 5 (`PreTrainedModel.tie_weights`).
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from tfllm.errors import CheckpointError
from tfllm.models.weight_map import TensorLayout, WeightMap

log = logging.getLogger("tfllm")

LOGITS = "logits/kernel"


@dataclass(frozen=True)
class Ties:
    """The tied tensors of a file."""

    config: Any
    """The family's Config, with the `tie_embeddings` of the tensors."""
    canonical: Mapping[str, str]
    """Name in the file -> name in the weight map of what is read from it."""
    equal: tuple[str, ...]
    """Names in the weight map of tensors that equal those they are tied to."""


def resolve(
    config: Any,
    table: WeightMap,
    canonical: Mapping[str, str],
    same: Callable[[str, str], bool],
    source: str,
) -> Ties:
    """Find the tied tensors of a file.

    Args:
        config: The family's Config.
        table: The family's weight map.
        canonical: Name in the file -> name in the weight map.
        same: Whether two tensors, by their names in the file, are equal.
        source: The file, for messages.

    Raises:
        CheckpointError: There are two embedding tables where the model has one.
    """
    raw = {name: raw for raw, name in canonical.items()}
    changed = dict(canonical)
    equal: list[str] = []
    logits = logits_names(table)
    for first in dict.fromkeys(table.tied.values()):
        others = [name for name, other in table.tied.items() if other == first and name in raw]
        if not getattr(config, "tie_embeddings", True):
            others = [name for name in others if name not in logits]
        if first not in raw:
            if not others:
                continue
            stand_in = next((name for name in others if name not in logits), others[0])
            others.remove(stand_in)
            changed[raw[stand_in]] = first
        else:
            stand_in = first
        for name in others:
            if same(raw[name], raw[stand_in]):
                equal.append(name)
            elif name in logits:
                log.warning(
                    "%s: %s differs from %s, which config.json ties it to; both are kept.",
                    source, raw[name], raw[stand_in],
                )  # fmt: skip
                config = dataclasses.replace(config, tie_embeddings=False)
            elif name.endswith(".bias"):  # the layer's own is the one that is added
                changed[raw[name]], changed[raw[stand_in]] = first, name
            else:
                raise CheckpointError(
                    f"{source}: {raw[name]} and {raw[stand_in]} are different tables of "
                    "embeddings, and tfllm's model has one for both. Use a checkpoint that shares "
                    "them."
                )
    return Ties(config, changed, tuple(equal))


def logits_names(table: WeightMap) -> Collection[str]:
    """Return the names of the tensors that give the logits, where these are not the embeddings."""
    rows = (head[LOGITS] for head in table.heads.values() if LOGITS in head)
    return {row.name if isinstance(row, TensorLayout) else row for row in rows}
