"""Makes gemma.npz: what transformers computes with the real weights of Gemma 3 270M.

Run with transformers and torch installed (the extra [parity]), on a directory that tfllm wrote from
the GGUF file of tests/helpers/real_gemma.py:

    tfllm convert gemma-3-270m-q4_k_m.gguf --to huggingface --output DIR
    python tests/golden/make_gemma.py DIR

For each text: `ids/N` (T), and of the logits at each position the largest, `top_ids/N` and
`top_logits/N` (T, TOP), and the logarithm of the sum of the exponentials of all, `totals/N` (T).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import transformers
from gemma_texts import TEXTS

HERE = Path(__file__).parent
TOP = 16


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    directory = parser.parse_args().directory
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    arrays = {}
    for number, text in enumerate(TEXTS):
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            logits = model(ids).logits[0]
        top = logits.topk(TOP)
        arrays |= {
            f"ids/{number}": ids[0].numpy().astype(np.int32),
            f"top_ids/{number}": top.indices.numpy().astype(np.int32),
            f"top_logits/{number}": top.values.numpy(),
            f"totals/{number}": logits.logsumexp(-1).numpy(),
        }
    np.savez_compressed(HERE / "gemma.npz", **arrays)


if __name__ == "__main__":
    main()
