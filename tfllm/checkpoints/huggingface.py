"""Hugging Face directories, read and written: every head, both ways, the same bytes back."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tfllm.checkpoints import hf_tasks, sentence_transformers, tensor_names, tied_weights, weights
from tfllm.checkpoints.base import Checkpoint, Origin, check_sizes, new_model
from tfllm.checkpoints.files import atomic_directory, read_tensors, write_json, write_tensors
from tfllm.checkpoints.hf_directory import (
    CONFIG,
    GENERATION,
    TENSORS,
    model_type_of,
    read_config,
    read_generation,
    refuse_quantized,
    shapes_of,
    tensor_files,
)
from tfllm.errors import CheckpointError
from tfllm.models import FAMILIES, config_from_hf, get_weight_map, is_decoder
from tfllm.models.weight_map import WeightMap
from tfllm.tasks import Task
from tfllm.tasks.embedding import Embedding

log = logging.getLogger("tfllm")


def read(directory: Path, task: Task | None = None) -> Checkpoint:
    """A Hugging Face directory as a checkpoint, for its own task or with a new head for `task`."""
    from tfllm.tokenizers.loading import load_tokenizer

    hf_config = read_config(directory)
    family, _ = model_type_of(hf_config, str(directory / CONFIG))
    config = config_from_hf(family, hf_config)
    table = get_weight_map(family, config)
    refuse_quantized(shapes_of(directory), str(directory))
    raw = _all_tensors(directory, table)
    tied = _ties(config, table, raw, str(directory))
    config = tied.config
    own = _own_task(hf_config, family, table, raw, directory, config, needed=task is None)
    tokenizer = sentence_transformers.lowered(load_tokenizer(directory), directory)
    check_sizes(tokenizer, config, directory)

    _, model = new_model(family, config, task or own)
    loaded = fill(model, table, task, own, raw, tied, directory, hf_config)
    return Checkpoint(
        family=family,
        config=config,
        tokenizer=tokenizer,
        task=task or own,
        model=model,
        path=directory,
        unused_tensors=loaded[0],
        origin=loaded[1],
        generation_config=read_generation(directory),
    )


def _ties(
    config: Any, table: WeightMap, raw: Mapping[str, np.ndarray], source: str
) -> tied_weights.Ties:
    canonical = tensor_names.canonical(raw, table)
    if len(set(canonical.values())) < len(canonical):
        twice = [name for name, count in Counter(canonical.values()).items() if count > 1]
        raise CheckpointError(f"{source}: {weights.listed(twice)} stands there under two names.")

    def same(one: str, other: str) -> bool:
        return np.array_equal(raw[one], raw[other], equal_nan=True)

    return tied_weights.resolved(config, table, canonical, same, source)


def _all_tensors(directory: Path, table: WeightMap) -> dict[str, np.ndarray]:
    raw: dict[str, np.ndarray] = {}
    for file in tensor_files(directory):
        raw.update(read_tensors(file))
    return {name: raw[name] for name in tensor_names.kept(raw, table)}


def _own_task(
    hf_config: Mapping[str, Any],
    family: str,
    table: WeightMap,
    raw: Mapping[str, np.ndarray],
    directory: Path,
    config: Any,
    needed: bool,
) -> Any:
    """The task of the directory itself; None for a head that tfllm has not, unless `needed`."""
    try:
        kind = hf_tasks.kind_of(hf_config, family, table, directory)
        row = table.heads.get(kind, {}).get("classifier/kernel")
        tensor = raw.get(row.name) if row is not None and not isinstance(row, str) else None
        size = None if tensor is None else len(tensor)
        return hf_tasks.task_of(kind, hf_config, directory, size, config.max_sequence_length)
    except CheckpointError:
        if needed:
            raise
        return None


def fill(
    model: Any,
    table: WeightMap,
    task: Task | None,
    own: Task | None,
    raw: Mapping[str, np.ndarray],
    found: tied_weights.Ties,
    directory: Path,
    hf_config: Mapping[str, Any],
) -> tuple[dict[str, np.ndarray], Origin | None]:
    """Puts the tensors into the model. Returns the unused tensors and the layout of the source."""
    source = str(directory)
    canonical = found.canonical
    tensors = {canonical[name]: tensor for name, tensor in raw.items()}
    variables = weights.variables_of(model)
    kind = (task or own).kind  # type: ignore[union-attr]
    rows = weights.rows_of(variables, {**table.backbone, **table.heads.get(kind, {})})
    known = {name for name in tensors if name in tensor_names.unused(table)}
    if changed := task is not None and not same_head(task, own):
        known |= {name for name in tensors if own is None and not name.startswith(table.prefix)}
        backbone = weights.rows_of(variables, table.backbone)
        kept = kept_head(set(rows) - set(backbone), task, own)
        head = {path for path in kept if rows[path].name in tensors}
        rows = {path: row for path, row in rows.items() if path in backbone or path in head}
    elif len(rows) < len(variables):
        fresh = [path for path in variables if path not in rows]
        raise CheckpointError(f"{source}: a {kind} model has {weights.listed(fresh)}, which "
                              f"files of {hf_config['model_type']} have not.")  # fmt: skip

    if tied_weights.LOGITS in rows and rows[tied_weights.LOGITS].name not in tensors:
        raise CheckpointError(_no_logits(rows[tied_weights.LOGITS].name, table, kind, source))
    absent = {row.name for row in rows.values()} & set(table.optional) - set(tensors)
    rows = {path: row for path, row in rows.items() if row.name not in absent}
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    weights.check(rows, variables, shapes, known, source)
    used = {row.name for row in rows.values()}
    _check_dtypes({name: tensors[name] for name in used}, source)
    weights.to_variables(rows, variables, tensors)
    if changed:
        say_changed(source, [path for path in variables if path not in rows],
                    [name for name in known - used if name not in table.buffers])  # fmt: skip
        return {name: tensors[name] for name in known if name in table.buffers}, None
    tied = [name for name in found.equal if table.tied[name] in used]
    unused_tensors = {raw_name: raw[raw_name] for raw_name, name in canonical.items()
               if name not in used and name not in tied}  # fmt: skip
    origin = _origin(kind, table, raw, canonical, used, tied, hf_config)
    return unused_tensors, dataclasses.replace(origin, absent=tuple(absent))


def same_head(task: Task, own: Task | None) -> bool:
    """Whether a source's own head is the one that `task` needs: same variables, same meaning."""
    return own is not None and task.head_key == own.head_key


def kept_head(paths: set[str], task: Task, own: Task | None) -> set[str]:
    """Those variables of a new task's head that another head may give: all but a classifier,
    whose outputs would stand for other labels."""
    same_labels = own is not None and (own.kind, getattr(own, "labels", None)) == (
        task.kind, getattr(task, "labels", None))  # fmt: skip
    return {path for path in paths if same_labels or not path.startswith("classifier/")}


def fill_from_unused(
    variables: Mapping[str, Any],
    unused_tensors: Mapping[str, np.ndarray],
    family: str,
    config: Any,
    kind: str,
) -> set[str]:
    """Fills a new head from unused tensors (a pooler). Returns the paths that were filled."""
    table = get_weight_map(family, config)
    canonical = tensor_names.canonical(unused_tensors, table)
    tensors = {canonical[name]: tensor for name, tensor in unused_tensors.items()}
    rows = weights.rows_of(variables, table.heads.get(kind, {}))
    rows = {
        path: row
        for path, row in rows.items()
        if not path.startswith("classifier/") and row.name in tensors
    }
    weights.to_variables(rows, variables, tensors)
    return set(rows)


def say_changed(source: str, fresh: Iterable[str], dropped: Iterable[str]) -> None:
    """One line about a head that was exchanged."""
    parts = []
    if fresh:
        parts.append(f"new, to be trained: {weights.listed(sorted(fresh))}")
    if dropped:
        parts.append(f"left behind: {weights.listed(sorted(dropped))}")
    if parts:
        log.warning("%s: %s", source, "; ".join(parts))


def _check_dtypes(tensors: Mapping[str, np.ndarray], source: str) -> None:
    for name, tensor in tensors.items():
        if tensor.dtype.name not in ("float32", "float16", "bfloat16", "float64"):
            raise CheckpointError(
                f"{source}: {name} is {tensor.dtype.name}; only floating-point weights are read. "
                "Use the checkpoint before quantization."
            )
    if any(tensor.dtype == np.float64 for tensor in tensors.values()):
        log.warning("%s: float64 weights are rounded to float32.", source)


def _no_logits(name: str, table: WeightMap, kind: str, source: str) -> str:
    """What is wrong with a file that holds a backbone alone, and what to do."""
    head = table.architectures[kind][0]
    return (
        f"{source}: there is no {name}, which gives the logits, and config.json does not tie them "
        "to the embeddings (tie_word_embeddings): the file holds a model without its head. Copy "
        f"the checkpoint of the {head}, or train a recipe with model.from and task.kind: "
        "embedding, which needs no such head."
    )


def _origin(
    kind: str,
    table: WeightMap,
    raw: Mapping[str, np.ndarray],
    canonical: Mapping[str, str],
    used: set[str],
    tied: list[str],
    hf_config: Mapping[str, Any],
) -> Origin:
    prefixed = any(name.startswith(table.prefix) for name in raw)
    old_norm_names = any(name.endswith("LayerNorm.gamma") for name in raw)
    in_file = {
        name: raw_name for raw_name, name in canonical.items() if name in used or name in tied
    }
    dtypes = {name: raw[raw_name].dtype.name for name, raw_name in in_file.items()}
    most = Counter(dtypes.values()).most_common(1)[0][0]
    return Origin(
        kind=kind,
        config=dict(hf_config),
        prefixed=prefixed,
        old_norm_names=old_norm_names,
        names={
            name: raw_name
            for name, raw_name in in_file.items()
            if raw_name != tensor_names.hf_name(name, table.prefix, prefixed, old_norm_names)
        },
        dtype=most,
        dtypes={name: dtype for name, dtype in dtypes.items() if dtype != most},
        tied=tuple(tied),
    )


def write(checkpoint: Checkpoint, directory: str | Path) -> Path:
    """Writes a checkpoint as a Hugging Face directory, new or empty before; all or nothing.

    A checkpoint that came from one gives its tensors back under their names and in their dtypes,
    where those hold the values. Raises CheckpointError for what Hugging Face has no place for.
    """
    with atomic_directory(directory) as part:
        _write(checkpoint, part)
    return Path(directory)


def _write(checkpoint: Checkpoint, directory: Path) -> None:
    module = FAMILIES[checkpoint.family]
    shape = module.to_hf(checkpoint.config)
    table = get_weight_map(checkpoint.family, checkpoint.config)
    kind = checkpoint.task.kind
    checkpoint.task.check_hf(shape["model_type"])
    origin = checkpoint.origin
    if origin is None or origin.kind != kind:
        origin = Origin(kind=kind, config={}, prefixed=checkpoint.task.hf_prefixed)
    variables = weights.variables_of(checkpoint.model)
    rows = weights.rows_of(variables, {**table.backbone, **table.heads.get(kind, {})})
    if homeless := [path for path in variables if path not in rows]:
        raise CheckpointError(
            f"Hugging Face's {shape['model_type']} has no place for {weights.listed(homeless)} of "
            f"a {kind} model. " + ("Merge the low-rank updates first." if "lora" in homeless[0]
                                   else "Keep this one in tfllm's own format.")
        )  # fmt: skip

    tensors = weights.to_tensors(rows, variables)
    shared = origin.tied if origin.config else _untied(table, checkpoint)
    tensors |= {name: tensors[first] for name in shared if (first := table.tied[name]) in tensors}
    tensors = {name: t for name, t in tensors.items() if name not in origin.absent or t.any()}
    tensors, dtype = _in_source_dtype(tensors, origin)
    in_file = {
        origin.names.get(name)
        or tensor_names.hf_name(name, table.prefix, origin.prefixed, origin.old_norm_names): tensor
        for name, tensor in tensors.items()
    }
    write_tensors(directory / TENSORS, {**in_file, **checkpoint.unused_tensors})
    config = _config(checkpoint, origin, shape, dtype)
    write_json(directory / "config.json", config)
    if generation := checkpoint.generation_config or checkpoint.task.hf_generation_config(config):
        write_json(directory / GENERATION, generation)
    checkpoint.tokenizer.save(directory)
    if isinstance(checkpoint.task, Embedding):
        width = checkpoint.config.hidden_dim
        sentence_transformers.write(checkpoint.task, width, directory)


def _untied(table: WeightMap, checkpoint: Checkpoint) -> list[str]:
    """Tensors to write out because transformers ties none of them where the logits stand alone."""
    if getattr(checkpoint.config, "tie_embeddings", True) or table.always_tied:
        return []
    return [name for name in table.tied if name not in tied_weights.logits_names(table)]


def _in_source_dtype(
    tensors: dict[str, np.ndarray], origin: Origin
) -> tuple[dict[str, np.ndarray], str]:
    """The tensors in the dtype they came in, where that loses nothing; else all in float32."""
    import ml_dtypes

    kinds = {"bfloat16": np.dtype(ml_dtypes.bfloat16)}
    cast = {}
    for name, tensor in tensors.items():
        dtype = origin.dtypes.get(name, origin.dtype)
        cast[name] = tensor.astype(kinds.get(dtype) or np.dtype(dtype))
        if not np.array_equal(cast[name].astype(np.float32), tensor, equal_nan=True):
            log.warning("Written in float32: %s cannot hold what %s has become.", dtype, name)
            return tensors, "float32"
    return cast, origin.dtype


def _config(
    checkpoint: Checkpoint, origin: Origin, shape: dict[str, Any], dtype: str
) -> dict[str, Any]:
    """`config.json`: the source's, with what has changed since."""
    config = dict(origin.config)
    if not config or not _of_shape(config, checkpoint):
        config |= shape
    table = get_weight_map(checkpoint.family, checkpoint.config)
    if not config.get("architectures") or not origin.config:
        # Decoders have no head for vectors: their last name is that of the backbone.
        named = (
            table.architectures.get(origin.kind) or next(iter(table.architectures.values()))[-1:]
        )
        config["architectures"] = [named[0]]
    if dtype != origin.dtype or not origin.config:
        config["dtype" if "dtype" in config else "torch_dtype"] = dtype
    head = checkpoint.task.hf_config(origin.config, checkpoint.tokenizer)
    return {**config, **head}


def _of_shape(config: dict[str, Any], checkpoint: Checkpoint) -> bool:
    """Whether a `config.json` says the checkpoint's shape. A decoder's `tie_word_embeddings` is set
    to what the tensors have; in other families transformers ties more by it than the logits."""
    ours = checkpoint.config
    theirs = config_from_hf(checkpoint.family, config)
    if getattr(theirs, "tie_embeddings", None) != getattr(ours, "tie_embeddings", None):
        theirs = dataclasses.replace(theirs, tie_embeddings=ours.tie_embeddings)
        if is_decoder(checkpoint.family):
            config["tie_word_embeddings"] = ours.tie_embeddings
    return theirs == ours
