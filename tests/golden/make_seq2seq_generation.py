"""Writes seq2seq_generation.npz: what transformers' `generate` gives with encoder-decoders.

Run with transformers and torch installed (the extra [parity]):

    python tests/golden/make_seq2seq_generation.py

The models are those of make_encoder_decoders.py with norms of both signs, without which such small
random models repeat one token. The file holds for each `config`, `generation` and `tensors` as
there, and `texts`, JSON: the sources and what was written for each case.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from make_encoder_decoders import END, HERE, build

PLACE = HERE / "seq2seq_generation.npz"
# Model: the seed of its norms, of some that were tried the one with which it says most.
MODELS = {"marian": 23, "marian_apart": 7, "t5": 23, "flan_t5": 11, "bart": 7, "mbart": 7}
NORM_STDDEV = 1.5
MOST_NEW = 13
SOURCES = [
    [5, 9, 11, 3, 27, 8, 14, 2],
    [7, 2],
    [21, 6, 6, 13, 2],
    [4, 16, 25, 18, 10, 22, 28, 12, 5, 19, 2],
]
PLAIN = {"num_beams": 1, "bad_words_ids": None, "forced_eos_token_id": None}
# Each for every model. What a checkpoint says itself (4 beams, bad words, forced end) counts too.
CASES: list[dict[str, Any]] = [
    {},
    PLAIN,
    {**PLAIN, "num_beams": 3, "length_penalty": 0.0, "num_return_sequences": 3},
    {"num_beams": 4, "length_penalty": 2.0, "early_stopping": True, "eos_token_id": [2, 3, 9]},
    {"num_beams": 3, "length_penalty": 0.6, "early_stopping": "never", "num_return_sequences": 2},
    {"num_beams": 5, "length_penalty": -0.7, "early_stopping": "never", "eos_token_id": 7},
    {"num_beams": 4, "no_repeat_ngram_size": 2, "min_length": 6, "forced_bos_token_id": 20,
     "early_stopping": True, "length_penalty": 2.0, "num_return_sequences": 4},
    {"num_beams": 2, "repetition_penalty": 1.4, "renormalize_logits": True,
     "bad_words_ids": [[END], [5], [3, 8]], "num_return_sequences": 2},
    {"num_beams": 1, "no_repeat_ngram_size": 3, "min_new_tokens": 4, "forced_eos_token_id": 2,
     "bad_words_ids": [[END], [11]]},
    {"num_beams": 6, "max_new_tokens": 5, "renormalize_logits": True, "num_return_sequences": 6},
]  # fmt: skip


def varied(name: str) -> torch.nn.Module:
    """A model that writes different tokens."""
    model = build(name)
    torch.manual_seed(MODELS[name])
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "norm" in parameter_name and parameter_name.endswith("weight"):
                parameter.normal_(0.0, NORM_STDDEV)
    model.generation_config.num_beams = 4
    model.generation_config.bad_words_ids = [[END]]
    return model


def written(model: torch.nn.Module, case: dict[str, Any]) -> dict[str, Any]:
    """One case: the new tokens without the end, and scores where there are any."""
    width = max(map(len, SOURCES))
    ids = torch.tensor([row + [1] * (width - len(row)) for row in SOURCES])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in SOURCES])
    options = {"max_new_tokens": MOST_NEW, **case}
    stop = options.get("eos_token_id", model.generation_config.eos_token_id)
    out = model.generate(
        ids, attention_mask=mask, do_sample=False, return_dict_in_generate=True,
        output_scores=True, **options,
    )  # fmt: skip
    stops = stop if isinstance(stop, list) else [stop]
    scores = getattr(out, "sequences_scores", None)
    return {
        "case": options,
        "stops": stops,
        "texts": [cut(row[1:], stops) for row in out.sequences.tolist()],
        "scores": None if scores is None else [round(one, 6) for one in scores.tolist()],
    }


def cut(ids: list[int], stops: list[int]) -> list[int]:
    """The tokens before the stop id; padding stands only after one."""
    return ids[: next((i for i, token in enumerate(ids) if token in stops), len(ids))]


if __name__ == "__main__":
    arrays: dict[str, np.ndarray] = {}
    texts: dict[str, list[dict[str, Any]]] = {}
    for name in MODELS:
        model = varied(name)
        texts[name] = [written(model, case) for case in CASES]
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            for key, file in (
                ("config", "config.json"),
                ("generation", "generation_config.json"),
                ("tensors", "model.safetensors"),
            ):
                arrays[f"{name}/{key}"] = np.frombuffer(
                    (Path(folder) / file).read_bytes(), np.uint8
                )
    told = json.dumps({"sources": SOURCES, "models": texts})
    np.savez_compressed(PLACE, texts=told, **arrays)
    print(f"transformers {transformers.__version__}, torch {torch.__version__}", file=sys.stderr)
    print(f"{PLACE}: {PLACE.stat().st_size:,} bytes")
