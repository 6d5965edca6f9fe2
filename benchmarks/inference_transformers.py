"""Texts per second from string to label: transformers' own text-classification pipeline."""

from __future__ import annotations

import torch
import transformers
import workload


def main() -> None:
    options = workload.arguments()
    texts, _ = workload.sst2(2000)
    dtype = torch.bfloat16 if options.precision == "bfloat16" else torch.float32
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        options.model, dtype=dtype
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.model)
    pipeline = transformers.pipeline("text-classification", model=model, tokenizer=tokenizer)
    workload.report(
        runner="transformers pipeline",
        precision=options.precision,
        batch_size=options.batch_size,
        **workload.rate(
            lambda batch: pipeline(batch, batch_size=len(batch)), texts, options.batch_size
        ),
        torch=torch.__version__,
        transformers=transformers.__version__,
    )


if __name__ == "__main__":
    main()
