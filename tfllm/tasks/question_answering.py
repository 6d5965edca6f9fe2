"""The span of a context that answers a question (SQuAD: Rajpurkar et al. 2016, 2018)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from tfllm.tasks.base import Task, float32

if TYPE_CHECKING:
    import keras


class QuestionAnswering(Task):
    """Start and end scores for every token of every window of the context."""

    kind: Literal["question_answering"] = "question_answering"
    max_length: int = Field(default=384, ge=8)
    stride: int = Field(default=128, ge=0)
    """Tokens that two windows of one context share."""
    max_answer_length: int = Field(default=30, ge=1)
    """Tokens of the longest answer."""
    no_answer: bool = False
    """Questions may have no answer (SQuAD 2): the score of [CLS] is compared with the best span."""
    no_answer_threshold: float = 0.0
    """How much the score of no answer must exceed the best span's."""
    n_best: int = Field(default=20, ge=1)
    """Start and end positions tried per window."""

    def model(self, backbone: keras.Model, config: Any) -> keras.Model:
        """Logits [B, T, 2]: start and end."""
        import keras

        from tfllm.layers import heads

        logits = float32(heads.span(backbone.output, config))
        return keras.Model(backbone.input, logits, name=self.kind)
