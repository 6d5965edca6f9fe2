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
    torch.set_num_threads(options.threads)
    work = workload.training(options)
    texts, labels = work.texts, work.labels
    if options.base:
        tokenizer = transformers.BertTokenizer(str(workload.vocabulary()))
        model = transformers.BertForSequenceClassification(transformers.BertConfig(num_labels=2))
    else:
        tokenizer = transformers.AutoTokenizer.from_pretrained(options.model)
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            options.model, num_labels=2
        )
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5, weight_decay=0.01, fused=True)
    encoded = tokenizer(texts, truncation=True, max_length=work.max_length)["input_ids"]
    model.train()
    start, losses = (0.0, 0.0), []
    for first in range(0, len(texts) - work.batch_size, work.batch_size):
        if first == work.warm_up_steps * work.batch_size:
            start = time.perf_counter(), time.process_time()
        rows = {"input_ids": encoded[first : first + work.batch_size]}
        batch = tokenizer.pad(rows, return_tensors="pt")
        target = torch.tensor(labels[first : first + work.batch_size])
        with torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bfloat16"):
            loss = model(**batch, labels=target).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    wall, cpu = time.perf_counter() - start[0], time.process_time() - start[1]
    workload.report(
        runner="transformers",
        precision=options.precision,
        **workload.speed(work, wall, cpu),
        last_loss=sum(losses[-20:]) / 20,
        torch=torch.__version__,
        transformers=transformers.__version__,
    )


if __name__ == "__main__":
    main()
