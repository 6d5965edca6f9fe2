"""A tiny random Marian: two SentencePiece models, one table of ids, a Transformer of one layer; and
T5 and BART with the same tokenizer."""

from __future__ import annotations

import functools

import numpy as np

from tests.helpers.translation_tokenizers import ENGLISH, tokenizer
from tfllm.checkpoints import store
from tfllm.checkpoints.base import Checkpoint
from tfllm.tasks.seq2seq import Seq2Seq

WINDOW, LONGEST = 96, 72  # tokens
SENTENCES = tuple(dict.fromkeys(ENGLISH))


@functools.cache
def checkpoint(family: str = "transformer", **task) -> Checkpoint:
    """It asks for beam search of width 3, as Marian's files do; `task` are fields of Seq2Seq."""
    made = tokenizer("marian")
    pad = made.pad_token_id
    shape = {
        "vocabulary_size": made.vocabulary_size, "num_layers": 1, "num_heads": 2, "hidden_dim": 16,
        "dropout": 0.0, "max_sequence_length": WINDOW, "pad_token_id": pad,
    }  # fmt: skip
    created = store.create(family, shape, made, Seq2Seq(max_length=LONGEST, **task), seed=5)
    draw = np.random.default_rng(2)
    for weight in created.model.weights:  # norms of both signs, or it repeats one token
        spread = 1.4 if weight.path.endswith(("gamma", "scale")) else 0.7
        weight.assign(draw.normal(0.0, spread, weight.shape))
    created.generation_config.update(  # type: ignore[attr-defined]
        num_beams=3, max_length=12, bad_words_ids=[[pad]], forced_eos_token_id=made.eos_token_id,
        eos_token_id=made.eos_token_id, decoder_start_token_id=pad,
    )  # fmt: skip
    return created
