"""Tasks as Hugging Face's `config.json` and sentence-transformers' files put them, both ways."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfllm.checkpoints.files import read_json, write_json
from tfllm.errors import CheckpointError, did_you_mean
from tfllm.models.rows import Weights
from tfllm.tasks import TASKS, Task
from tfllm.tasks.classification import Classification
from tfllm.tasks.embedding import Embedding
from tfllm.tasks.question_answering import QuestionAnswering
from tfllm.tasks.token_classification import TokenClassification

# Ours: Hugging Face's `problem_type`.
PROBLEMS = {
    "single_label": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}
# Ours: sentence-transformers' key in 1_Pooling/config.json. Both forms of the file are read.
POOLINGS = {"first": "cls", "mean": "mean", "max": "max"}
POOLING_KEYS = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
}
CAUSAL_WINDOW = 1024  # tokens: what perplexities are mostly published for
SOURCE_WINDOW = 512  # tokens: what T5 and Marian were made for; BART takes 1024
SENTENCE_MODULES = ("Transformer", "Pooling", "Normalize")


def kind_of(hf_config: Mapping[str, Any], weights: Weights, source: str) -> str:
    """The kind of task that a `config.json` is for. Raises CheckpointError naming the known."""
    kinds = {name: kind for kind, names in weights.architectures.items() for name in names}
    named = hf_config.get("architectures") or []
    for name in named:
        if name in kinds:
            return kinds[name]
    if named:
        raise CheckpointError(
            f"{source}: '{named[0]}' has no task in tfllm. {did_you_mean(named[0], kinds)} "
            "To use its encoder under a new head, train a recipe with model.from."
        )
    raise CheckpointError(
        f"{source}: the key 'architectures' is missing, which names the head. "
        f'Add it, for example: "architectures": ["{next(iter(kinds))}"]. '
        f"Known: {', '.join(kinds)}."
    )


def task_of(
    kind: str, hf_config: Mapping[str, Any], directory: Path, size: int | None, positions: int
) -> Task:
    """The task that a Hugging Face directory is for.

    `size`: rows of the classifier's weight in the file; `positions`: the longest input in tokens.
    """
    source = f"{directory / 'config.json'}"
    if kind == "embedding":
        return _embedding(directory, positions)
    if kind == "question_answering":
        length = min(QuestionAnswering().max_length, positions)
        return QuestionAnswering(
            max_length=length, stride=min(QuestionAnswering().stride, length // 3)
        )
    if kind == "causal_lm":
        return TASKS[kind](kind=kind, max_length=min(CAUSAL_WINDOW, positions))
    if kind == "seq2seq":
        return TASKS[kind](kind=kind, max_length=min(SOURCE_WINDOW, positions))
    length = min(Classification().max_length, positions)
    if kind not in ("classification", "token_classification"):
        return TASKS[kind](kind=kind, max_length=length)
    labels = labels_of(hf_config, size, source)
    if kind == "token_classification":
        return TokenClassification(labels=labels, max_length=length)
    return Classification(
        labels=labels, problem=_problem_of(hf_config, labels, source), max_length=length
    )


def labels_of(hf_config: Mapping[str, Any], size: int | None, source: str) -> tuple[str, ...]:
    """Label names in the order of the outputs; LABEL_0, LABEL_1 where they have no names."""
    named = hf_config.get("id2label")
    if not named:
        count = size or hf_config.get("num_labels") or 2
        return tuple(f"LABEL_{number}" for number in range(count))
    try:
        names = {int(number): str(name) for number, name in named.items()}
    except (AttributeError, ValueError):
        raise CheckpointError(
            f"{source}: 'id2label' is not a table of numbers and names. Correct it."
        ) from None
    labels = tuple(names[number] for number in sorted(names))
    if sorted(names) != list(range(len(names))) or len(set(labels)) != len(labels):
        raise CheckpointError(
            f"{source}: 'id2label' must number its {len(names)} labels from 0 without a gap and "
            "name none twice. Correct it."
        )
    if size is not None and size != len(labels):
        raise CheckpointError(
            f"{source}: 'id2label' has {len(labels)} labels and the classifier {size} outputs. "
            "The configuration and the weights do not belong together; copy both again."
        )
    return labels


def _problem_of(hf_config: Mapping[str, Any], labels: tuple[str, ...], source: str) -> Any:
    named = hf_config.get("problem_type")
    if named is None:  # transformers' own rule
        return "regression" if len(labels) == 1 else "single_label"
    ours = {theirs: problem for problem, theirs in PROBLEMS.items()}
    if named not in ours:
        raise CheckpointError(
            f"{source}: unknown problem_type '{named}'. {did_you_mean(named, ours)}"
        )
    return ours[named]


def head_config(task: Task, before: Mapping[str, Any], tokenizer: Any) -> dict[str, Any]:
    """What a head adds to `config.json`. `before`: the file that the checkpoint came from."""
    if task.kind == "causal_lm" and not before:
        # Without them transformers takes its own numbers, which stand for other tokens here.
        return {"bos_token_id": tokenizer.start_id, "eos_token_id": tokenizer.end_id}
    if task.kind == "seq2seq" and not before:
        named = {"bos_token_id": tokenizer.start_id, "eos_token_id": tokenizer.end_id}
        return {**named, "forced_eos_token_id": tokenizer.end_id}
    if not isinstance(task, Classification | TokenClassification):
        return {}
    labels = task.labels
    if isinstance(task, Classification) and not labels:  # a number without a name
        labels = ("LABEL_0",)
    added: dict[str, Any] = {
        "id2label": {str(number): label for number, label in enumerate(labels)},
        "label2id": {label: number for number, label in enumerate(labels)},
    }
    if before.get("num_labels") is not None:
        added["num_labels"] = len(labels)
    if isinstance(task, Classification):
        implied = "regression" if len(labels) == 1 else "single_label"
        if before.get("problem_type") is not None or task.problem != implied:
            added["problem_type"] = PROBLEMS[task.problem]
    return added


def generation_of(task: Task, config: Mapping[str, Any]) -> dict[str, Any]:
    """`generation_config.json` for a model that has none, from its `config.json`."""
    if task.kind != "seq2seq":
        return {}
    keys = ("bos", "eos", "pad", "decoder_start", "forced_bos", "forced_eos")
    found = {f"{key}_token_id": config.get(f"{key}_token_id") for key in keys}
    found = {key: value for key, value in found.items() if value is not None}
    pad = config.get("pad_token_id")
    return {**found, **({"bad_words_ids": [[pad]]} if pad is not None else {})}


def _embedding(directory: Path, positions: int) -> Embedding:
    """Pooling, normalisation and length from sentence-transformers' files, where there are any."""
    length = min(Embedding().max_length, positions)
    path = directory / "modules.json"
    if not path.is_file():
        return Embedding(max_length=length)
    modules = _modules(path)
    pooling = next((module for kind, module in modules if kind == "Pooling"), None)
    settings = directory / "sentence_bert_config.json"
    if settings.is_file():
        length = min(read_json(settings).get("max_seq_length") or length, positions)
    return Embedding(
        pooling=_pooling(directory / pooling / "config.json") if pooling else "mean",
        normalize=any(kind == "Normalize" for kind, _ in modules),
        max_length=length,
    )


def _modules(path: Path) -> list[tuple[str, str]]:
    """(kind, folder) of every module. Raises CheckpointError for one that tfllm cannot run."""
    import json

    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        modules = [(str(e["type"]).rsplit(".", 1)[-1], str(e.get("path", ""))) for e in entries]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{path}: not a list of modules. Copy the file again.") from None
    for kind, folder in modules:
        if kind not in SENTENCE_MODULES:
            raise CheckpointError(
                f"{path}: the module '{kind}' in '{folder}' is not known. "
                f"Known: {', '.join(SENTENCE_MODULES)}. Use a model without it."
            )
    return modules


def _pooling(path: Path) -> Any:
    settings = read_json(path)
    modes = {theirs for theirs, key in POOLING_KEYS.items() if settings.get(key)}
    modes |= {key for key, value in settings.items() if key.startswith("pooling_mode_") and value}
    modes -= {key for theirs, key in POOLING_KEYS.items() if theirs in modes}
    if isinstance(settings.get("pooling_mode"), str):
        modes = {settings["pooling_mode"]}
    ours = {theirs: pooling for pooling, theirs in POOLINGS.items()}
    if len(modes) != 1 or not modes <= set(ours):
        raise CheckpointError(
            f"{path}: pools by {', '.join(sorted(modes)) or 'nothing'}; tfllm pools by exactly one "
            f"of {', '.join(ours)}. Use a model that does."
        )
    return ours[modes.pop()]


def write_sentence_files(task: Embedding, width: int, directory: Path) -> None:
    """sentence-transformers' modules, so that it loads the directory as we do."""
    if task.pooling not in POOLINGS:
        return  # it has no module for the family's own pooler
    kinds = ["Transformer", "Pooling", "Normalize"][: 3 if task.normalize else 2]
    folders = ["", "1_Pooling", "2_Normalize"]
    modules = [
        {
            "idx": i,
            "name": str(i),
            "path": folders[i],
            "type": f"sentence_transformers.models.{kind}",
        }
        for i, kind in enumerate(kinds)
    ]
    write_json(directory / "modules.json", modules)
    write_json(
        directory / "sentence_bert_config.json",
        {"max_seq_length": task.max_length, "do_lower_case": False},
    )
    for folder in folders[1 : len(kinds)]:
        (directory / folder).mkdir()
    pooled = {key: POOLINGS[task.pooling] == theirs for theirs, key in POOLING_KEYS.items()}
    write_json(
        directory / "1_Pooling" / "config.json",
        {"word_embedding_dimension": width, **pooled, "pooling_mode_mean_sqrt_len_tokens": False},
    )
