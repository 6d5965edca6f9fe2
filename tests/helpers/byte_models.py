"""A tiny checkpoint that writes bytes: random, so its texts break characters wherever they can."""

from __future__ import annotations

import functools

from tfllm.checkpoints import store
from tfllm.checkpoints.base import Checkpoint
from tfllm.models import gpt2
from tfllm.tasks.causal_lm import CausalLM
from tfllm.tokenizers import bytepair
from tfllm.tokenizers.byte_level import bytes_to_unicode
from tfllm.tokenizers.tokenizer_config import TokenizerConfig

TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
WINDOW = 128


@functools.cache
def checkpoint(start: bool = True) -> Checkpoint:
    """Without `start` the vocabulary has no special token at all."""
    tokens = [*bytes_to_unicode(), *([bytepair.ENDOFTEXT] if start else [])]
    table = {token: number for number, token in enumerate(tokens)}
    tokenizer = bytepair.from_vocabulary(table, [], TokenizerConfig(chat_template=TEMPLATE))
    config = gpt2.Config(
        vocabulary_size=len(tokens), num_layers=1, num_heads=2, hidden_dim=16,
        max_sequence_length=WINDOW, initializer_range=0.3,
    )  # fmt: skip
    return store.create("gpt2", config, tokenizer, CausalLM(max_length=64), seed=5)
