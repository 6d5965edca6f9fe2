"""Whether the second text follows the first (Devlin et al. 2019, section 3.1, task 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from tfllm.tasks import label_names
from tfllm.tasks.base import Answer, Signatures, Task
from tfllm.tasks.classification import softmax
from tfllm.tasks.features import (
    ClassWeights,
    Example,
    Features,
    encode_texts,
    features_from_encodings,
)
from tfllm.tasks.metric_directions import LABEL_METRICS

if TYPE_CHECKING:
    import keras

    from tfllm.layers.types import ModelConfig
    from tfllm.tokenizers.base import Tokenizer
    from tfllm.tokenizers.graph.base import TokenizerGraph

LABELS = ("is_next", "not_next")  # in the order of the outputs


class NextSentence(Task):
    """A head of two on the summary of the first token: 0 follows, 1 does not."""

    head_layers: ClassVar = ("pooler", "next_sentence")
    label_fields: ClassVar = ("label",)
    pooled: ClassVar = True

    kind: Literal["next_sentence"] = "next_sentence"

    @property
    def takes_pair(self) -> bool:
        """Always."""
        return True

    @property
    def measure(self) -> str:
        """That of classification."""
        return "single_label"

    @property
    def headline_metrics(self) -> tuple[str, ...]:
        """Next-sentence accuracy."""
        return ("accuracy",)

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Those of classification."""
        return LABEL_METRICS

    def model(self, backbone: keras.Model, config: ModelConfig) -> keras.Model:
        """Put the next-sentence head on a backbone: logits [B, 2]."""
        import keras

        from tfllm.layers import heads

        scores = heads.next_sentence_head(backbone.output, config)
        return keras.Model(backbone.input, scores, name=self.kind)

    def features(
        self, examples: Sequence[Example], tokenizer: Tokenizer, *, targets: bool = True
    ) -> Features:
        """Return one row per pair `text`, `text_pair`. `label`: is_next or 0, not_next or 1."""
        encodings = encode_texts(examples, tokenizer, self.max_length, pair=True)
        if not (targets and label_names.have_field(examples, "label")):
            return features_from_encodings(encodings, tokenizer)
        indices = [
            label_names.label_index(example["label"], LABELS, example) for example in examples
        ]
        return features_from_encodings(
            encodings, tokenizer, targets=[np.asarray(index, np.int32) for index in indices]
        )

    def loss(
        self, label_smoothing: float = 0.0, class_weights: ClassWeights = None
    ) -> keras.losses.Loss:
        """Return softmax cross entropy."""
        from tfllm.tasks import losses

        return losses.CrossEntropy(
            label_smoothing, losses.ordered_class_weights(class_weights, LABELS)
        )

    def metrics(self) -> list[keras.metrics.Metric]:
        """Accuracy."""
        from tfllm.tasks import metrics

        return [metrics.Accuracy()]

    def answers(self, outputs: Sequence[np.ndarray], features: Features) -> list[Answer]:
        """Return `{"label": "is_next" or "not_next", "scores": {label: probability}}`."""
        return [
            answer_from_probabilities(softmax(np.asarray(output, np.float32))) for output in outputs
        ]

    def answer_from_signature(self, example: Example, outputs: Mapping[str, np.ndarray]) -> Answer:
        """Return the answer from `is_next`, a probability."""
        return answer_from_probabilities(np.array([outputs["is_next"], 1 - outputs["is_next"]]))

    def signatures(self, model: keras.Model, graph_tokenizer: TokenizerGraph) -> Signatures:
        """Return `serving_default`: text, text_pair string[B] -> is_next float[B]; and `tokens`."""
        import tensorflow as tf

        from tfllm.tasks import serving_graph

        def answer(text: tf.Tensor, text_pair: tf.Tensor) -> dict[str, tf.Tensor]:
            raw = serving_graph.run_by_length(
                model, graph_tokenizer(text, text_pair, max_length=self.max_length)
            )
            return {"is_next": tf.nn.softmax(raw)[:, 0]}

        return {
            "serving_default": serving_graph.over_texts(answer, ["text", "text_pair"]),
            "tokens": serving_graph.tokens_signature(model),
        }


def answer_from_probabilities(probabilities: np.ndarray) -> Answer:
    """Return the answer for the probabilities [2] of LABELS."""
    scores = {name: float(value) for name, value in zip(LABELS, probabilities, strict=True)}
    return {"label": LABELS[int(np.argmax(probabilities))], "scores": scores}
