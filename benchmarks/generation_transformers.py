"""New tokens per second: transformers' `generate`, greedy, dynamic cache."""

from __future__ import annotations

import generation
import torch
import transformers
import workload


def main() -> None:
    options = generation.arguments()
    torch.set_num_threads(options.threads)
    model = transformers.GPT2LMHeadModel.from_pretrained(
        options.model, dtype=getattr(torch, options.precision)
    ).eval()

    @torch.inference_mode()
    def call(ids: list[list[int]]) -> list[list[int]]:
        tensor = torch.tensor(ids)
        found = model.generate(
            tensor,
            attention_mask=torch.ones_like(tensor),
            do_sample=False,
            max_new_tokens=generation.NEW_TOKENS,
            min_new_tokens=generation.NEW_TOKENS,
            pad_token_id=0,
        )
        return found[:, generation.PROMPT_TOKENS :].tolist()

    workload.report(
        runner="transformers",
        precision=options.precision,
        **generation.rate(call, generation.prompts(options.batch_size), options.repeats),
        torch=torch.__version__,
        transformers=transformers.__version__,
    )


if __name__ == "__main__":
    main()
