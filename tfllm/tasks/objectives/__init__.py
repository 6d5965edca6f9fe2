"""Self-supervised objectives: how training rows are made from plain text.

Masking (`masking`), packed windows (`packing`) and sentence pairs (`sentence_pairs`) belong to the
tasks masked_lm, causal_lm and pretraining. An encoder-decoder (seq2seq) learns any of OBJECTIVES,
named by `task.objective`: one file and one line each.
"""

from __future__ import annotations

from tfllm.tasks.objectives import span_corruption
from tfllm.tasks.objectives.seq2seq_features import Objective

__all__ = ["OBJECTIVES", "Objective"]

OBJECTIVES: dict[str, Objective] = {
    "span_corruption": span_corruption.corrupted_pairs,
}
