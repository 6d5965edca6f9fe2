"""Conversion of tensor names in files to the canonical names of weight maps, and back."""

from __future__ import annotations

import re
from collections.abc import Iterable

from tfllm.models.weight_map import TensorLayout, TensorMap, WeightMap

NUMBER = re.compile(r"\.\d+\.")
# Tensors in files of any family that are no weights: counters and constants that a model computes
# itself, marks of a version, and the weights of a loss, which only training uses. transformers
# ignores them too (`_keys_to_ignore_on_load_unexpected`, buffers).
NO_WEIGHTS = re.compile(
    r"(^|\.)rotary_emb(_local)?\.((full|sliding)_attention_)?(original_)?"
    r"(inv_freq|cos_cached|sin_cached)$"
    r"|(^|\.)(position_ids|token_type_ids|num_batches_tracked)$"
    r"|(^|\.)embed_positions\._float_tensor$|^(model\.)?(encoder|decoder)\.version$"
    r"|(^|\.)(loss|loss_fct|loss_fn|loss_function|criterion)\.(pos_)?weight$"
)
# Files converted from TensorFlow's checkpoints: (old ending, current ending).
OLD_NORM_NAMES = (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias"))


def canonical(names: Iterable[str], weights: WeightMap) -> dict[str, str]:
    """Return name -> canonical name: the backbone's with prefix, norms with weight and bias."""
    prefixed = _templates(weights.backbone, *weights.heads.values()) | set(weights.buffers)
    prefixed |= {*weights.ignored, *weights.tied}
    prefixed = {name for name in prefixed if name.startswith(weights.prefix)}
    canonical_names = {}
    for raw in names:
        name = raw
        for old, new in OLD_NORM_NAMES:
            name = name.removesuffix(old) + new if name.endswith(old) else name
        if _template(weights.prefix + name) in prefixed:
            name = weights.prefix + name
        canonical_names[raw] = name
    return canonical_names


def hf_name(name: str, prefix: str, prefixed: bool, old_norm_names: bool) -> str:
    """Return the name in a file for a canonical name.

    Args:
        name: The canonical name.
        prefix: The prefix of the backbone's tensors.
        prefixed: Whether names in the file have it.
        old_norm_names: Whether norms in the file have gamma and beta.
    """
    if not prefixed:
        name = name.removeprefix(prefix)
    if old_norm_names:
        for old, new in OLD_NORM_NAMES:
            name = name.removesuffix(new) + old if name.endswith(new) else name
    return name


def unused_names(weights: WeightMap) -> set[str]:
    """Return the canonical names that a file may have besides its backbone and its own head."""
    return _templates(*weights.heads.values()) | set(weights.tied) | set(weights.buffers)


def drop_ignored(names: Iterable[str], weights: WeightMap) -> list[str]:
    """Return the names of a file without those of ignored constants."""
    return [
        raw
        for raw, name in canonical(names, weights).items()
        if name in weights.buffers
        or not (_template(name) in weights.ignored or NO_WEIGHTS.search(raw))
    ]


def _templates(*tables: TensorMap) -> set[str]:
    rows = (row for table in tables for row in table.values())
    return {row.name if isinstance(row, TensorLayout) else row for row in rows}


def _template(name: str) -> str:
    return NUMBER.sub(".{i}.", name, count=1)
