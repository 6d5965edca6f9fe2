"""New tokens per second after sources: transformers' `generate`."""

from __future__ import annotations

import generation
import seq2seq
import torch
import transformers
import workload


def main() -> None:
    options = seq2seq.arguments()
    torch.set_num_threads(options.threads)
    model = transformers.BartForConditionalGeneration.from_pretrained(
        options.model, dtype=getattr(torch, options.precision)
    ).eval()

    @torch.inference_mode()
    def call(sources: list[list[int]]) -> list[list[int]]:
        tensor = torch.tensor(sources)
        found = model.generate(
            tensor,
            attention_mask=torch.ones_like(tensor),
            do_sample=False,
            num_beams=options.beams,
            max_new_tokens=seq2seq.NEW_TOKENS,
            min_new_tokens=seq2seq.NEW_TOKENS,
        )
        return found[:, 1:].tolist()

    sources = seq2seq.sources(options.batch_size)
    workload.report(
        runner="transformers",
        precision=options.precision,
        **generation.rate(call, sources, options.repeats, seq2seq.NEW_TOKENS),
        torch=torch.__version__,
        transformers=transformers.__version__,
    )


if __name__ == "__main__":
    main()
