"""Writes generation.npz: what transformers' processors and beam search give. Needs [parity].

    python tests/golden/make_generation.py

A GPT-2 of two layers with fixed random weights; its tensors are in the file, so that the tests need
neither torch nor transformers.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.generation import logits_process as hf

VOCABULARY = 43
STOP = 7
PROMPTS = [[3, 5, 11, 2], [8, 1, 1, 30], [40, 41, 42, 9]]

CASES = [
    {"num_beams": 3, "eos_token_id": 12},
    {"num_beams": 4, "length_penalty": 0.0},
    {"num_beams": 4, "length_penalty": 2.0, "early_stopping": True, "eos_token_id": [12, 13]},
    {"num_beams": 3, "length_penalty": 1.5, "early_stopping": "never", "eos_token_id": 12},
    {"num_beams": 5, "length_penalty": -0.7, "early_stopping": "never"},
    {"num_beams": 4, "length_penalty": 0.6, "no_repeat_ngram_size": 2},
    {"num_beams": 3, "repetition_penalty": 1.4, "early_stopping": True, "eos_token_id": [12, 9]},
    {"num_beams": 2, "eos_token_id": [STOP, 12, 13]},
    {"num_beams": 4, "eos_token_id": [STOP, 12, 13], "early_stopping": "never"},
    {"num_beams": 2, "eos_token_id": None},
]


def model() -> GPT2LMHeadModel:
    torch.manual_seed(4)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_layer=2, n_head=2, n_embd=16, n_positions=64,
        bos_token_id=0, eos_token_id=STOP,
    )  # fmt: skip
    made = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for name, value in made.named_parameters():
            if "ln" not in name:
                value.copy_(torch.randn_like(value) * (0.35 if "wte" in name else 0.3))
    return made


def beams(network: GPT2LMHeadModel) -> list[dict]:
    found = []
    for case in CASES:
        stop = case.get("eos_token_id", STOP)
        out = network.generate(
            torch.tensor(PROMPTS), max_new_tokens=16, do_sample=False, pad_token_id=0,
            num_return_sequences=case["num_beams"], return_dict_in_generate=True,
            output_scores=True, use_cache=True, attention_mask=torch.ones(3, 4, dtype=torch.long),
            **{**case, "eos_token_id": stop},
        )  # fmt: skip
        stops = [stop] if isinstance(stop, int) else stop or []
        texts = [cut(row[4:], stops) for row in out.sequences.tolist()]
        found.append(
            {**case, "stops": stops, "texts": texts, "scores": out.sequences_scores.tolist()}
        )
    return found


def cut(ids: list[int], stops: list[int]) -> list[int]:
    """The tokens before the stop id; padding stands only after one."""
    return ids[: next((i for i, token in enumerate(ids) if token in stops), len(ids))]


def processed() -> dict[str, np.ndarray]:
    """Logits of three rows before and after each processor."""
    draw = np.random.default_rng(0)
    logits = draw.normal(0, 3, (3, VOCABULARY)).astype("float32")
    ids = draw.integers(0, 8, (3, 12))
    scores, history = torch.tensor(logits), torch.tensor(ids)
    processors = {
        "temperature": hf.TemperatureLogitsWarper(0.7),
        "top_k": hf.TopKLogitsWarper(5),
        "top_p": hf.TopPLogitsWarper(0.8),
        "min_p": hf.MinPLogitsWarper(0.1),
        "repetition": hf.RepetitionPenaltyLogitsProcessor(1.3),
        "ngram_2": hf.NoRepeatNGramLogitsProcessor(2),
        "ngram_3": hf.NoRepeatNGramLogitsProcessor(3),
        "bad_words": hf.NoBadWordsLogitsProcessor(
            [[4], [int(ids[0, -1]), 9], [int(ids[1, -2]), int(ids[1, -1]), 10]], eos_token_id=99
        ),
    }
    return {
        "logits": logits,
        "ids": ids.astype("int32"),
        **{name: one(history, scores.clone()).numpy() for name, one in processors.items()},
    }


if __name__ == "__main__":
    network = model()
    weights = {f"model/{name}": value.numpy() for name, value in network.state_dict().items()}
    config = json.dumps(network.config.to_dict())
    place = Path(__file__).parent / "generation.npz"
    np.savez_compressed(
        place,
        **weights,
        **{f"processed/{name}": value for name, value in processed().items()},
        config=config,
        beams=json.dumps(beams(network)),
        prompts=np.array(PROMPTS, "int32"),
    )
    print(f"{place}: {place.stat().st_size:,} bytes")
