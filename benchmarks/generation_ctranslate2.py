"""New tokens per second: CTranslate2's generator, greedy; float32 or int8."""

from __future__ import annotations

import json
from pathlib import Path

import ctranslate2
import generation
import workload


def converted(directory: str, precision: str) -> str:
    """The model in CTranslate2's form, made once."""
    output = Path(directory) / f"ctranslate2-{precision}"
    if not output.exists():
        converter = ctranslate2.converters.TransformersConverter(directory)
        converter.convert(str(output), quantization=precision)
    return str(output)


def main() -> None:
    options = generation.arguments()
    generator = ctranslate2.Generator(
        converted(options.model, options.precision),
        compute_type=options.precision,
        intra_threads=options.threads,
    )
    names = list(json.loads((Path(options.model) / "vocab.json").read_text("utf-8")))

    def call(ids: list[list[int]]) -> list[list[int]]:
        results = generator.generate_batch(
            [[names[one] for one in row] for row in ids],
            max_length=generation.NEW_TOKENS,
            min_length=generation.NEW_TOKENS,
            sampling_topk=1,
            include_prompt_in_result=False,
            end_token=[],
        )
        return [result.sequences_ids[0] for result in results]

    workload.report(
        runner="CTranslate2",
        precision=options.precision,
        **generation.rate(call, generation.prompts(options.batch_size), options.repeats),
        ctranslate2=ctranslate2.__version__,
    )


if __name__ == "__main__":
    main()
