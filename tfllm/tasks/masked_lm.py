"""Filling in masked words (Devlin et al. 2019, section 3.1, task 1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from tfllm.tasks.base import Task, float32

if TYPE_CHECKING:
    import keras


class MaskedLM(Task):
    """Scores over the vocabulary for every token."""

    kind: Literal["masked_lm"] = "masked_lm"
    mask_probability: float = Field(default=0.15, gt=0, lt=1)
    """Training: share of tokens to be told; 80 % become [MASK], 10 % another token, 10 % stay."""
    top_k: int = Field(default=5, ge=1)
    """Candidates in an answer."""

    def model(self, backbone: keras.Model, config: Any) -> keras.Model:
        """Logits [B, T, V]."""
        import keras

        from tfllm.layers import heads

        logits = float32(heads.masked(backbone.output, config, backbone))
        return keras.Model(backbone.input, logits, name=self.kind)
