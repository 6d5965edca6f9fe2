"""New tokens per second after sources: a .tflite file of tfllm that writes whole texts, greedy.

tfllm export runs/bench/bart --to tflite-loop --set quantization=int8 --set 'batch_sizes=[1, 32]' \\
    --set prompt_length=32 --output runs/bench/bart-int8-loop
python benchmarks/seq2seq_lite.py --model runs/bench/bart --artifact runs/bench/bart-int8-loop
"""

from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path

import generation
import seq2seq
import workload


def main() -> None:
    options = seq2seq.arguments()
    # The runtime is opened with as many threads as Python counts.
    os.cpu_count = lambda: options.threads  # type: ignore[assignment]
    from tfllm.runtimes.opening import open_model

    generator = open_model(options.artifact).generator
    settings = generator.generation_config(eos_token_id=(seq2seq.END,))

    def call(sources: list[list[int]]) -> list[list[int]]:
        return [
            text.ids
            for text in generator.engine.generate(
                [[seq2seq.END]] * len(sources), settings, sources=sources
            )
        ]

    sources = seq2seq.sources(options.batch_size)
    workload.report(
        runner="tfllm LiteRT",
        precision=Path(options.artifact).name,
        **generation.rate(call, sources, options.repeats, seq2seq.NEW_TOKENS),
        ai_edge_litert=importlib.metadata.version("ai-edge-litert"),
    )


if __name__ == "__main__":
    main()
