"""Entities found in a text against those in the data (seqeval, as conlleval counts them)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfllm.errors import DataError
from tfllm.tasks import label_names
from tfllm.tasks.base import Answer
from tfllm.tasks.entities import bio_tags
from tfllm.tasks.features import Example


def entities(
    answers: Sequence[Answer],
    examples: Sequence[Example],
    labels: Sequence[str] = (),
) -> dict[str, Any]:
    """Return precision, recall and F1 of whole entities, per kind too; accuracy of words' tags.

    An entity counts when its kind and both its ends are right. Which entities tags name says
    `tfllm.tasks.entities.tag_spans`, as it does for predictions: a tag without a prefix, as of
    parts of speech, is an entity of one word. Where neither side has an entity, the metrics of
    entities are None.

    Args:
        answers: {"entities": [{"label", "start", "end"}]}, in characters of the words joined by
            one space, or {"tags": [...]}, one per word.
        examples: {"words": [...], "tags": [...]}.
        labels: The model's tags, for gold tags that are numbers.
    """
    from seqeval import metrics as seqeval

    gold = [_gold_tags(example, labels) for example in examples]
    predicted = [
        list(answer["tags"]) if "tags" in answer else tags(example["words"], answer["entities"])
        for answer, example in zip(answers, examples, strict=True)
    ]
    gold_entities = [bio_tags(row) for row in gold]
    predicted_entities = [bio_tags(row) for row in predicted]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # kinds that never occur
        report = seqeval.classification_report(
            gold_entities, predicted_entities, output_dict=True, zero_division=0
        )
        # Entities have no scheme of tags, so that they are compared in one scheme.
        accuracy = seqeval.accuracy_score(
            *((gold, predicted) if _all_tagged(answers) else (gold_entities, predicted_entities))
        )
    has_entities = any(
        tag != "O" for rows in (gold_entities, predicted_entities) for r in rows for tag in r
    )
    overall = report["micro avg"] if has_entities else {}
    return {
        "precision": _number(overall.get("precision")),
        "recall": _number(overall.get("recall")),
        "f1": _number(overall.get("f1-score")),
        "f1_macro": _number(report["macro avg"]["f1-score"]) if has_entities else None,
        "token_accuracy": _number(accuracy),
        "per_class": {
            label: {
                "precision": float(row["precision"]),
                "recall": float(row["recall"]),
                "f1": float(row["f1-score"]),
                "entities": int(row["support"]),
            }
            for label, row in report.items()
            if not label.endswith(" avg")
        },
    }


def tags(words: Sequence[str], entities: Sequence[dict[str, Any]]) -> list[str]:
    """Return the BIO tags of words.

    Args:
        words: The words.
        entities: {"label", "start", "end"}, in characters of the words joined by one space.
    """
    lengths = np.array([len(word) + 1 for word in words], dtype=int)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]) if len(words) else np.zeros(0, int)
    result = ["O"] * len(words)
    for entity in entities:
        touched = [
            index
            for index in range(
                int(np.searchsorted(starts, entity["start"], side="right")) - 1, len(words)
            )
            if starts[index] < entity["end"] and entity["start"] < starts[index] + lengths[index]
        ]
        for position, index in enumerate(touched):
            result[index] = f"{'I' if position else 'B'}-{entity['label']}"
    return result


def _all_tagged(answers: Sequence[Answer]) -> bool:
    return all("tags" in answer for answer in answers)


def _number(value: float | None) -> float | None:
    """None for what the data leaves undefined."""
    return None if value is None or math.isnan(value) else float(value)


def _gold_tags(example: Example, labels: Sequence[str]) -> list[str]:
    words, gold = example.get("words"), example.get("tags")
    where = f"{example['_where']}: " if "_where" in example else ""
    if not isinstance(words, list | tuple) or not isinstance(gold, list | tuple):
        raise DataError(f"{where}needs the fields 'words' and 'tags', both lists. Add them.")
    if len(words) != len(gold):
        raise DataError(f"{where}{len(words)} words but {len(gold)} tags. Give every word one tag.")
    return [label_names.label_name(tag, labels) for tag in gold]
