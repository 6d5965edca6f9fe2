"""Labels and problems of heads in Hugging Face's `config.json`, both ways."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from tfllm.errors import CheckpointError, did_you_mean

log = logging.getLogger("tfllm")

Problem = Literal["single_label", "multi_label", "regression"]

MOST_LABELS = 1_000_000
# Ours: Hugging Face's `problem_type`.
PROBLEM_TYPES: Mapping[Problem, str] = {
    "single_label": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}


@dataclass(frozen=True)
class HuggingFaceHead:
    """What a Hugging Face directory says of its head."""

    config: Mapping[str, Any]
    """`config.json`"""
    directory: str
    positions: int
    """Tokens of the longest input that the model has positions for."""
    max_length: int
    """Tokens of a row as transformers' pipelines cut it, at most `positions`."""
    outputs: int | None = None
    """Rows of the classifier's weight, where the files have one."""

    @property
    def source(self) -> str:
        """The file that error messages name."""
        return f"{self.directory}/config.json"

    def length_of_texts(self) -> int:
        """Return `max_length`, and log that longer texts will be cut."""
        log.info("%s: texts are cut at %d tokens.", self.directory, self.max_length)
        return self.max_length

    @property
    def labels(self) -> tuple[str, ...]:
        """Label names in the order of the outputs; LABEL_0, LABEL_1 where they have no names.

        Raises:
            CheckpointError: The names cannot be those of the outputs.
        """
        named = self.config.get("id2label")
        if not named:
            count = self.outputs or self.config.get("num_labels") or 2
            if not isinstance(count, int) or not 1 <= count <= MOST_LABELS:
                raise CheckpointError(
                    f"{self.source}: num_labels is {count!r}; it must be a whole number from 1 to "
                    f"{MOST_LABELS}. Correct it."
                )
            return tuple(f"LABEL_{number}" for number in range(count))
        try:
            names = {int(number): str(name) for number, name in named.items()}
        except (AttributeError, ValueError):
            raise CheckpointError(
                f"{self.source}: 'id2label' is not a table of numbers and names. Correct it."
            ) from None
        labels = tuple(names[number] for number in sorted(names))
        if sorted(names) != list(range(len(names))) or len(set(labels)) != len(labels):
            raise CheckpointError(
                f"{self.source}: 'id2label' must number its {len(names)} labels from 0 without a "
                "gap and name none twice. Correct it."
            )
        if self.outputs is not None and self.outputs != len(labels):
            raise CheckpointError(
                f"{self.source}: 'id2label' has {len(labels)} labels and the classifier "
                f"{self.outputs} outputs. The configuration and the weights do not belong "
                "together; copy both again."
            )
        return labels


def problem_of(config: Mapping[str, Any], labels: tuple[str, ...], source: str) -> Problem:
    """Return the problem that transformers' pipelines infer from a `config.json`.

    One label alone is yes or no, a sigmoid, unless `problem_type` is regression.

    Args:
        config: The `config.json`.
        labels: The labels' names.
        source: The file's name, for messages.

    Raises:
        CheckpointError: The `problem_type` is not known.
    """
    named = config.get("problem_type")
    if named is None:
        return "multi_label" if len(labels) == 1 else "single_label"
    if named not in PROBLEM_TYPES.values():
        raise CheckpointError(
            f"{source}: unknown problem_type '{named}'. "
            f"{did_you_mean(str(named), PROBLEM_TYPES.values())}"
        )
    problem = next(name for name, value in PROBLEM_TYPES.items() if value == named)
    return "multi_label" if problem == "single_label" and len(labels) == 1 else problem


def label_maps(labels: tuple[str, ...], before: Mapping[str, Any]) -> dict[str, Any]:
    """Return `id2label` and `label2id`, and `num_labels` where `config.json` had it.

    Args:
        labels: The labels' names in the order of the outputs.
        before: The `config.json` that the checkpoint came from.
    """
    maps: dict[str, Any] = {
        "id2label": {str(number): label for number, label in enumerate(labels)},
        "label2id": {label: number for number, label in enumerate(labels)},
    }
    if before.get("num_labels") is not None:
        maps["num_labels"] = len(labels)
    return maps


def problem_type(before: Mapping[str, Any], labels: tuple[str, ...], problem: str) -> dict:
    """Return `problem_type` where transformers would infer another problem without it.

    Args:
        before: The `config.json` that the checkpoint came from.
        labels: The labels' names.
        problem: The task's problem.
    """
    if problem_of(before, labels, "config.json") == problem:
        return {}
    return {"problem_type": PROBLEM_TYPES[cast(Problem, problem)]}
