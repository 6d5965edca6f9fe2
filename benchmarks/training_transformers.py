"""Fine-tuning examples per second of transformers + torch: dynamic padding, autocast to bfloat16.

The plain loop that the libraries' own examples use, without the Trainer's logging, which costs.
"""

from __future__ import annotations

import time

import torch
import transformers
import workload


def main() -> None:
    options = workload.arguments()
    texts, labels = workload.sst2(workload.WARM_UP_EXAMPLES + workload.TRAINING_EXAMPLES)
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.model)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        options.model, num_labels=2
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5, weight_decay=0.01, fused=True)
    encoded = tokenizer(texts, truncation=True, max_length=workload.MAX_LENGTH)["input_ids"]
    model.train()
    start, losses = 0.0, []
    for first in range(0, len(texts), options.batch_size):
        if first == workload.WARM_UP_EXAMPLES:
            start = time.perf_counter()
        rows = {"input_ids": encoded[first : first + options.batch_size]}
        batch = tokenizer.pad(rows, return_tensors="pt")
        target = torch.tensor(labels[first : first + options.batch_size])
        with torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bfloat16"):
            loss = model(**batch, labels=target).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    seconds = time.perf_counter() - start
    workload.report(
        runner="transformers",
        precision=options.precision,
        examples_per_second=workload.TRAINING_EXAMPLES / seconds,
        last_loss=sum(losses[-20:]) / 20,
        torch=torch.__version__,
        transformers=transformers.__version__,
    )


if __name__ == "__main__":
    main()
