"""New tokens per second after sources: CTranslate2's translator; float32 or int8."""

from __future__ import annotations

import json
from pathlib import Path

import ctranslate2
import generation
import seq2seq
import workload
from generation_ctranslate2 import converted


def main() -> None:
    options = seq2seq.arguments()
    translator = ctranslate2.Translator(
        converted(options.model, options.precision),
        compute_type=options.precision,
        intra_threads=options.threads,
    )
    names = list(json.loads((Path(options.model) / "vocab.json").read_text("utf-8")))
    numbers = {name: number for number, name in enumerate(names)}

    def call(sources: list[list[int]]) -> list[list[int]]:
        results = translator.translate_batch(
            [[names[one] for one in row] for row in sources],
            beam_size=options.beams,
            max_decoding_length=seq2seq.NEW_TOKENS,
            min_decoding_length=seq2seq.NEW_TOKENS,
        )
        return [[numbers[name] for name in result.hypotheses[0]] for result in results]

    sources = seq2seq.sources(options.batch_size)
    workload.report(
        runner="CTranslate2",
        precision=options.precision,
        **generation.rate(call, sources, options.repeats, seq2seq.NEW_TOKENS),
        ctranslate2=ctranslate2.__version__,
    )


if __name__ == "__main__":
    main()
