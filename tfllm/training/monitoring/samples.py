"""The model's predictions for a few validation examples, as a table for TensorBoard.

It contains texts of the data, so it is written only where `train.samples` allows.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tfllm.tasks.features import IGNORED
from tfllm.tasks.losses import at_positions
from tfllm.training.monitoring.logs import RunLog
from tfllm.training.validation import Validation, by_row, input_names

LONGEST = 300  # characters of a field
TOKENS = 8  # predicted tokens of a row of a language model
COLUMNS = ("example", "expected", "answer")

Row = tuple[str, str, str]


def write_samples(
    log: RunLog, step: int, validation: Validation, model: keras.Model, count: int
) -> None:
    """Write the predictions for the first `count` validation examples to TensorBoard.

    An error here ends no run: it is logged, and named in the table's place.

    Args:
        log: The run's log.
        step: The optimizer step.
        validation: Has the examples.
        model: The model as it is now.
        count: Number of examples; 0 writes nothing.
    """
    if not count:
        return
    try:
        text = markdown(samples(validation, model, count))
    except Exception as error:  # whatever it is, a table for people is not worth a run
        logging.getLogger(__name__).warning("No sample predictions: %r", error)
        text = f"No sample predictions: {type(error).__name__}"
    log.write_text(step, "samples", text)


def samples(validation: Validation, model: keras.Model, count: int) -> list[Row]:
    """Predict the first validation examples.

    Args:
        validation: The validation data.
        model: The trained model.
        count: How many examples.

    Returns:
        (example, expected, answer) of each, as text.
    """
    if validation.task.vocabulary_outputs:
        return _token_samples(validation, model, count)
    task, examples = validation.task, validation.examples[:count]
    features = task.for_epoch(task.features(examples, validation.tokenizer))
    inputs, _ = features.batch(range(len(features)))
    outputs = _predict(validation, model, inputs)
    answers = task.answers(list(by_row(outputs, features)), features)
    return [
        (_fields(example), _expected(example), _shorten(json.dumps(answer, ensure_ascii=False)))
        for example, answer in zip(examples, answers, strict=True)
    ]


def _token_samples(validation: Validation, model: keras.Model, count: int) -> list[Row]:
    """Predict tokens with a language model, beside the expected ones.

    The example is the text, or the source where there is one.
    """
    features, tokenizer = validation.features, validation.tokenizer
    target_tokenizer = tokenizer.target
    rows = np.arange(min(count, len(features)))
    inputs, targets = features.batch(rows)
    outputs = _predict(validation, model, inputs)
    if isinstance(targets, Mapping):
        targets = targets["tokens"]
    target_ids, logits = map(np.asarray, at_positions(targets, outputs))
    names = (
        ("source_ids", "source_padding_mask")
        if "source_ids" in inputs
        else ("token_ids", "padding_mask")
    )
    input_ids, mask = (np.asarray(inputs[name]) for name in names)
    table = []
    for row, scores, target in zip(rows, logits, target_ids, strict=True):
        positions = np.flatnonzero(target != IGNORED)[-TOKENS:]
        text = tokenizer.decode(input_ids[row][mask[row] > 0].tolist(), skip_special_tokens=False)
        expected = [target_tokenizer.decode([int(target[position])]) for position in positions]
        predicted = [
            target_tokenizer.decode([int(scores[position].argmax())]) for position in positions
        ]
        table.append((_shorten(text), _join(expected), _join(predicted)))
    return table


def _predict(validation: Validation, model: keras.Model, inputs: Mapping[str, np.ndarray]) -> Any:
    return validation.predict(model)({name: inputs[name] for name in input_names(model)})


def markdown(rows: Sequence[Row]) -> str:
    """Format the rows as a table."""
    lines = [COLUMNS, tuple("---" for _ in COLUMNS), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _fields(example: Mapping[str, Any]) -> str:
    """The texts of an example, without its labels and its location."""
    omitted = ("_where", "label", "labels", "answers", "tags", "id")
    texts = [str(value) for name, value in example.items() if name not in omitted]
    return _shorten(" / ".join(texts))


def _expected(example: Mapping[str, Any]) -> str:
    for name in ("label", "labels", "answers", "tags"):
        if name in example:
            return _shorten(str(example[name]))
    return ""


def _join(tokens: Sequence[str]) -> str:
    return " · ".join(token.strip() or repr(token) for token in tokens)


def _shorten(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")
