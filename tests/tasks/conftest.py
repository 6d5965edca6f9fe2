"""A tiny vocabulary and tiny random encoders."""

import keras
import numpy as np
import pytest

from tfllm.models import bert
from tfllm.tokenizers.wordpiece import WordPiece

VOCABULARY = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]",
    "the", "film", "was", "good", "bad", "very", "un", "##watch", "##able", "who", "made", "it",
    "?", ".", ",", "&", "-", "paris", "new", "york", "ann", "lee", "at", "##s", "t", "in", "lives",
    "##n",
    "中", "国", "京", "北", "a", "b", "c", "d", "e", "f", "g", "##a", "##b", "##c",
]  # fmt: skip


@pytest.fixture(scope="session")
def tokenizer():
    return WordPiece.from_vocabulary(VOCABULARY)


@pytest.fixture(scope="session")
def in_graph(tokenizer):
    return tokenizer.graph()


@pytest.fixture(scope="session")
def tiny():
    """A function from a task to its model over a small random encoder of one layer."""

    def build(task, **changes):
        keras.utils.set_random_seed(7)
        shape = {"vocabulary_size": len(VOCABULARY), "num_layers": 1, "num_heads": 2}
        config = bert.Config(**{**shape, "hidden_dim": 16, "initializer_range": 0.5, **changes})
        return task.model(bert.backbone(config), config)

    return build


@pytest.fixture(scope="session")
def run():
    """A function from model and features to the outputs of every row."""

    def outputs(model, features, size=4):
        rows = []
        for start in range(0, len(features), size):
            inputs = features.inputs(range(start, min(start + size, len(features))))
            chosen = {name: inputs[name] for name in model.input}
            rows.extend(np.asarray(model(chosen, training=False)))
        return rows

    return outputs
