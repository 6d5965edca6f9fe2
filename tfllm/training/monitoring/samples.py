"""What the model answers to a few validation examples, as a table for TensorBoard.

The texts of the data stand in it, so it is made only where `train.samples` allows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfllm.tasks.features import IGNORED
from tfllm.tasks.losses import at_positions
from tfllm.training.measuring import Validation, by_row, input_names

LONGEST = 300  # characters of a field
TOKENS = 8  # predicted tokens of a row of a language model
COLUMNS = ("example", "expected", "answer")

Row = tuple[str, str, str]


def samples(validation: Validation, model: Any, count: int) -> list[Row]:
    """(example, expected, answer) of the first `count` validation examples."""
    if validation.task.vocabulary_outputs:
        return _tokens(validation, model, count)
    task, examples = validation.task, validation.examples[:count]
    features = task.for_epoch(task.features(examples, validation.tokenizer))
    inputs, _ = features.batch(range(len(features)))
    outputs = _predicted(validation, model, inputs)
    answers = task.answers(list(by_row(outputs, features)), features)
    return [
        (_fields(example), _expected(example), _short(json.dumps(answer, ensure_ascii=False)))
        for example, answer in zip(examples, answers, strict=True)
    ]


def _tokens(validation: Validation, model: Any, count: int) -> list[Row]:
    """Of a language model: tokens that should be predicted, beside those that are.

    What it has read is the text, or the source where there is one.
    """
    features, tokenizer = validation.features, validation.tokenizer
    target_tokenizer = tokenizer.target
    rows = np.arange(min(count, len(features)))
    inputs, targets = features.batch(rows)
    outputs = _predicted(validation, model, inputs)
    if isinstance(targets, Mapping):
        targets = targets["tokens"]
    told, predicted = map(np.asarray, at_positions(targets, outputs))
    names = (
        ("source_ids", "source_padding_mask")
        if "source_ids" in inputs
        else ("token_ids", "padding_mask")
    )
    given, mask = (np.asarray(inputs[name]) for name in names)
    found = []
    for row, scores, target in zip(rows, predicted, told, strict=True):
        places = np.flatnonzero(target != IGNORED)[-TOKENS:]
        read = given[row][mask[row] > 0]
        expected = [target_tokenizer.decode([int(target[place])]) for place in places]
        answered = [target_tokenizer.decode([int(scores[place].argmax())]) for place in places]
        text = tokenizer.decode([int(token) for token in read], skip_special_tokens=False)
        found.append((_short(text), _listed(expected), _listed(answered)))
    return found


def _predicted(validation: Validation, model: Any, inputs: Mapping[str, Any]) -> Any:
    return validation.predict(model)({name: inputs[name] for name in input_names(model)})


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a table."""
    lines = [COLUMNS, tuple("---" for _ in COLUMNS), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _fields(example: Mapping[str, Any]) -> str:
    """The texts of an example, without labels and where it stands."""
    left_out = ("_where", "label", "labels", "answers", "tags", "id")
    texts = [str(value) for name, value in example.items() if name not in left_out]
    return _short(" / ".join(texts))


def _expected(example: Mapping[str, Any]) -> str:
    for name in ("label", "labels", "answers", "tags"):
        if name in example:
            return _short(str(example[name]))
    return ""


def _listed(tokens: Sequence[str]) -> str:
    return " · ".join(token.strip() or repr(token) for token in tokens)


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")
