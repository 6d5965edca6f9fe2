"""One answer about a text or a pair of texts: a label, several labels, or a number."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from tfllm.errors import SettingError
from tfllm.tasks.base import Task, float32

if TYPE_CHECKING:
    import keras


class Classification(Task):
    """A head on the summary of the first token (Devlin et al. 2019, section 3.2)."""

    kind: Literal["classification"] = "classification"
    labels: tuple[str, ...] = ()
    """Names in the order of the outputs; empty: found in the training data, sorted."""
    problem: Literal["single_label", "multi_label", "regression"] = "single_label"
    pair: bool = False
    """Two texts per example, `text` and `text_pair`."""

    @property
    def size(self) -> int:
        """Width of the output."""
        if self.problem == "regression":
            return max(1, len(self.labels))
        if not self.labels:
            raise SettingError(
                "task.labels is empty. Name the labels, or give training data that has them."
            )
        return len(self.labels)

    def model(self, backbone: keras.Model, config: Any) -> keras.Model:
        """Logits [B, C]; regression: values [B, 1]."""
        import keras

        from tfllm.layers import heads

        logits = float32(heads.classify(backbone.output, config, self.size))
        return keras.Model(backbone.input, logits, name=self.kind)
