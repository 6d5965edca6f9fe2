"""What tasks share that tell the next token: their loss and their measures."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from tfllm.tasks.base import ClassWeights, Task

if TYPE_CHECKING:
    import keras


class NextToken(Task):
    """A task whose outputs are scores of the next token, [B, T, V]."""

    vocabulary_outputs: ClassVar = True

    def loss(
        self, label_smoothing: float = 0.0, class_weights: ClassWeights = None
    ) -> keras.losses.Loss:
        """Softmax cross entropy over the learned tokens of the batch."""
        from tfllm.tasks import losses

        losses.refuse(self.kind, class_weights=class_weights)
        return losses.CrossEntropy(label_smoothing)

    def metrics(self) -> list[keras.metrics.Metric]:
        """Accuracy and perplexity over the learned tokens."""
        from tfllm.tasks import metrics

        return [metrics.Accuracy(), metrics.Perplexity()]
