"""What the seq2seq runners do: the Transformer-base shape, sources of 32 tokens, 32 new ones.

    python benchmarks/seq2seq.py --model runs/bench/bart         # writes the model: random weights

BART's architecture, because all four programs have it: 6 and 6 layers of 512, 8 heads, 2,048
inside, 32,000 tokens in one table. Weights are random, and every row has its 32 tokens: the model
forbids an end before them (`min_new_tokens`).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import generation
import numpy as np

SOURCE_TOKENS = 32
NEW_TOKENS = 32
VOCABULARY_SIZE = 32000
START, PAD, END = 0, 1, 2  # <s>, <pad> and </s>, as in BART
SHAPE = {
    "vocab_size": VOCABULARY_SIZE, "d_model": 512, "encoder_layers": 6, "decoder_layers": 6,
    "encoder_attention_heads": 8, "decoder_attention_heads": 8, "encoder_ffn_dim": 2048,
    "decoder_ffn_dim": 2048, "max_position_embeddings": 512, "forced_eos_token_id": None,
    "normalize_before": False,  # CTranslate2's converter asks for it
}  # fmt: skip


def arguments() -> argparse.Namespace:
    parser = generation.parser()
    parser.add_argument("--beams", type=int, default=1)
    return parser.parse_args()


def sources(batch_size: int) -> list[list[int]]:
    """The same ids for every runner, with <s> and </s>."""
    random = np.random.default_rng(1)
    words = random.integers(END + 2, VOCABULARY_SIZE - 1, [batch_size, SOURCE_TOKENS - 2])
    return [[START, *row, END] for row in words.tolist()]


def write_model(directory: Path) -> None:
    """Random weights as a Hugging Face directory, with a tokenizer of its size."""
    import torch
    import transformers

    directory.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(1)
    model = transformers.BartForConditionalGeneration(transformers.BartConfig(**SHAPE))
    model.generation_config.update(max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS)
    model.save_pretrained(directory)
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    generation.write_tokenizer(directory, VOCABULARY_SIZE, special, "<mask>", "BartTokenizer", 512)


if __name__ == "__main__":
    write_model(Path(arguments().model))
