"""The files of sentence-transformers, which describe an embedding model: reading and writing.

    modules.json                         Transformer, Pooling and, where vectors have length 1,
                                         Normalize, in this order
    1_Pooling/config.json                how the vectors of the tokens are pooled
    sentence_bert_config.json            the longest text in tokens, and whether it is lowercased
    config_sentence_transformers.json    prompts before texts, and how vectors are compared

What is not supported is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfllm.checkpoints.files import read_json, write_json
from tfllm.errors import CheckpointError
from tfllm.tasks.embedding import SIMILARITIES, Embedding
from tfllm.tokenizers.base import Tokenizer
from tfllm.tokenizers.wordpiece import WordPiece

MODULES = "modules.json"
SETTINGS = "sentence_bert_config.json"
PROMPTS = "config_sentence_transformers.json"
KINDS = ("Transformer", "Pooling", "Normalize")
# Our pooling -> their mode, and its key in the older form of Pooling's config.json.
POOLINGS = {
    "first": ("cls", "pooling_mode_cls_token"),
    "mean": ("mean", "pooling_mode_mean_tokens"),
    "max": ("max", "pooling_mode_max_tokens"),
    "last": ("lasttoken", "pooling_mode_lasttoken"),
    "weighted_mean": ("weightedmean", "pooling_mode_weightedmean_tokens"),
    "root_mean": ("mean_sqrt_len_tokens", "pooling_mode_mean_sqrt_len_tokens"),
}


def read_task(directory: Path, longest: int) -> Embedding:
    """Read pooling, normalization, length and prompts; the defaults where there are no files.

    Args:
        directory: A Hugging Face directory.
        longest: The longest input of the model and its tokenizer, in tokens.

    Raises:
        CheckpointError: The files are damaged, or ask for what is not supported.
    """
    path = directory / MODULES
    if not path.is_file():
        return Embedding(max_length=longest)
    modules = _modules(path)
    pooling = next((folder for kind, folder in modules if kind == "Pooling"), None)
    if pooling is None:
        raise CheckpointError(
            f"{path}: there is no module Pooling, which makes one vector of a text's. Add it."
        )
    named = _settings(directory / pooling / "config.json")
    prompts, name, similarity = _prompts(directory / PROMPTS)
    if name is not None and prompts[name] and named.get("include_prompt") is False:
        raise CheckpointError(
            f"{directory / pooling / 'config.json'}: include_prompt is false, which leaves the "
            f"prompt's tokens out of the pooling; tfllm pools over all. Remove the prompt "
            f"(default_prompt_name in {PROMPTS}), or use a model that includes it."
        )
    return Embedding(
        pooling=_pooling(directory / pooling / "config.json", named),
        normalize=any(kind == "Normalize" for kind, _ in modules),
        max_length=_length(directory / SETTINGS, longest),
        prompts=prompts,
        prompt_name=name,
        similarity=similarity,
    )


def apply_lowercase(tokenizer: Tokenizer, directory: Path) -> Tokenizer:
    """Return the tokenizer, with lowercasing where the files have `do_lower_case`.

    Args:
        tokenizer: The tokenizer of the directory.
        directory: A Hugging Face directory.

    Raises:
        CheckpointError: The tokenizer cannot lowercase.
    """
    path = directory / SETTINGS
    if not (directory / MODULES).is_file() or not _settings(path).get("do_lower_case"):
        return tokenizer
    if tokenizer.lowercase:
        return tokenizer
    if not isinstance(tokenizer, WordPiece):
        raise CheckpointError(
            f"{path}: do_lower_case is true, and the tokenizer keeps capital letters; tfllm lowers "
            "texts for WordPiece vocabularies only. Set it to false and give lowered texts."
        )
    normalization = tokenizer.normalization
    return WordPiece.from_vocabulary(
        tokenizer.vocabulary,
        lowercase=True,
        strip_accents=bool(normalization.strip_accents),
        chinese_characters=normalization.chinese_characters,
        clean_text=normalization.clean_text,
        special_tokens=tokenizer.special_tokens,
        added=tokenizer.added,
        max_word_characters=tokenizer.max_word_characters,
        model_size=tokenizer.model_size,
        roberta_rows=tokenizer.roberta_rows,
    )


def _settings(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _modules(path: Path) -> list[tuple[str, str]]:
    """(kind, folder) of every module. Raises CheckpointError for one that tfllm cannot run."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        modules = [(str(e["type"]).rsplit(".", 1)[-1], str(e.get("path", ""))) for e in entries]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{path}: not a list of modules. Copy the file again.") from None
    for kind, folder in modules:
        if kind not in KINDS:
            raise CheckpointError(
                f"{path}: the module '{kind}' in '{folder}' is not known. "
                f"Known: {', '.join(KINDS)}. Use a model without it."
            )
        if kind == "Transformer" and folder not in ("", "."):
            raise CheckpointError(
                f"{path}: the module Transformer lies in '{folder}'. Copy the files of '{folder}' "
                f"beside {path.name}, and set its path to the empty text."
            )
    kinds = [kind for kind, _ in modules]
    if kinds != [kind for kind in KINDS if kind in kinds]:
        raise CheckpointError(
            f"{path}: the modules are {', '.join(kinds)}; tfllm runs {', '.join(KINDS)}, each once "
            "and in this order. Use a model that does."
        )
    return modules


def _pooling(path: Path, settings: Mapping[str, Any]) -> Any:
    """Our pooling. Raises CheckpointError for none, several or an unknown one."""
    ours = {mode: pooling for pooling, (mode, _) in POOLINGS.items()}
    keys = {key: mode for mode, key in POOLINGS.values()}
    named = settings.get("pooling_mode")
    if named is not None:
        modes = {str(mode) for mode in (named if isinstance(named, list) else [named])}
    else:
        modes = {
            keys.get(key, key)
            for key, value in settings.items()
            if key.startswith("pooling_mode_") and value
        }
    if len(modes) != 1 or not modes <= set(ours):
        raise CheckpointError(
            f"{path}: pools by {', '.join(sorted(modes)) or 'nothing'}; tfllm pools by exactly one "
            f"of {', '.join(ours)}. Use a model that does."
        )
    return ours[modes.pop()]


def _length(path: Path, longest: int) -> int:
    named = _settings(path).get("max_seq_length")
    if named is None:
        return longest
    if not isinstance(named, int) or isinstance(named, bool) or named < 3:
        raise CheckpointError(
            f"{path}: max_seq_length is {named!r}; it must be a whole number of 3 or more. "
            "Correct it."
        )
    return min(named, longest)


def _prompts(path: Path) -> tuple[dict[str, str], str | None, Any]:
    """(prompts by name, the name of the one before every text, how vectors are compared)."""
    settings = _settings(path)
    prompts, name = settings.get("prompts") or {}, settings.get("default_prompt_name")
    if not isinstance(prompts, Mapping) or not all(isinstance(p, str) for p in prompts.values()):
        raise CheckpointError(f"{path}: 'prompts' is not a table of names and texts. Correct it.")
    if name is not None and name not in prompts:
        raise CheckpointError(
            f"{path}: default_prompt_name is {name!r}, and 'prompts' has no such name. Correct it."
        )
    similarity = settings.get("similarity_fn_name") or "cosine"
    if similarity not in SIMILARITIES:
        raise CheckpointError(
            f"{path}: similarity_fn_name is {similarity!r}; tfllm compares by "
            f"{', '.join(SIMILARITIES)}. Correct it."
        )
    return dict(prompts), name, similarity


def write(task: Embedding, width: int, directory: Path) -> None:
    """Write the files with which sentence-transformers gives the same vectors.

    Args:
        task: The task of the embedding model.
        width: The size of its vectors.
        directory: A Hugging Face directory.
    """
    if task.pooling not in POOLINGS:
        return  # there is no module for the family's own pooler
    kinds = KINDS if task.normalize else KINDS[:2]
    folders = ["", "1_Pooling", "2_Normalize"][: len(kinds)]
    modules = [
        {"idx": i, "name": str(i), "path": folder, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, folder) in enumerate(zip(kinds, folders, strict=True))
    ]
    write_json(directory / MODULES, modules)
    write_json(directory / SETTINGS, {"max_seq_length": task.max_length, "do_lower_case": False})
    for folder in folders[1:]:
        (directory / folder).mkdir()
    pooled = {key: task.pooling == ours for ours, (_, key) in POOLINGS.items()}
    write_json(
        directory / "1_Pooling" / "config.json",
        {"word_embedding_dimension": width, **pooled, "include_prompt": True},
    )
    write_json(
        directory / PROMPTS,
        {
            "prompts": task.prompts,
            "default_prompt_name": task.prompt_name,
            "similarity_fn_name": task.similarity,
        },
    )
