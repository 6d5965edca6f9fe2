"""What every task has: its settings, and all that other packages ask of it.

examples --features--> Features --batch--> model --> outputs --answers--> JSON dicts
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from tfllm.config import Settings
from tfllm.errors import SettingError
from tfllm.tasks.features import ClassWeights, Example, Features, TokenCorpus

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

    from tfllm.layers.types import ModelConfig
    from tfllm.tasks.huggingface import HuggingFaceHead
    from tfllm.tokenizers.base import Tokenizer
    from tfllm.tokenizers.graph.base import TokenizerGraph

Answer = dict[str, Any]
"""What a model answers to one example: a JSON line of `tfllm predict`."""
Signatures = dict[str, "tf.types.experimental.PolymorphicFunction"]
"""Serving signatures by name."""
Measure = Callable[..., dict[str, Any]]
Backbone = Literal["encoder", "decoder", "encoder_decoder"]


class Task(Settings):
    """What a model is for: head, features from examples, loss and metrics, answers, signatures.

    Settings are saved inside checkpoints and named in recipes: `task: {kind: classification, ...}`.

    The class variables and properties say all that other packages ask of a task, so that no other
    file lists kinds of task. A new task sets those that differ from the defaults.
    """

    generates: ClassVar[Literal["", "continuation", "target"]] = ""
    """What text its models write: the continuation of a prompt, or a target after a source."""
    backbones: ClassVar[tuple[Backbone, ...]] = ("encoder",)
    """The kinds of backbone that its head stands on."""
    head_layers: ClassVar[tuple[str, ...]] = ()
    """Names of the layers after the backbone. They start untrained, so LoRA trains them in full."""
    label_fields: ClassVar[tuple[str, ...]] = ()
    """Fields of an example without which a model cannot be measured on it."""
    evaluated_on: ClassVar[Literal["predictions", "masked_tokens", "log_probs", "generations"]] = (
        "predictions"
    )
    """What `evaluation` asks a model for: its answers, ranks of masked tokens, log-probabilities of
    tokens, or generated texts."""
    vocabulary_outputs: ClassVar[bool] = False
    """Whether outputs are logits over the vocabulary for every token: too many to keep."""
    pooled: ClassVar[bool] = False
    """Whether the output is one row [C] a text, without a position axis."""
    softmax_over: ClassVar[Literal["", "classes", "positions"]] = "classes"
    """The axis over which logits are a distribution; "" where they are none."""
    output_name: ClassVar[str] = "logits"
    """Name of the model's output in exported files."""
    pipelines: ClassVar[tuple[str, ...]] = ()
    """Names of transformers' pipelines that its models answer to."""
    mediapipe_title: ClassVar[str] = ""
    """MediaPipe's text task for its models; "" where there is none."""
    hf_prefixed: ClassVar[bool] = True
    """Whether Hugging Face writes the backbone's tensors under the family's prefix, as beside a
    head."""
    encodes_pairs_apart: ClassVar[bool] = False
    """Whether `text` and `text_pair` are rows of their own, not one row of both."""

    kind: str = ""
    """The task's name in TASKS."""
    max_length: int = Field(default=128, ge=3)
    """Tokens of one row, special tokens included."""

    @property
    def required_fields(self) -> tuple[tuple[str, ...], ...]:
        """Alternatives of fields that an example to answer must have, the usual one first."""
        return (("text", "text_pair"),) if self.takes_pair else (("text",),)

    @property
    def takes_pair(self) -> bool:
        """Whether an input is a pair of texts, `text` and `text_pair`."""
        return False

    @property
    def measure(self) -> str | Measure:
        """What `tfllm evaluate` computes.

        A name in `evaluation.metrics.MEASURES`, or a function of the task's own,
        `measure(answers, examples) -> {name: value}`.
        """
        raise NotImplementedError

    @property
    def measure_options(self) -> dict[str, Any]:
        """Keyword arguments of the measure that come from the task's settings."""
        return {}

    @property
    def headline_metrics(self) -> tuple[str, ...]:
        """The metrics by which models of the task are compared; higher is better.

        Where one number is needed, it is the first of them that was measured.
        """
        return ()

    @property
    def metric_names(self) -> tuple[str, ...]:
        """All metrics by name, from training and evaluation, `loss` apart."""
        return ()

    @property
    def head_key(self) -> tuple[Hashable, ...]:
        """What decides the head's variables and their meaning: heads with equal keys are alike."""
        return (self.kind,)

    def check_label(self, example: Example) -> None:
        """Check an example's label.

        Raises:
            DataError: The label is not known; the message names file and line.
        """

    @classmethod
    def from_hf(cls, source: HuggingFaceHead) -> Task:
        """Return the task of a Hugging Face directory with this head.

        Raises:
            CheckpointError: The directory's settings are not those of such a head.
        """
        return cls(max_length=source.length_of_texts())

    def hf_config(self, before: Mapping[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
        """Return what the head adds to Hugging Face's `config.json`, by key.

        Args:
            before: The `config.json` that the checkpoint came from, empty where it came from none.
            tokenizer: The model's tokenizer.
        """
        return {}

    def hf_generation_config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return `generation_config.json` of a model that has none, from its `config.json`."""
        return {}

    def check_hf(self, model_type: str) -> None:
        """Check that Hugging Face's models of `model_type` have this head.

        Raises:
            CheckpointError: They lack it.
        """

    def infer_settings(self, examples: Sequence[Example]) -> Task:
        """Return a copy in which unset settings (labels) are those of the training examples."""
        return self

    def with_decoder_start_token_id(self, decoder_start_token_id: int | None) -> Task:
        """Return a copy whose decoder starts with this token, where the settings name none."""
        return self

    def model(self, backbone: keras.Model, config: ModelConfig) -> keras.Model:
        """Put the head on a backbone.

        Args:
            backbone: A functional model from int32 inputs [B, T] to hidden states [B, T, D].
            config: The family's Config.

        Returns:
            A functional model with the backbone's inputs and a float32 output: [B, C] of a
            `pooled` task, [B, T, C] of others; or several such outputs by name.
        """
        raise NotImplementedError

    def training_model(self, model: keras.Model) -> keras.Model:
        """Return the model as `tfllm train` trains it.

        It is the model itself, or the same layers with other inputs and outputs, which `loss` and
        `metrics` know.

        Keras' own `fit` needs it where rows are groups (pairs of embedding). The other kind, scores
        at masked tokens only, gives the same losses as the model itself, which `fit` takes.
        """
        return model

    def export_task(self) -> Task:
        """Return the task that a model is exported for: this one, or one that can be served."""
        return self

    def features(
        self, examples: Sequence[Example], tokenizer: Tokenizer, *, targets: bool = True
    ) -> Features:
        """Tokenize examples into rows.

        Args:
            examples: Dicts of fields.
            tokenizer: The model's tokenizer.
            targets: Whether labels are read, where the examples have them. False for prediction:
                a file may have labels that the model does not know.

        Raises:
            DataError: An example cannot be used.
        """
        raise NotImplementedError

    def load_features(self, examples: Sequence[Example], tokenizer: Tokenizer) -> Features:
        """Return `features` of examples, or of the prepared corpus that they are read from.

        Args:
            examples: Dicts of fields, or a sequence with the attribute `corpus`.
            tokenizer: The model's tokenizer.

        Raises:
            SettingError: The corpus has the tokens of another vocabulary.
            DataError: An example cannot be used.
        """
        from tfllm.tokenizers.loading import load_tokenizer

        corpus = getattr(examples, "corpus", None)
        if corpus is None:
            return self.features(examples, tokenizer)
        if load_tokenizer(corpus.tokenizer_directory).vocabulary != tokenizer.vocabulary:
            raise SettingError(
                f"'{corpus.directory}' was prepared with another vocabulary than the model's. "
                "Prepare it with the model's (tokenizer.path, or model.from), or name its texts."
            )
        return self.corpus_features(corpus, tokenizer)

    def corpus_features(self, corpus: TokenCorpus, tokenizer: Tokenizer) -> Features:
        """Return rows over tokenized documents, read when a batch needs them. Not of every task.

        Args:
            corpus: The tokenized documents.
            tokenizer: The tokenizer that they were tokenized with.
        """
        raise NotImplementedError

    def for_epoch(self, features: Features, seed: int = 0, epoch: int = 0) -> Features:
        """Return the features as training sees them in one epoch; validation takes epoch 0.

        The same object for most tasks. Where chance takes part (masked_lm), a function of
        (seed, epoch, row) alone, so that a resumed run sees what an uninterrupted one would.

        Args:
            features: Of `features` or `corpus_features`.
            seed: The run's seed.
            epoch: The epoch, from 0.
        """
        return features

    def loss(
        self, label_smoothing: float = 0.0, class_weights: ClassWeights = None
    ) -> keras.losses.Loss:
        """Return the Keras loss over (targets, outputs) of `Features.batch` and `training_model`.

        Args:
            label_smoothing: Share of the target that goes to all classes alike.
            class_weights: A number per label in the labels' order, or {label: number}.

        Raises:
            SettingError: An option is set that the task has no use for.
        """
        raise NotImplementedError

    def metrics(self) -> list[keras.metrics.Metric] | dict[str, list[keras.metrics.Metric]]:
        """Return Keras metrics over (targets, outputs), for progress and the best epoch.

        A list for every output where the model has several, as `compile(metrics=...)` takes it.
        """
        raise NotImplementedError

    def answers(self, outputs: Sequence[np.ndarray], features: Features) -> list[Answer]:
        """Return one JSON dict per example.

        Args:
            outputs: The model's output of every row of `features`; [T] axes may be padded.
            features: Of `features(..., targets=False)`.
        """
        raise NotImplementedError

    def pair_answer(self, first: np.ndarray, second: np.ndarray) -> Answer:
        """Return the answer for a pair, where `encodes_pairs_apart`.

        Args:
            first: The output [D] for the first text.
            second: The output [D] for the second text.
        """
        raise NotImplementedError

    def answer_from_signature(self, example: Example, outputs: Mapping[str, np.ndarray]) -> Answer:
        """Return the answer for one example from the outputs of the signature `serving_default`.

        Args:
            example: The example.
            outputs: Values by name, without the batch axis.
        """
        raise NotImplementedError

    def signatures(self, model: keras.Model, graph_tokenizer: TokenizerGraph) -> Signatures:
        """Return serving signatures: name -> tf.function, every input and output with a batch axis.

        The functions capture the model's variables and the tokenizer's tables; keep both alive.
        `METHODS` in tfllm.tasks names each signature's method for TF Serving.

        Args:
            model: The task's model, as `model` returns it.
            graph_tokenizer: The in-graph tokenizer.
        """
        raise NotImplementedError


class NextToken(Task):
    """A task whose outputs are scores of the next token, [B, T, V]."""

    vocabulary_outputs: ClassVar = True

    def loss(
        self, label_smoothing: float = 0.0, class_weights: ClassWeights = None
    ) -> keras.losses.Loss:
        """Return softmax cross entropy over the tokens of the batch that have targets."""
        from tfllm.tasks import losses

        losses.reject_options(self.kind, class_weights=class_weights)
        return losses.CrossEntropy(label_smoothing)

    def metrics(self) -> list[keras.metrics.Metric]:
        """Accuracy and perplexity over the learned tokens."""
        from tfllm.tasks import metrics

        return [metrics.Accuracy(), metrics.Perplexity()]
