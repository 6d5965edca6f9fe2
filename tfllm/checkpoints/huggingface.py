"""Hugging Face directories: reading and writing of every head, byte for byte."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tfllm import keras_internals
from tfllm.checkpoints import hf_tasks, sentence_transformers, tensor_names, tied_weights, weights
from tfllm.checkpoints.base import Checkpoint, FamilyConfig, Origin, check_sizes, new_model
from tfllm.checkpoints.files import (
    READABLE_DTYPES,
    atomic_directory,
    open_tensors,
    write_json,
    write_tensors,
)
from tfllm.checkpoints.hf_directory import (
    CONFIG,
    GENERATION,
    TENSORS,
    find_family,
    read_config,
    read_generation,
    read_shapes,
    refuse_quantized,
    tensor_files,
)
from tfllm.checkpoints.lazy_tensors import LazyTensors, joined
from tfllm.errors import CheckpointError
from tfllm.models import FAMILIES, config_from_hf, get_weight_map, is_decoder
from tfllm.models.weight_map import WeightMap
from tfllm.tasks import Task
from tfllm.tasks.embedding import Embedding

if TYPE_CHECKING:
    import keras

log = logging.getLogger("tfllm")


def read(directory: Path, task: Task | None = None) -> Checkpoint:
    """Read a Hugging Face directory, for its own task or with a new head for `task`.

    Raises:
        CheckpointError: The directory is damaged or not supported.
        TokenizerError: The tokenizer is not usable.
    """
    from tfllm.tokenizers.loading import load_tokenizer

    hf_config = read_config(directory)
    family, _ = find_family(hf_config, str(directory / CONFIG))
    config = config_from_hf(family, hf_config)
    table = get_weight_map(family, config)
    refuse_quantized(read_shapes(directory), str(directory))
    raw = _all_tensors(directory, table)
    ties = _resolve_ties(config, table, raw, str(directory))
    config = ties.config
    own = _own_task(hf_config, family, table, raw, directory, config, needed=task is None)
    tokenizer = sentence_transformers.apply_lowercase(load_tokenizer(directory), directory)
    check_sizes(tokenizer, config, directory)

    model, unused_tensors, origin = build(family, table, task, own, raw, ties, directory, hf_config)
    return Checkpoint(
        family=family,
        config=config,
        tokenizer=tokenizer,
        task=task or own,
        model=model,
        path=directory,
        unused_tensors=unused_tensors,
        origin=origin,
        generation_config=read_generation(directory),
    )


def _resolve_ties(
    config: FamilyConfig, table: WeightMap, raw: Mapping[str, np.ndarray], source: str
) -> tied_weights.Ties:
    canonical = tensor_names.canonical(raw, table)
    if len(set(canonical.values())) < len(canonical):
        twice = [name for name, count in Counter(canonical.values()).items() if count > 1]
        raise CheckpointError(f"{source}: {weights.listed(twice)} is there under two names.")

    def same(one: str, other: str) -> bool:
        return np.array_equal(raw[one], raw[other], equal_nan=True)

    return tied_weights.resolve(config, table, canonical, same, source)


def _all_tensors(directory: Path, table: WeightMap) -> LazyTensors:
    raw = joined([open_tensors(file) for file in tensor_files(directory)])
    for name, dtype in raw.dtypes.items():
        if dtype not in READABLE_DTYPES.values():
            raw.read(name)  # its error names the file
    names = tensor_names.drop_ignored(raw, table)
    return raw.renamed({name: name for name in names})


def _own_task(
    hf_config: Mapping[str, Any],
    family: str,
    table: WeightMap,
    raw: LazyTensors,
    directory: Path,
    config: FamilyConfig,
    needed: bool,
) -> Any:
    """The task of the directory itself; None for a head without a task, unless `needed`."""
    try:
        kind = hf_tasks.find_kind(hf_config, family, table, directory)
        row = table.heads.get(kind, {}).get("classifier/kernel")
        shape = raw.shapes.get(row.name) if row is not None and not isinstance(row, str) else None
        size = None if shape is None else shape[0]
        return hf_tasks.build_task(kind, hf_config, directory, size, config.max_sequence_length)
    except CheckpointError:
        if needed:
            raise
        return None


def build(
    family: str,
    table: WeightMap,
    task: Task | None,
    own: Task | None,
    raw: LazyTensors,
    ties: tied_weights.Ties,
    directory: Path,
    hf_config: Mapping[str, Any],
) -> tuple[keras.Model, dict[str, np.ndarray], Origin | None]:
    """Build a model whose variables are the tensors of a source.

    Variables that the source lacks are drawn as in a new model.

    Args:
        family: A key of `tfllm.models.FAMILIES`.
        table: The family's weight map.
        task: The task of the model; None: the source's own.
        own: The source's own task, if it has one.
        raw: The tensors by their names in the source.
        ties: The tied tensors among them, and the family's Config.
        directory: The source, for messages.
        hf_config: Its config.json.

    Returns:
        The model; the unused tensors; the layout of the source, None where the head has changed.

    Raises:
        CheckpointError: Tensors are missing, not used, or of a wrong shape or dtype.
    """
    source = str(directory)
    with keras_internals.deferred_values() as new:
        _, model = new_model(family, ties.config, task or own)  # type: ignore[arg-type]
    tensors = raw.renamed(ties.canonical)
    variables = weights.variables_of(model)
    kind = (task or own).kind  # type: ignore[union-attr]
    rows = weights.rows_of(variables, {**table.backbone, **table.heads.get(kind, {})})
    known = {name for name in tensors if name in tensor_names.unused_names(table)}
    if changed := task is not None and not same_head(task, own):
        known |= {name for name in tensors if own is None and not name.startswith(table.prefix)}
        backbone = weights.rows_of(variables, table.backbone)
        reusable = reusable_head(set(rows) - set(backbone), task, own)
        head = {path for path in reusable if rows[path].name in tensors}
        rows = {path: row for path, row in rows.items() if path in backbone or path in head}
    elif len(rows) < len(variables):
        new = [path for path in variables if path not in rows]
        raise CheckpointError(f"{source}: a {kind} model has {weights.listed(new)}, which "
                              f"files of {hf_config['model_type']} have not.")  # fmt: skip

    if tied_weights.LOGITS in rows and rows[tied_weights.LOGITS].name not in tensors:
        name = rows[tied_weights.LOGITS].name
        raise CheckpointError(_missing_logits(name, table, kind, source))
    absent = {row.name for row in rows.values()} & set(table.optional) - set(tensors)
    rows = {path: row for path, row in rows.items() if row.name not in absent}
    weights.check(rows, variables, tensors.shapes, known, source)
    used = {row.name for row in rows.values()}
    _check_dtypes({name: tensors.dtypes[name] for name in used}, source)
    weights.to_variables(rows, variables, tensors)
    keras_internals.initialize(new)
    if changed:
        log_head_changes(source, [path for path in variables if path not in rows],
                    [name for name in known - used if name not in table.buffers])  # fmt: skip
        return model, {name: tensors[name] for name in known if name in table.buffers}, None
    tied = [name for name in ties.equal if table.tied[name] in used]
    unused_tensors = {raw_name: raw[raw_name] for raw_name, name in ties.canonical.items()
               if name not in used and name not in tied}  # fmt: skip
    origin = _origin(kind, table, raw, ties.canonical, used, tied, hf_config)
    return model, unused_tensors, dataclasses.replace(origin, absent=tuple(absent))


def same_head(task: Task, own: Task | None) -> bool:
    """Return whether a source's own head is the one that `task` needs, in variables and meaning."""
    return own is not None and task.head_key == own.head_key


def reusable_head(paths: set[str], task: Task, own: Task | None) -> set[str]:
    """Return the variables of a new task's head that may be taken from another head.

    These are all except a classifier, whose outputs would mean other labels.

    Args:
        paths: The variables of the new head.
        task: The new task.
        own: The source's own task, if it has one.
    """
    same_labels = own is not None and (own.kind, getattr(own, "labels", None)) == (
        task.kind, getattr(task, "labels", None))  # fmt: skip
    return {path for path in paths if same_labels or not path.startswith("classifier/")}


def fill_from_unused(
    variables: Mapping[str, keras.Variable],
    unused_tensors: Mapping[str, np.ndarray],
    family: str,
    config: FamilyConfig,
    kind: str,
) -> set[str]:
    """Assign unused tensors (of a pooler) to a new head.

    Args:
        variables: The variables of the head by path.
        unused_tensors: The unused tensors of a checkpoint.
        family: A key of `tfllm.models.FAMILIES`.
        config: The family's Config.
        kind: The kind of the new task.

    Returns:
        The paths of the variables that were assigned.
    """
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


def log_head_changes(source: str, new: Iterable[str], dropped: Iterable[str]) -> None:
    """Log which variables of a head are new, and which tensors are dropped.

    Args:
        source: The checkpoint.
        new: Paths of variables.
        dropped: Names of tensors.
    """
    parts = []
    if new:
        parts.append(f"new, to be trained: {weights.listed(sorted(new))}")
    if dropped:
        parts.append(f"left behind: {weights.listed(sorted(dropped))}")
    if parts:
        log.warning("%s: %s", source, "; ".join(parts))


def _check_dtypes(dtypes: Mapping[str, str], source: str) -> None:
    for name, dtype in dtypes.items():
        if dtype not in ("float32", "float16", "bfloat16", "float64"):
            raise CheckpointError(
                f"{source}: {name} is {dtype}; only floating-point weights are read. "
                "Use the checkpoint before quantization."
            )
    if "float64" in dtypes.values():
        log.warning("%s: float64 weights are rounded to float32.", source)


def _missing_logits(name: str, table: WeightMap, kind: str, source: str) -> str:
    """What is wrong with a file that has only a backbone, and what to do."""
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
    raw: LazyTensors,
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
    dtypes = {name: raw.dtypes[raw_name] for name, raw_name in in_file.items()}
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
    """Write a checkpoint as a Hugging Face directory, all or nothing.

    A checkpoint that was read from such a directory is written with the same names of tensors, and
    in the same dtypes where those hold the values.

    Args:
        checkpoint: The checkpoint.
        directory: New or empty.

    Raises:
        CheckpointError: Hugging Face's format has no place for a part of it.
        StorageError: The directory exists, or cannot be written.
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
    if unmapped := [path for path in variables if path not in rows]:
        raise CheckpointError(
            f"Hugging Face's {shape['model_type']} has no place for {weights.listed(unmapped)} of "
            f"a {kind} model. " + ("Merge the low-rank updates first." if "lora" in unmapped[0]
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
        width = checkpoint.model.output_shape[-1]
        sentence_transformers.write(checkpoint.task, width, directory)


def _untied(table: WeightMap, checkpoint: Checkpoint) -> list[str]:
    """Tied tensors to write: transformers ties none of them where the logits are not tied."""
    if getattr(checkpoint.config, "tie_embeddings", True) or table.always_tied:
        return []
    return [name for name in table.tied if name not in tied_weights.logits_names(table)]


def _in_source_dtype(
    tensors: dict[str, np.ndarray], origin: Origin
) -> tuple[dict[str, np.ndarray], str]:
    """The tensors in the dtypes of the source, where that loses nothing; else all in float32."""
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
    """`config.json`: that of the source, with what has changed since."""
    config = dict(origin.config)
    if not config or not _has_shape(config, checkpoint):
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


def _has_shape(config: dict[str, Any], checkpoint: Checkpoint) -> bool:
    """Whether a `config.json` has the checkpoint's shape."""
    # A decoder's `tie_word_embeddings` is set to what the tensors have; in other families
    # transformers ties more by it than the logits.
    ours = checkpoint.config
    theirs = config_from_hf(checkpoint.family, config)
    if getattr(theirs, "tie_embeddings", None) != getattr(ours, "tie_embeddings", None):
        theirs = dataclasses.replace(theirs, tie_embeddings=ours.tie_embeddings)
        if is_decoder(checkpoint.family):
            config["tie_word_embeddings"] = ours.tie_embeddings
    return theirs == ours
