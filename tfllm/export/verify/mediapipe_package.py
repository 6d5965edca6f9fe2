"""The mediapipe package on an exported file, and what the checkpoint says to the same tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfllm.export.base import Profile


def expected(reference: Any, profile: Profile, texts: Sequence[str]) -> np.ndarray:
    """Probabilities [B, C] or embeddings [B, D] of the checkpoint, for MediaPipe's own tokens.

    `reference` is the checkpoint's TokenPredictor.
    """
    import tensorflow as tf

    task = reference.task
    graph = reference.tokenizer.graph("mediapipe")
    rows = graph(tf.constant(list(texts)), max_length=task.max_length)
    raw = reference.call({name: value.numpy() for name, value in rows.items()})
    if not task.softmax_over:
        return raw
    if task.problem == "multi_label":
        return 1 / (1 + np.exp(-raw))
    powers = np.exp(raw - raw.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def answers(path: Path, task: Any, texts: Sequence[str]) -> np.ndarray:
    """The same from MediaPipe's TextClassifier or TextEmbedder, one text at a time."""
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
