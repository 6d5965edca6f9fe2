"""Writing a target after a source: translation, summarization."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from tfllm.tasks.base import Task

if TYPE_CHECKING:
    import keras


class Seq2Seq(Task):
    """Scores of the next token of the target for every token of it (Sutskever et al. 2014)."""

    kind: Literal["seq2seq"] = "seq2seq"
    max_length: int = Field(default=128, ge=3)
    """Tokens of a source, and of a target with its start token."""

    def model(self, backbone: keras.Model, config: Any) -> keras.Model:
        """Raw scores float32 [B, T, V]."""
        import keras

        from tfllm.layers import heads

        scores = heads.next_token(backbone.output, config, backbone)
        return keras.Model(backbone.input, scores, name=self.kind)
