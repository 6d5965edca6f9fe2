"""A label for every word: named entities, parts of speech."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from tfllm.errors import SettingError
from tfllm.tasks.base import Task, float32

if TYPE_CHECKING:
    import keras


class TokenClassification(Task):
    """A head on every token; a word's label stands at its first piece."""

    kind: Literal["token_classification"] = "token_classification"
    labels: tuple[str, ...] = ()
    """Tags (`O`, `B-PER`, `I-PER`, ...) in the order of the outputs; empty: from the data."""

    def model(self, backbone: keras.Model, config: Any) -> keras.Model:
        """Logits [B, T, C]."""
        import keras

        from tfllm.layers import heads

        if not self.labels:
            raise SettingError(
                "task.labels is empty. Name the tags, or give training data that has them."
            )
        logits = float32(heads.tag(backbone.output, config, len(self.labels)))
        return keras.Model(backbone.input, logits, name=self.kind)
