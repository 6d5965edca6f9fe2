"""Entities found in a text against those in the data (seqeval, as conlleval counts them)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfllm.errors import DataError


def token_classification(
    answers: Sequence[dict[str, Any]], examples: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Precision, recall and F1 of whole entities, per kind too; accuracy of the words' tags.

    `answers`: {"entities": [{"label", "start", "end"}]}, characters of the words joined by one
    space, or {"tags": [...]} with one tag per word. `examples`: {"words": [...], "tags": [...]}.
    An entity counts when its kind and both its ends are right.
    """
    from seqeval import metrics as seqeval

    gold = [_gold_tags(example) for example in examples]
    predicted = [
        list(answer["tags"]) if "tags" in answer else tags(example["words"], answer["entities"])
        for answer, example in zip(answers, examples, strict=True)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tags without a prefix, kinds that never occur
        report = seqeval.classification_report(gold, predicted, output_dict=True, zero_division=0)
        accuracy = float(seqeval.accuracy_score(gold, predicted))
    overall = report["micro avg"]
    return {
        "precision": float(overall["precision"]),
        "recall": float(overall["recall"]),
        "f1": float(overall["f1-score"]),
        "f1_macro": float(report["macro avg"]["f1-score"]),
        "token_accuracy": accuracy,
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
    """BIO tags of words from entities in characters of the words joined by one space."""
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
        for place, index in enumerate(touched):
            result[index] = f"{'I' if place else 'B'}-{entity['label']}"
    return result


def _gold_tags(example: dict[str, Any]) -> list[str]:
    words, gold = example.get("words"), example.get("tags")
    where = f"{example['_where']}: " if "_where" in example else ""
    if not isinstance(words, list | tuple) or not isinstance(gold, list | tuple):
        raise DataError(f"{where}needs the fields 'words' and 'tags', both lists. Add them.")
    if len(words) != len(gold):
        raise DataError(f"{where}{len(words)} words but {len(gold)} tags. Give every word one tag.")
    return [str(tag) for tag in gold]
