"""Training tokens per second of torch in nanoGPT's CPU setting.

The model and the loop are written after nanoGPT (github.com/karpathy/nanoGPT, model.py and
train.py at 3adf61e): the same operations, no logging. `--nanogpt FOLDER` takes the model from a
checkout of it instead.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from pathlib import Path

import torch
import workload
from torch import nn
from torch.nn import functional

LAYERS, HEADS, WIDTH, WINDOW, BATCH = 4, 4, 128, 64, 12
RATE, LOWEST_RATE, WARM_UP, STEPS = 1e-3, 1e-4, 100, 2000


class Block(nn.Module):
    """Pre-norm block without biases."""

    def __init__(self):
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH, bias=False), nn.LayerNorm(WIDTH, bias=False)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)
        self.up = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.down = nn.Linear(4 * WIDTH, WIDTH, bias=False)
        for layer in (self.qkv, self.up):
            nn.init.normal_(layer.weight, std=0.02)
        for layer in (self.out, self.down):
            nn.init.normal_(layer.weight, std=0.02 / math.sqrt(2 * LAYERS))

    def forward(self, x):
        rows, length, width = x.shape
        parts = self.qkv(self.norm_1(x)).split(width, dim=2)
        q, k, v = (p.view(rows, length, HEADS, width // HEADS).transpose(1, 2) for p in parts)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).contiguous().view(rows, length, width))
        return x + self.down(functional.gelu(self.up(self.norm_2(x))))


class Model(nn.Module):
    """GPT with tied embeddings: ids and targets [B, T] to (logits, loss)."""

    def __init__(self, vocabulary_size: int):
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary_size, WIDTH), nn.Embedding(WINDOW, WIDTH)
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.places.weight, std=0.02)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH, bias=False)

    def forward(self, ids, targets):
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        logits = functional.linear(self.norm(x), self.tokens.weight)
        return logits, functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def nanogpt(folder: str, vocabulary_size: int) -> nn.Module:
    """The same from a checkout of nanoGPT."""
    sys.path.insert(0, folder)
    from model import GPT, GPTConfig

    shape = {"n_layer": LAYERS, "n_head": HEADS, "n_embd": WIDTH, "block_size": WINDOW}
    return GPT(GPTConfig(vocab_size=vocabulary_size, dropout=0.0, bias=False, **shape))


def rate(step: int) -> float:
    if step < WARM_UP:
        return RATE * (step + 1) / (WARM_UP + 1)
    done = (step - WARM_UP) / (STEPS - WARM_UP)
    return LOWEST_RATE + 0.5 * (1 + math.cos(math.pi * done)) * (RATE - LOWEST_RATE)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=workload.LANGUAGE_STEPS)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--fused", action="store_true", help="AdamW in one kernel; nanoGPT's is not"
    )
    parser.add_argument("--nanogpt", help="a checkout of nanoGPT, for its own model")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(1337)
    text = (Path(os.environ["TFLLM_DATA"]) / "tinyshakespeare" / "input.txt").read_text("utf-8")
    characters = {character: number for number, character in enumerate(sorted(set(text)))}
    data = torch.tensor([characters[character] for character in text])
    size = len(characters)
    model = nanogpt(options.nanogpt, size) if options.nanogpt else Model(size)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.99), fused=options.fused)
    losses, start = [], (0.0, 0.0)
    for step in range(workload.LANGUAGE_WARM_UP_STEPS + options.steps):
        if step == workload.LANGUAGE_WARM_UP_STEPS:
            start = (time.perf_counter(), time.process_time())
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        places = torch.randint(len(data) - WINDOW, (BATCH,))
        ids = torch.stack([data[i : i + WINDOW] for i in places])
        targets = torch.stack([data[i + 1 : i + 1 + WINDOW] for i in places])
        _, loss = model(ids, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    wall, cpu = time.perf_counter() - start[0], time.process_time() - start[1]
    tokens = options.steps * BATCH * WINDOW
    name = "nanoGPT" if options.nanogpt else "torch, as nanoGPT"
    workload.report(
        runner=name + (", fused AdamW" if options.fused else ""),
        precision="float32",
        tokens_per_second=tokens / wall,
        tokens_per_cpu_second=tokens / cpu,
        threads=options.threads,
        last_loss=sum(losses[-20:]) / 20,
        torch=torch.__version__,
    )


if __name__ == "__main__":
    main()
