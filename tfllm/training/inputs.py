"""What a run is made of beside its recipe, by digest: a resumed run and every worker must have it.

A recipe names files; what stands in them may change under the same name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfllm.data.corpora.corpus import Corpus, file_digest, files_of
from tfllm.errors import DataError
from tfllm.tasks import Features
from tfllm.training.measuring import Validation
from tfllm.training.origin import Start

# What each digest is of, in the order in which a difference is told: the first explains the others.
NAMES = {
    "checkpoint": "checkpoint of model.from is",
    "tokenizer": "tokenizer is",
    "data": "training data is",
    "targets": "training data's labels are",
    "validation": "validation data is",
}

# A checkpoint directory may also hold notes and pictures, which change nothing.
CHECKPOINT_FILES = (".json", ".safetensors", ".model", ".txt", ".bin", ".spm", ".bpe", ".jinja")

DIGITS = 16


def digests(features: Features, validation: Validation | None, start: Start) -> dict[str, str]:
    """The digests by the keys of NAMES; "" for what the run does not have."""
    return {
        "checkpoint": _of_checkpoint(start.checkpoint.path),
        "tokenizer": _of_vocabularies(start.tokenizer),
        "data": features.digest or _of_tokens(features),
        "targets": "" if features.digest else _of_targets(features),
        "validation": "" if validation is None else _of_validation(validation),
    }


def check_resumed(before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Raises DataError for what is not what the run was started with.

    `before` may lack keys: a state of an older version does not have all.
    """
    for key, name in NAMES.items():
        if key in before and before[key] != now[key]:
            raise DataError(
                f"The {name} not what the run was started with. Put the old files back, or start a "
                "new run with another --output."
            )


def check_worker(of_chief: Mapping[str, str], own: Mapping[str, str]) -> None:
    """Raises DataError for what another worker has and the chief has not."""
    for key, name in NAMES.items():
        if of_chief[key] != own[key]:
            raise DataError(
                f"The {name} not the same for this worker as for the first one. Give all workers "
                "the same files, or one shared directory."
            )


def check_shards(examples: Sequence[Any], since: float) -> None:
    """Reads a prepared corpus whole where a file of it was changed after the time `since`.

    Raises DataError for one that is no longer what its manifest says.
    """
    corpus: Corpus | None = getattr(examples, "corpus", None)
    if corpus is None:
        return
    stats = [(corpus.directory / name).stat() for name in files_of(corpus.manifest)]
    if any(max(stat.st_mtime, stat.st_ctime) > since for stat in stats):
        corpus.verify()


def _of_checkpoint(path: Path | None) -> str:
    if path is None:
        return ""
    files = [path] if path.is_file() else sorted(path.iterdir())
    digest = hashlib.sha256()
    for file in files:
        if file.is_file() and file.suffix in CHECKPOINT_FILES:
            digest.update(f"{file.name} {file_digest(file)}\n".encode())
    return digest.hexdigest()[:DIGITS]


def _of_vocabularies(tokenizer: Any) -> str:
    digest = hashlib.sha256()
    for side in (tokenizer, tokenizer.target):
        digest.update("\n".join(side.vocabulary).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:DIGITS]


def _of_tokens(features: Features) -> str:
    digest = hashlib.sha256(features.lengths.tobytes())
    for ids in features.token_ids:
        digest.update(ids.tobytes())
    return digest.hexdigest()[:DIGITS]


def _of_targets(features: Features) -> str:
    """Targets, and what else of a row beside its tokens takes part in the loss."""
    digest = hashlib.sha256()
    for values in (features.targets, features.segment_ids, features.document_ids):
        digest.update(b"none" if values is None else b"rows")
        for value in values if values is not None else ():
            digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()[:DIGITS]


def _of_validation(validation: Validation) -> str:
    features = validation.features
    if features.digest is not None and getattr(validation.examples, "corpus", None) is not None:
        return features.digest
    digest = hashlib.sha256(_of_tokens(features).encode())
    for example in validation.examples:
        fields = {name: value for name, value in example.items() if name != "_where"}
        digest.update(json.dumps(fields, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:DIGITS]
