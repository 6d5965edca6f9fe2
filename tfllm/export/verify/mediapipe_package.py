"""The mediapipe package on an exported file, against the checkpoint on the same tokens."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfllm.checkpoints.base import Checkpoint
from tfllm.export.artifact import Check, at_most, report
from tfllm.export.flatbuffer import TFLITE_FILE
from tfllm.export.profile import Profile
from tfllm.export.verify.common import max_abs_difference
from tfllm.export.verify.encoder import open_reference
from tfllm.export.verify.sample_texts import sentence_examples
from tfllm.runtimes.token_predictor import TokenPredictor

PROBABILITY_FACTOR = 0.1  # of the limit of raw outputs, for probabilities


def check_outputs(checkpoint: Checkpoint, profile: Profile, directory: Path) -> Iterator[Check]:
    """Run the file in the package, where that is installed, on ASCII texts."""
    if importlib.util.find_spec("mediapipe") is None:
        yield report("mediapipe package", "not installed, not run: pip install mediapipe")
        return
    reference = open_reference(checkpoint, profile)
    examples = sentence_examples(checkpoint.task, ascii_only=True)
    texts = [example["text"] for example in examples]
    expected = reference_outputs(reference, texts)
    actual = package_outputs(directory / TFLITE_FILE, checkpoint.task, texts)
    limit = profile.limits.abs_difference
    yield at_most(
        "mediapipe package: largest difference on ASCII texts",
        max_abs_difference([expected], [actual]),
        None if limit is None else limit * PROBABILITY_FACTOR,
    )


def reference_outputs(reference: TokenPredictor, texts: Sequence[str]) -> np.ndarray:
    """Return the checkpoint's probabilities [B, C] or embeddings [B, D] of MediaPipe's tokens."""
    task: Any = reference.task
    tokenize = reference.tokenizer.graph("mediapipe")
    rows = tokenize(tf.constant(list(texts)), max_length=task.max_length)
    outputs: Any = reference.call({name: value.numpy() for name, value in rows.items()})
    if not task.softmax_over:
        return outputs
    if task.problem == "multi_label":
        return 1 / (1 + np.exp(-outputs))
    exponentials = np.exp(outputs - outputs.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def package_outputs(path: Path, task: Any, texts: Sequence[str]) -> np.ndarray:
    """Return the same from MediaPipe's TextClassifier or TextEmbedder, one text at a time."""
    from mediapipe.tasks.python import BaseOptions, text

    options = {"base_options": BaseOptions(model_asset_path=str(path))}
    if not task.softmax_over:
        embedder = text.TextEmbedder.create_from_options(text.TextEmbedderOptions(**options))
        with embedder:
            return np.array([embedder.embed(one).embeddings[0].embedding for one in texts])
    classifier = text.TextClassifier.create_from_options(text.TextClassifierOptions(**options))
    rows = []
    with classifier:
        for one in texts:
            categories = classifier.classify(one).classifications[0].categories
            scores = {category.category_name: category.score for category in categories}
            rows.append([scores[label] for label in task.labels])
    return np.array(rows)
