"""A vector per text whose cosine says how alike two texts are (Reimers and Gurevych 2019)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from tfllm.errors import DataError, did_you_mean
from tfllm.tasks import label_names
from tfllm.tasks.base import Answer, Signatures, Task
from tfllm.tasks.features import (
    ClassWeights,
    Example,
    Features,
    features_from_encodings,
    text_field,
    where,
)

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

    from tfllm.layers.types import ModelConfig
    from tfllm.tokenizers.base import Tokenizer
    from tfllm.tokenizers.graph.base import TokenizerGraph

log = logging.getLogger(__name__)

SHOWN_LABELS = 5


class Embedding(Task):
    """Pooled hidden states, trained with the other texts of the batch as negatives."""

    backbones: ClassVar = ("encoder", "decoder")
    head_layers: ClassVar = ("pooler",)
    label_fields: ClassVar = ("text_pair",)
    pooled: ClassVar = True
    softmax_over: ClassVar = ""
    output_name: ClassVar = "embedding"
    pipelines: ClassVar = ("feature-extraction",)
    mediapipe_title: ClassVar = "TextEmbedder"
    hf_prefixed: ClassVar = False
    encodes_pairs_apart: ClassVar = True

    kind: Literal["embedding"] = "embedding"
    pooling: Literal["mean", "first", "max", "last", "weighted_mean", "root_mean", "pooler"] = (
        "mean"
    )
    """Over real tokens the mean or the maximum, the first or the last token, the mean weighted by
    position, the sum over the root of their number, or the family's own pooler."""
    normalize: bool = True
    """Vectors of length 1."""
    prompts: dict[str, str] = {}
    """Texts to put before every text, by name ("query", "document")."""
    prompt_name: str | None = None
    """Which of `prompts` is put before every text; unset: none."""
    similarity: Literal["cosine", "dot", "euclidean", "manhattan"] = "cosine"
    """How the vectors of a pair are compared; distances count as negative numbers."""
    scale: float = Field(default=20.0, gt=0)
    """Training: factor of the cosines before the softmax over the batch."""
    score_range: tuple[float, float] | None = None
    """Training on pairs with a number as `label` (how alike they are): the numbers that stand for
    cosines 0 and 1, the lower one first. Unset: pairs are positive examples, without numbers."""

    @field_validator("score_range")
    @classmethod
    def _check_range(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not (np.isfinite(value).all() and value[0] < value[1]):
            raise ValueError(
                "give the lower number first and a higher one second, for example [0, 5]"
            )
        return value

    @model_validator(mode="after")
    def _known_prompt(self) -> Embedding:
        if self.prompt_name is not None and self.prompt_name not in self.prompts:
            known = did_you_mean(self.prompt_name, self.prompts)
            raise ValueError(f"there is no prompt '{self.prompt_name}' in prompts. {known}".strip())
        return self

    @property
    def prompt(self) -> str:
        """The text that is put before every text."""
        return "" if self.prompt_name is None else self.prompts[self.prompt_name]

    @property
    def measure(self) -> str:
        """Correlation with scores, or retrieval."""
        return "embeddings"

    @property
    def headline_metrics(self) -> tuple[str, ...]:
        """Spearman's rho of pairs with scores, else the mean reciprocal rank."""
        return ("spearman", "mrr")

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Of pairs with scores, and of retrieval."""
        recalls = ("recall_at_1", "recall_at_5", "recall_at_10")
        return ("accuracy", "mrr", *recalls, "pearson", "spearman")

    @property
    def head_key(self) -> tuple[Hashable, ...]:
        """Whether there is a pooler: other poolings have no variables."""
        return (self.kind, self.pooling == "pooler")

    def model(self, backbone: keras.Model, config: ModelConfig) -> keras.Model:
        """Put the pooling on a backbone: vectors [B, D]."""
        import keras

        from tfllm.layers import heads

        vectors = heads.text_embedding(
            backbone.output, backbone.input["padding_mask"], self.pooling, self.normalize, config
        )
        return keras.Model(backbone.input, vectors, name=self.kind)

    def features(
        self, examples: Sequence[Example], tokenizer: Tokenizer, *, targets: bool = True
    ) -> Features:
        """Return one row per text, or two rows, one after the other, per example with `text_pair`.

        With pairs `group` is 2, so that a batch has one entry per pair: inputs [B, 2, T], targets
        [B], for `training_model`. With `score_range` the target is the cosine that the label asks
        for; without, it is a zero that the loss does not read: a pair is the positive example,
        all other second texts of the batch are negatives.
        """
        texts = [self.prompt + text_field(example) for example in examples]
        if not label_names.have_field(examples, "text_pair"):
            return features_from_encodings(
                tokenizer.encode_batch(texts, max_length=self.max_length), tokenizer
            )
        pairs = [self.prompt + text_field(example, "text_pair") for example in examples]
        interleaved = [text for both in zip(texts, pairs, strict=True) for text in both]
        encodings = tokenizer.encode_batch(interleaved, max_length=self.max_length)
        return features_from_encodings(
            encodings,
            tokenizer,
            example=np.repeat(np.arange(len(examples)), 2),
            targets=self._targets(examples) if targets else None,
            group=2,
        )

    def _targets(self, examples: Sequence[Example]) -> list[np.ndarray] | None:
        """Return one per row, so two per pair; None where the pairs lack the scores to learn."""
        if self.score_range is None:
            self._say_labels_unused(examples)
            return [np.zeros((), np.int32)] * (2 * len(examples))
        if not label_names.have_field(examples, "label"):
            return None
        cosines = [self._cosine(example) for example in examples]
        return [np.asarray(cosine, np.float32) for cosine in cosines for _ in range(2)]

    def _cosine(self, example: Example) -> np.ndarray:
        """The cosine that the label asks for, between 0 and 1."""
        low, high = self.score_range or (0.0, 1.0)
        number = label_names.numeric_label(example, 1)
        if not low <= number <= high:
            raise DataError(
                f"{where(example)}the label {example['label']} lies outside task.score_range "
                f"[{low:g}, {high:g}]. Correct the line, or widen the range."
            )
        return (number - low) / (high - low)

    @staticmethod
    def _say_labels_unused(examples: Sequence[Example]) -> None:
        labels = {str(example["label"]) for example in examples if example.get("label") is not None}
        if len(labels) > 1:
            log.warning(
                "The pairs have labels (%s), which nothing reads: every pair is learned as two "
                "texts that belong together. Set task.score_range to learn the labels, or leave "
                "out the pairs that do not belong together.",
                ", ".join(sorted(labels)[:SHOWN_LABELS]),
            )

    def training_model(self, model: keras.Model) -> keras.Model:
        """Build a model of the same layers over pairs: int32 [B, 2, T] to vectors [B, 2, D]."""
        from tfllm.layers import pairs

        return pairs.apply_to_pairs(model)

    def loss(
        self, label_smoothing: float = 0.0, class_weights: ClassWeights = None
    ) -> keras.losses.Loss:
        """Return cross entropy of each text's partner among the batch's second texts.

        With `score_range` it is the squared difference of the pair's cosine and its target.
        """
        from tfllm.tasks import losses

        losses.reject_options(
            self.kind, label_smoothing=label_smoothing, class_weights=class_weights
        )
        if self.score_range is not None:
            return losses.CosineError()
        return losses.InBatchNegatives(self.scale)

    def metrics(self) -> list[keras.metrics.Metric]:
        """Share of pairs whose second text is the nearest in the batch; none for scores."""
        from tfllm.tasks import metrics

        if self.score_range is not None:
            return []
        return [metrics.mean_metric("accuracy", metrics.in_batch_accuracy)]

    def answers(self, outputs: Sequence[np.ndarray], features: Features) -> list[Answer]:
        """Return `{"embedding": [...]}`; of pairs also `embedding_pair` and `similarity`."""
        vectors = [np.asarray(output, np.float32) for output in outputs]
        if features.group == 1:
            return [{"embedding": vector.tolist()} for vector in vectors]
        return [self.pair_answer(*vectors[row : row + 2]) for row in range(0, len(vectors), 2)]

    def pair_answer(self, first: np.ndarray, second: np.ndarray) -> Answer:
        """Return the answer for the vectors [D] of a pair of texts."""
        return {
            "embedding": first.tolist(),
            "embedding_pair": second.tolist(),
            "similarity": SIMILARITIES[self.similarity](first, second),
        }

    def answer_from_signature(self, example: Example, outputs: Mapping[str, np.ndarray]) -> Answer:
        """Return the answer from `embedding`."""
        return {"embedding": outputs["embedding"].tolist()}

    def signatures(self, model: keras.Model, graph_tokenizer: TokenizerGraph) -> Signatures:
        """Return `serving_default`: text string[B] -> embedding float[B, D]; and `tokens`."""
        import tensorflow as tf

        from tfllm.tasks import serving_graph

        @serving_graph.signature(serving_graph.text_inputs("text"))
        def serve(text: tf.Tensor) -> dict[str, tf.Tensor]:
            text = tf.strings.join([self.prompt, text]) if self.prompt else text
            packed = graph_tokenizer(text, max_length=self.max_length)
            return {"embedding": serving_graph.run_by_length(model, packed)}

        return {
            "serving_default": serve,
            "tokens": serving_graph.tokens_signature(model, "embedding"),
        }


def _cosine(first: np.ndarray, second: np.ndarray) -> float:
    lengths = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(first @ second) / lengths if lengths else 0.0


# sentence-transformers' names.
SIMILARITIES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "cosine": _cosine,
    "dot": lambda first, second: float(first @ second),
    "euclidean": lambda first, second: -float(np.linalg.norm(first - second)),
    "manhattan": lambda first, second: -float(np.abs(first - second).sum()),
}
