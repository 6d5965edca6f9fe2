"""Whether the second text follows the first (Devlin et al. 2019, section 3.1, task 2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from tfllm.tasks.base import Task, float32

if TYPE_CHECKING:
    import keras


class NextSentence(Task):
    """A head of two on the summary of the first token: 0 follows, 1 does not."""

    kind: Literal["next_sentence"] = "next_sentence"

    def model(self, backbone: keras.Model, config: Any) -> keras.Model:
        """Logits [B, 2]."""
        import keras

        from tfllm.layers import heads

        logits = float32(heads.next_sentence(backbone.output, config))
        return keras.Model(backbone.input, logits, name=self.kind)
