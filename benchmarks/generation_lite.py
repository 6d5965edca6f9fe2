"""New tokens per second: a .tflite file of tfllm, greedy.

A file of steps writes one row after the other, one of whole texts as many as its signatures have.

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
    from tfllm.generation.config import GenerationConfig
    from tfllm.runtimes.opening import open_model

    engine = open_model(options.artifact).generator.engine
    settings = GenerationConfig(max_new_tokens=generation.NEW_TOKENS)

    workload.report(
        runner="tfllm LiteRT",
        precision=Path(options.artifact).name,
        **generation.rate(
            lambda ids: [result.ids for result in engine.generate(ids, settings)],
            generation.prompts(options.batch_size),
            options.repeats,
        ),
        ai_edge_litert=importlib.metadata.version("ai-edge-litert"),
    )


if __name__ == "__main__":
    main()
