"""One answer about a text or a pair of texts: a label, several labels, or a number."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from tfllm.errors import CheckpointError
from tfllm.tasks import huggingface, label_names
from tfllm.tasks.base import Answer, Signatures, Task
from tfllm.tasks.features import (
    ClassWeights,
    Example,
    Features,
    encode_texts,
    features_from_encodings,
)
from tfllm.tasks.huggingface import HuggingFaceHead, Problem, label_maps, problem_of
from tfllm.tasks.metric_directions import LABEL_METRICS

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

    from tfllm.layers.types import ModelConfig
    from tfllm.tokenizers.base import Tokenizer
    from tfllm.tokenizers.graph.base import TokenizerGraph


class Classification(Task):
    """A head on the first token (Devlin et al. 2019, section 3.2), of decoders on the last."""

    backbones: ClassVar = ("encoder", "decoder")
    head_layers: ClassVar = ("pooler", "classifier")
    label_fields: ClassVar = ("label",)
    pooled: ClassVar = True
    pipelines: ClassVar = ("text-classification",)
    mediapipe_title: ClassVar = "TextClassifier"

    kind: Literal["classification"] = "classification"
    labels: label_names.Labels = ()
    """Names in the order of the outputs; empty: config in the training data, sorted."""
    problem: Problem = "single_label"
    """Exactly one label, any number of them, or a number."""
    pair: bool = False
    """Two texts per example, `text` and `text_pair`."""
    pooling: Literal["first", "mean"] = "first"
    """What the head sees: the first token through the family's pooler, as Hugging Face's heads do
    (in decoders the last token, which alone has seen all others), or the mean over all tokens, as
    sentence encoders were trained. Only "first" can be converted back to Hugging Face."""

    @property
    def size(self) -> int:
        """Width of the output. Raises SettingError while the labels are not known."""
        if self.problem == "regression":
            return max(1, len(self.labels))
        return label_names.count_labels(self.labels)

    @property
    def takes_pair(self) -> bool:
        """The setting `pair`."""
        return self.pair

    @property
    def measure(self) -> str:
        """The measure of the problem."""
        return self.problem

    @property
    def headline_metrics(self) -> tuple[str, ...]:
        """One metric for each problem."""
        return {
            "single_label": ("accuracy",),
            "multi_label": ("f1_micro",),
            "regression": ("spearman",),
        }[self.problem]

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Those of the problem."""
        return {
            "single_label": LABEL_METRICS,
            "multi_label": (*LABEL_METRICS, "hamming_loss"),
            "regression": ("pearson", "spearman", "mse", "mae"),
        }[self.problem]

    @property
    def head_key(self) -> tuple[Hashable, ...]:
        """The labels, the problem and the pooling."""
        return (self.kind, self.labels, self.problem, self.pooling)

    def check_label(self, example: Example) -> None:
        """Check an example's label. Raises DataError for an unknown one."""
        self.target(example)

    @classmethod
    def from_hf(cls, source: HuggingFaceHead) -> Classification:
        """Return the task with the labels of `id2label` and the problem of `problem_type`."""
        length, labels = source.length_of_texts(), source.labels
        problem = problem_of(source.config, labels, source.source)
        return cls(labels=labels, problem=problem, max_length=length)

    def hf_config(self, before: Mapping[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
        """Return `id2label`, `label2id`, and `problem_type` if transformers would infer another."""
        labels = self.labels or ("LABEL_0",)  # a number without a name
        config = label_maps(labels, before)
        return config | huggingface.problem_type(before, labels, self.problem)

    def check_hf(self, model_type: str) -> None:
        """Check that Hugging Face's classifiers have this head.

        Raises:
            CheckpointError: It reads the mean over all tokens.
        """
        if self.pooling == "mean":
            raise CheckpointError(
                f"Hugging Face's classifiers for {model_type} read the first token; this one reads "
                "the mean over all (task.pooling). Keep it in tfllm's own format, or train with "
                "task.pooling: first."
            )

    def infer_settings(self, examples: Sequence[Example]) -> Classification:
        """Take labels from the examples if none are named; set `pair` if all have `text_pair`."""
        changes: dict[str, Any] = {}
        if (
            not self.labels
            and self.problem != "regression"
            and label_names.have_field(examples, "label")
        ):
            changes["labels"] = label_names.collect_labels(
                (example, label) for example in examples for label in _as_list(example["label"])
            )
        if examples and not self.pair:
            changes["pair"] = label_names.have_field(examples, "text_pair")
        return self.model_copy(update=changes)

    def model(self, backbone: keras.Model, config: ModelConfig) -> keras.Model:
        """Put the classifier on a backbone: logits [B, C]; regression: values [B, 1] or [B, C]."""
        import keras

        from tfllm.layers import heads

        mask = backbone.input["padding_mask"]
        scores = heads.classification_head(backbone.output, config, self.size, mask, self.pooling)
        return keras.Model(backbone.input, scores, name=self.kind)

    def features(
        self, examples: Sequence[Example], tokenizer: Tokenizer, *, targets: bool = True
    ) -> Features:
        """Return one row per example, of `text` or of `text` and `text_pair`.

        Targets: int [] per row; multi-label float [C] of 0 and 1; regression float [] (or [C]).
        """
        encodings = encode_texts(examples, tokenizer, self.max_length, pair=self.pair)
        if not (targets and label_names.have_field(examples, "label")):
            return features_from_encodings(encodings, tokenizer)
        return features_from_encodings(
            encodings, tokenizer, targets=[self.target(example) for example in examples]
        )

    def target(self, example: Example) -> np.ndarray:
        """Return the target of one example. Raises DataError for an unknown label."""
        label = example["label"]
        if self.problem == "regression":
            return label_names.numeric_label(example, self.size)
        if self.problem == "single_label":
            return np.asarray(label_names.label_index(label, self.labels, example), np.int32)
        result = np.zeros(self.size, np.float32)
        result[list(label_names.label_indices(label, self.labels, example))] = 1.0
        return result

    def loss(
        self, label_smoothing: float = 0.0, class_weights: ClassWeights = None
    ) -> keras.losses.Loss:
        """Return softmax or sigmoid cross entropy, or squared error, as `problem` says."""
        from tfllm.tasks import losses

        if self.problem == "regression":
            losses.reject_options(
                "regression", label_smoothing=label_smoothing, class_weights=class_weights
            )
            return losses.SquaredError()
        weights = losses.ordered_class_weights(class_weights, self.labels)
        if self.problem == "multi_label":
            return losses.SigmoidCrossEntropy(label_smoothing, weights)
        return losses.CrossEntropy(label_smoothing, weights)

    def metrics(self) -> list[keras.metrics.Metric]:
        """Accuracy (multi-label: of single labels), or squared and absolute error."""
        from tfllm.tasks import metrics

        if self.problem == "regression":
            return [
                metrics.mean_metric("mse", metrics.squared_error),
                metrics.mean_metric("mae", metrics.absolute_error),
            ]
        if self.problem == "multi_label":
            return [metrics.mean_metric("accuracy", metrics.label_accuracy)]
        return [metrics.Accuracy()]

    def answers(self, outputs: Sequence[np.ndarray], features: Features) -> list[Answer]:
        """Return `{"label", "scores": {label: probability}}`.

        Multi-label: `label` is the list of labels above 1/2. Regression: `label` is the number
        (with several named numbers: `scores` alone).
        """
        return [self.answer_from_logits(np.asarray(output, np.float32)) for output in outputs]

    def answer_from_logits(self, scores: np.ndarray) -> Answer:
        """Return the answer for raw scores float32 [C]."""
        if self.problem == "regression":
            if self.size == 1:
                return {"label": float(scores[0])}
            return {"scores": _by_label(self.labels, scores)}
        if self.problem == "multi_label":
            return self.answer_from_probabilities(1.0 / (1.0 + np.exp(-scores)))
        return self.answer_from_probabilities(softmax(scores))

    def answer_from_probabilities(self, probabilities: np.ndarray) -> Answer:
        """Return the answer for probabilities [C], for example those that a signature gave."""
        scores = _by_label(self.labels, probabilities)
        if self.problem == "multi_label":
            return {"label": [name for name, p in scores.items() if p > 0.5], "scores": scores}
        return {"label": self.labels[int(np.argmax(probabilities))], "scores": scores}

    def answer_from_signature(self, example: Example, outputs: Mapping[str, np.ndarray]) -> Answer:
        """Return the answer from `scores`, or from `score` of a number."""
        if "score" in outputs:
            return {"label": float(outputs["score"])}
        if self.problem == "regression":
            return {"scores": _by_label(self.labels, outputs["scores"])}
        return self.answer_from_probabilities(outputs["scores"])

    def signatures(self, model: keras.Model, graph_tokenizer: TokenizerGraph) -> Signatures:
        """Return `serving_default`, `tokens`, and `classify` or `regress`.

        serving_default: text (text_pair) string[B] -> label string[B], scores float[B, C], the
            labels in the task's order. Multi-label: every score is a probability of its own, and
            label is the best one. Regression: -> score float[B]; with several named numbers
            scores float[B, C].
        classify: inputs string[B], serialised tf.Example with the features text (text_pair)
            -> classes string[B, C], scores float[B, C].
        regress: the same inputs -> outputs float[B] (a task with one number only).
        tokens: token_ids, segment_ids, padding_mask int32[B, T] -> logits float[B, C].
        """
        import tensorflow as tf

        from tfllm.tasks import serving_graph

        names = ["text", "text_pair"] if self.pair else ["text"]

        def scores(*texts: tf.Tensor) -> tf.Tensor:
            logits = serving_graph.run_by_length(
                model, graph_tokenizer(*texts, max_length=self.max_length)
            )
            activation = {"single_label": tf.nn.softmax, "multi_label": tf.sigmoid}
            return activation.get(self.problem, tf.identity)(logits)

        def answer(*texts: tf.Tensor) -> dict[str, tf.Tensor]:
            values = scores(*texts)
            if self.problem == "regression":
                return {"score": values[:, 0]} if self.size == 1 else {"scores": values}
            best = tf.argmax(values, axis=-1, output_type=tf.int32)
            return {"label": tf.gather(tf.constant(self.labels), best), "scores": values}

        result = {
            "serving_default": serving_graph.over_texts(answer, names),
            "tokens": serving_graph.tokens_signature(model),
        }
        examples = [tf.TensorSpec([None], tf.string, "inputs")]
        if self.problem != "regression":

            @serving_graph.signature(examples)
            def classify(inputs: tf.Tensor) -> dict[str, tf.Tensor]:
                values = scores(*serving_graph.parse_examples(inputs, names))
                classes = tf.tile(tf.constant(self.labels)[None], [tf.shape(values)[0], 1])
                return {"classes": classes, "scores": values}

            result["classify"] = classify
        elif self.size == 1:

            @serving_graph.signature(examples)
            def regress(inputs: tf.Tensor) -> dict[str, tf.Tensor]:
                return {"outputs": scores(*serving_graph.parse_examples(inputs, names))[:, 0]}

            result["regress"] = regress
        return result


def softmax(scores: np.ndarray) -> np.ndarray:
    """Return the probabilities float32 [..., C] of logits float32 [..., C]."""
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def _by_label(names: Sequence[str], values: np.ndarray) -> dict[str, float]:
    return {name: float(value) for name, value in zip(names, values, strict=True)}


def _as_list(label: Any) -> list[Any]:
    return list(label) if isinstance(label, list | tuple) else [label]
