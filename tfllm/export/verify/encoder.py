"""Runs an encoder's artifact in the runtime that it is for, and compares it with its checkpoint.

SavedModel: a fresh process that imports only tensorflow and tensorflow_text, compilation by XLA
forbidden, loaded as TF Serving loads it. TFLite: ai-edge-litert.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tensorflow.core.protobuf import meta_graph_pb2

from tfllm.checkpoints.base import Checkpoint
from tfllm.evaluation.harness import evaluate, headline
from tfllm.export import tflite_text_input
from tfllm.export.artifact import Check, at_least, at_most
from tfllm.export.profile import Profile
from tfllm.export.verify import divergence
from tfllm.export.verify.common import (
    BATCH_SIZE,
    Inputs,
    as_arrays,
    as_json,
    check_imports,
    max_abs_difference,
    run_savedmodel,
    warmup_as_json,
)
from tfllm.export.verify.sample_texts import passage_examples, sentence_examples
from tfllm.runtimes.checkpoint import open_checkpoint
from tfllm.runtimes.opening import open_model
from tfllm.runtimes.protocols import Example
from tfllm.runtimes.tflite import TFLiteTextPredictor
from tfllm.runtimes.token_predictor import TokenPredictor
from tfllm.tasks.features import IGNORED

# Examples of the data file whose raw outputs and predictions are compared; the metric takes all.
MAX_COMPARED = 64
SAME_COSINE = 0.95  # embeddings at least this similar are the same prediction

Answer = Mapping[str, Any]
Examples = Sequence[Example]


def check_savedmodel(
    checkpoint: Checkpoint,
    profile: Profile,
    directory: Path,
    signatures: Mapping[str, meta_graph_pb2.SignatureDef],
    examples: Examples,
) -> Iterator[Check]:
    """Run signatures with texts, with token ids, and the warm-up requests in a fresh process."""
    reference = open_reference(checkpoint, profile)
    compared = examples_to_compare(reference, examples)
    names = list(signatures["serving_default"].inputs)
    texts = {name: [_text(example, name) for example in compared] for name in names}
    inputs, counted = zip(*_token_batches(reference, compared), strict=True)
    token_names = list(signatures["tokens"].inputs)  # some families have no segment_ids
    warmup = warmup_as_json(signatures, profile)
    requests = [{"signature": "serving_default", "inputs": texts}]
    for batch in inputs:
        given = as_json({name: batch[name] for name in token_names})
        requests.append({"signature": "tokens", "inputs": given})
    result = run_savedmodel(directory, [*requests, *warmup])
    yield check_imports(result)
    outputs = [as_arrays(output) for output in result["outputs"]]
    answers = [
        reference.task.answer_from_signature(
            example, {name: value[row] for name, value in outputs[0].items()}
        )
        for row, example in enumerate(compared)
    ]
    yield from compare_predictions(reference.predict(compared), answers, profile)
    actual = [next(iter(output.values())) for output in outputs[1 : 1 + len(inputs)]]
    expected: list[Any] = [reference.call(batch) for batch in inputs]
    yield _check_raw_outputs(expected, actual, profile)
    yield from divergence.check_predictions(profile, reference.task, counted, expected, actual)
    answered = len(outputs) - 1 - len(inputs)
    yield at_least("warm-up requests answered", answered, len(warmup))
    if examples:
        yield check_metric(reference, profile, directory, examples)


def check_tflite(
    checkpoint: Checkpoint, profile: Profile, directory: Path, examples: Examples
) -> Iterator[Check]:
    """Run a .tflite file in ai-edge-litert.

    On the same token ids or, where it takes text, on texts that both tokenizers encode equally.

    Args:
        checkpoint: The model.
        profile: The profile, with the limits.
        directory: The artifact's directory.
        examples: Labeled examples of the task; empty: built-in sample texts.
    """
    reference = open_reference(checkpoint, profile)
    compared = examples_to_compare(reference, examples)
    predictor = open_model(directory)
    expected: list[Any]
    actual: list[Any]
    if profile.text_input:
        equal = _examples_with_same_token_ids(reference, compared)
        yield from compare_predictions(reference.predict(equal), predictor.predict(equal), profile)
        assert isinstance(predictor, TFLiteTextPredictor)
        batches = [_token_batches(reference, [example])[0] for example in equal]
        inputs, counted = zip(*batches, strict=True)
        expected = [reference.call(batch) for batch in inputs]
        actual = [predictor.scores(example)[None] for example in equal]
        yield from divergence.check_predictions(profile, reference.task, counted, expected, actual)
    else:
        assert isinstance(predictor, TokenPredictor)
        inputs, counted = zip(*_token_batches(reference, compared), strict=True)
        expected = [reference.call(batch) for batch in inputs]
        actual = [predictor.call(batch) for batch in inputs]
        if profile.target == "tflite":  # MediaPipe's files give probabilities
            yield _check_raw_outputs(expected, actual, profile)
        yield from divergence.check_predictions(profile, reference.task, counted, expected, actual)
        answers = predictor.predict(compared)
        yield from compare_predictions(reference.predict(compared), answers, profile)
    if examples:
        yield check_metric(reference, profile, directory, examples)


def open_reference(checkpoint: Checkpoint, profile: Profile) -> TokenPredictor:
    """Return the checkpoint's predictor, with the profile's row length."""
    reference = open_checkpoint(checkpoint)
    assert isinstance(reference, TokenPredictor)
    if profile.max_length:
        task = checkpoint.task.model_copy(update={"max_length": profile.max_length})
        reference = replace(reference, task=task)
    return reference


def examples_to_compare(reference: TokenPredictor, examples: Examples) -> list[Example]:
    """Return the first examples, or sample texts where there are none."""
    task = reference.task
    return list(examples[:MAX_COMPARED]) or [*sentence_examples(task), *passage_examples(task)]


def check_metric(
    reference: TokenPredictor, profile: Profile, directory: Path, examples: Examples
) -> Check:
    """Check the task's headline metric against the checkpoint's, in points of 100."""
    name, before = headline(reference.task, evaluate(reference, list(examples)))
    after = evaluate(open_model(directory), list(examples)).get(name)
    if before is None or after is None:
        return Check(name, "undefined", "a number", False)
    limit = profile.tolerance.metric_points
    return Check(
        f"{name} on {len(examples):,} examples",
        f"{after:.4f} (checkpoint {before:.4f})",
        f"at most {limit:g} points below",
        100 * (before - after) <= limit,
    )


def _check_raw_outputs(
    expected: Sequence[np.ndarray], actual: Sequence[np.ndarray], profile: Profile
) -> Check:
    difference = max_abs_difference(expected, actual)
    return at_most("largest difference of raw outputs", difference, profile.limits.abs_difference)


def compare_predictions(
    expected: Sequence[Answer], actual: Sequence[Answer], profile: Profile
) -> Iterator[Check]:
    """Check how many predictions are equal, and how much the scores of those differ."""
    pairs = list(zip(expected, actual, strict=True))
    equal = [pair for pair in pairs if same_prediction(*pair)]
    fraction = len(equal) / max(1, len(pairs))
    yield at_least(f"equal predictions of {len(pairs)}", fraction, profile.limits.agreement)
    difference = max((score_difference(a, b) for a, b in equal), default=math.nan)
    yield at_most("largest difference of scores", difference, profile.limits.abs_difference)


def same_prediction(a: object, b: object) -> bool:
    """Return whether two predictions agree, their scores aside. Vectors: by cosine similarity."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same_prediction(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        if a and b and isinstance(a[0], float):
            return _cosine(a, b) >= SAME_COSINE
        return len(a) == len(b) and all(map(same_prediction, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return math.isfinite(b)
    return bool(a == b)


def score_difference(a: Any, b: Any) -> float:
    """Return the largest difference between numbers at the same place of two predictions."""
    if isinstance(a, Mapping):
        return max((score_difference(a[key], b[key]) for key in a), default=0.0)
    if isinstance(a, list):
        return max(map(score_difference, a, b), default=0.0)
    return abs(a - b) if isinstance(a, float) else 0.0


def _cosine(a: Sequence[float], b: Sequence[float]) -> float:
    x, y = np.asarray(a), np.asarray(b)
    norms = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / norms if norms else float(np.array_equal(x, y))


def _token_batches(
    reference: TokenPredictor, examples: Examples
) -> list[tuple[Inputs, np.ndarray]]:
    """Return batches of token ids int32 [B, T], each with the positions bool [B, T] whose outputs
    count: those of the text, or of masked tokens where the model predicts these."""
    task: Any = reference.task
    is_masked_lm = task.evaluated_on == "masked_tokens"
    if is_masked_lm:
        task = task.model_copy(update={"packing": False})
        features = task.for_epoch(task.features(examples, reference.tokenizer))
    else:
        features = task.features(examples, reference.tokenizer, targets=False)
    batches = []
    for start in range(0, len(features), BATCH_SIZE):
        rows = range(start, min(start + BATCH_SIZE, len(features)))
        if is_masked_lm:
            inputs, targets = features.batch(rows)
            counted = targets != IGNORED
            del inputs["positions"]
        else:
            inputs = features.inputs(rows)
            counted = inputs["padding_mask"] > 0
        batches.append((inputs, counted))
    return batches


def _examples_with_same_token_ids(reference: TokenPredictor, examples: Examples) -> list[Example]:
    """Return the examples of which every text gets the same ids from TensorFlow Text's
    tokenizer."""
    selected = [True] * len(examples)
    for name in ("text", "text_pair"):
        texts = [str(example.get(name, "")) for example in examples]
        equal = tflite_text_input.same_token_ids(reference.tokenizer, texts)
        selected = [a and b for a, b in zip(selected, equal, strict=True)]
    return [example for example, same in zip(examples, selected, strict=True) if same]


def _text(example: Example, name: str) -> str:
    """Return the text input of an example; words are joined as answers count them."""
    if name == "text" and "words" in example:
        return " ".join(example["words"])
    return example[name]
