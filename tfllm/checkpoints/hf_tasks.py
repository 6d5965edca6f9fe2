"""Tasks as Hugging Face's `config.json` puts them, both ways; see `sentences` for vectors."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfllm.checkpoints import sentence_transformers
from tfllm.checkpoints.files import read_json
from tfllm.errors import CheckpointError, did_you_mean
from tfllm.models import FAMILIES, is_encoder_decoder
from tfllm.models.weight_map import Weights
from tfllm.tasks import TASKS, Task
from tfllm.tasks.classification import Classification
from tfllm.tasks.question_answering import QuestionAnswering
from tfllm.tasks.token_classification import TokenClassification

log = logging.getLogger("tfllm")

MOST_LABELS = 1_000_000
# Ours: Hugging Face's `problem_type`.
PROBLEMS = {
    "single_label": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}
CAUSAL_WINDOW = 1024  # tokens: what perplexities are mostly published for
SOURCE_WINDOW = 512  # tokens: what T5 and Marian were made for; BART takes 1024


def kind_of(hf_config: Mapping[str, Any], family: str, weights: Weights, directory: Path) -> str:
    """The kind of task that a Hugging Face directory is for. Raises CheckpointError naming the
    known."""
    source = f"{directory / 'config.json'}"
    if (directory / sentence_transformers.MODULES).is_file():
        if is_encoder_decoder(family):
            raise CheckpointError(
                f"{directory / sentence_transformers.MODULES}: an embedding model, and in tfllm "
                f"the family {family} generates text only. Use one whose model is an encoder or a "
                "decoder."
            )
        return "embedding"
    kinds = {name: kind for kind, names in weights.architectures.items() for name in names}
    named = hf_config.get("architectures") or []
    if not isinstance(named, list):
        raise CheckpointError(f"{source}: 'architectures' is no list of names. Correct it.")
    for name in named:
        if name in kinds:
            return kinds[name]
    known = f"Known: {', '.join(kinds)}."
    if named:
        raise CheckpointError(
            f"{source}: '{named[0]}' has no task in tfllm. {known} {_way_out(family)}"
        )
    raise CheckpointError(
        f"{source}: the key 'architectures' is missing, which names the head. "
        f'Add it, for example: "architectures": ["{next(iter(kinds))}"]. {known}'
    )


def _way_out(family: str) -> str:
    """What can be done with a model whose head has no task."""
    if is_encoder_decoder(family):
        return "Use a checkpoint of one of these: the family is for seq2seq alone."
    if hasattr(FAMILIES[family], "windows"):
        return (
            "To use its decoder without this head, train a recipe with model.from and task.kind: "
            "causal_lm or embedding."
        )
    return "To use its encoder under a new head, train a recipe with model.from."


def task_of(
    kind: str, hf_config: Mapping[str, Any], directory: Path, size: int | None, positions: int
) -> Task:
    """The task that a Hugging Face directory is for.

    `size`: rows of the classifier's weight in the file; `positions`: the longest input in tokens.
    """
    source = f"{directory / 'config.json'}"
    if kind == "embedding":
        return sentence_transformers.task_of(directory, longest_row(directory, positions))
    if kind == "question_answering":
        length = min(QuestionAnswering().max_length, longest_row(directory, positions))
        return QuestionAnswering(
            max_length=length, stride=min(QuestionAnswering().stride, length // 3)
        )
    if kind == "causal_lm":
        return TASKS[kind](kind=kind, max_length=min(CAUSAL_WINDOW, positions))
    if kind == "seq2seq":
        return TASKS[kind](kind=kind, max_length=min(SOURCE_WINDOW, positions))
    length = longest_row(directory, positions)
    log.info("%s: texts are cut at %d tokens.", directory, length)
    if kind not in ("classification", "token_classification"):
        return TASKS[kind](kind=kind, max_length=length)
    labels = labels_of(hf_config, size, source)
    if kind == "token_classification":
        return TokenClassification(labels=labels, max_length=length)
    return Classification(
        labels=labels, problem=_problem_of(hf_config, labels, source), max_length=length
    )


def longest_row(directory: Path, positions: int) -> int:
    """Tokens of a row, as transformers' pipelines cut it: the tokenizer's `model_max_length`, at
    most the model's positions."""
    path = directory / "tokenizer_config.json"
    named = read_json(path).get("model_max_length") if path.is_file() else None
    if isinstance(named, int | float) and not isinstance(named, bool) and 3 <= named < positions:
        return int(named)
    return positions


def labels_of(hf_config: Mapping[str, Any], size: int | None, source: str) -> tuple[str, ...]:
    """Label names in the order of the outputs; LABEL_0, LABEL_1 where they have no names."""
    named = hf_config.get("id2label")
    if not named:
        count = size or hf_config.get("num_labels") or 2
        if not isinstance(count, int) or not 1 <= count <= MOST_LABELS:
            raise CheckpointError(
                f"{source}: num_labels is {count!r}; it must be a whole number from 1 to "
                f"{MOST_LABELS}. Correct it."
            )
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
    """The problem as transformers' pipelines judge it: one label alone is yes or no, a sigmoid,
    unless it is said to be a number."""
    named = hf_config.get("problem_type")
    if named is not None and named not in PROBLEMS.values():
        raise CheckpointError(
            f"{source}: unknown problem_type '{named}'. "
            f"{did_you_mean(str(named), PROBLEMS.values())}"
        )
    if named == PROBLEMS["regression"]:
        return "regression"
    if named == PROBLEMS["multi_label"] or len(labels) == 1:
        return "multi_label"
    return "single_label"


def head_config(task: Task, before: Mapping[str, Any], tokenizer: Any) -> dict[str, Any]:
    """What a head adds to `config.json`. `before`: the file that the checkpoint came from."""
    if task.kind == "causal_lm" and not before:
        # Without them transformers takes its own numbers, which stand for other tokens here.
        return {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    if task.kind == "seq2seq" and not before:
        named = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        return {**named, "forced_eos_token_id": tokenizer.eos_token_id}
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
        if _problem_of(before, labels, "config.json") != task.problem:
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
