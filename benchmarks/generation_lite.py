"""New tokens per second: a .tflite file of tfllm, greedy, one row after the other.

tfllm export runs/bench/gpt2 --to tflite-int8 --set max_length=256 --output runs/bench/gpt2-int8
python benchmarks/generation_lite.py --model runs/bench/gpt2 --artifact runs/bench/gpt2-int8
"""

from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path

import generation
import workload


def main() -> None:
    options = generation.arguments()
    # The runtime is opened with as many threads as Python counts.
    os.cpu_count = lambda: options.threads  # type: ignore[assignment]
    import numpy as np

    from tfllm.evaluation.lite_steps import LiteSteps

    steps = LiteSteps(Path(options.artifact) / "model.tflite")

    def row(prompt: list[int]) -> list[int]:
        new: list[int] = []
        steps.read(prompt[:-1])
        token = prompt[-1]
        for place in range(len(prompt) - 1, len(prompt) - 1 + generation.NEW_TOKENS):
            token = int(np.argmax(steps.step(token, place)))
            new.append(token)
        return new

    workload.report(
        runner="tfllm LiteRT",
        precision=Path(options.artifact).name.split("-")[-1],
        **generation.rate(
            lambda ids: [row(prompt) for prompt in ids], options.batch_size, options.repeats
        ),
        ai_edge_litert=importlib.metadata.version("ai-edge-litert"),
    )


if __name__ == "__main__":
    main()
