"""Tiny random encoders, one for every task that is exported."""

import string

from tfllm import tasks
from tfllm.checkpoints import store
from tfllm.tokenizers.wordpiece import WordPiece

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = [*string.ascii_lowercase, *string.digits, *".,?!'"]
WORDS = ["the", "film", "was", "good", "bad", "lighthouse", "who", "built", "it", "##ing"]
VOCABULARY = [*SPECIALS, *WORDS, *LETTERS, *(f"##{letter}" for letter in string.ascii_lowercase)]
SHAPE = {
    "vocabulary_size": len(VOCABULARY), "num_layers": 2, "num_heads": 2, "hidden_dim": 32,
    "max_sequence_length": 64, "initializer_range": 0.3,
}  # fmt: skip

TASKS = {
    "classification": {"labels": ["bad", "good", "neither"], "max_length": 32},
    "embedding": {"max_length": 32},
    "token_classification": {"labels": ["O", "B-PER", "I-PER"], "max_length": 32},
    "question_answering": {"max_length": 48, "stride": 8, "max_answer_length": 8},
    "masked_lm": {"max_length": 32},
}


def make(kind, shape=None, **settings):
    """A checkpoint with fixed random weights."""
    task = tasks.build({"kind": kind, **TASKS.get(kind, {}), **settings})
    tokenizer = WordPiece.from_vocabulary(VOCABULARY)
    return store.create("bert", {**SHAPE, **(shape or {})}, tokenizer, task, seed=3)
