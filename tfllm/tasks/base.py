"""What every task has: its settings, and the rows that it makes of examples.

    examples --features--> Features --batch--> model --> outputs --answers--> JSON dicts

An example is a dict of canonical fields (`text`, `label`, `question`, ...). A row is one model
input; an example gives one row, or several (windows, pairs).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from tfllm.config import Settings
from tfllm.errors import DataError, SettingError

if TYPE_CHECKING:
    import keras

    from tfllm.tasks.huggingface import HuggingFaceHead
    from tfllm.tokenizers.base import Encoding, Tokenizer

IGNORED = -100  # the target of a token that has no part in the loss

Example = Mapping[str, Any]
Answer = dict[str, Any]
Measure = Callable[..., dict[str, Any]]
Backbone = Literal["encoder", "decoder", "encoder_decoder"]
ClassWeights = Mapping[str, float] | Sequence[float] | None


def where(example: Example) -> str:
    """The start of an error message about an example: `file:line: `, or nothing."""
    return f"{example['_where']}: " if example.get("_where") else ""


def text_of(example: Example, name: str = "text") -> str:
    """The text in the field `name`. Raises DataError when there is none."""
    value = example.get(name)
    if isinstance(value, str):
        return value
    raise DataError(
        f"{where(example)}the field '{name}' is missing or not a text "
        f"(fields here: {', '.join(sorted(k for k in example if k != '_where')) or 'none'}). "
        f"Name its column under data.columns, for example '{name}: sentence'."
    )


def encoded(
    examples: Sequence[Example], tokenizer: Tokenizer, max_length: int, *, pair: bool = False
) -> list[Encoding]:
    """Rows of `text`, or of `text` and `text_pair` where all examples have both (`pair`: must)."""
    texts = [text_of(example) for example in examples]
    if pair or any(example.get("text_pair") is not None for example in examples):
        pairs = [text_of(example, "text_pair") for example in examples]
        return tokenizer.encode_batch(texts, pairs, max_length=max_length)
    return tokenizer.encode_batch(texts, max_length=max_length)


def inputs_of(model: keras.Model, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `inputs` that the model asks for (some families have no `segment_ids`)."""
    return {name: inputs[name] for name in model.input}


@dataclass(frozen=True)
class Rows(Sequence[np.ndarray]):
    """Rows made when asked for: row i is `make` of the places begins[i] ... + lengths[i]."""

    begins: np.ndarray
    lengths: np.ndarray
    make: Callable[[np.ndarray], np.ndarray]

    def __len__(self) -> int:
        return len(self.begins)

    def __getitem__(self, row):
        begin = int(self.begins[row])
        return self.make(np.arange(begin, begin + int(self.lengths[row])))


@dataclass(frozen=True)
class Made(Sequence[np.ndarray]):
    """`size` arrays, each made by its number when asked for."""

    size: int
    make: Callable[[int], np.ndarray]

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, row):
        if isinstance(row, slice):
            return [self.make(number) for number in range(*row.indices(self.size))]
        if not -self.size <= row < self.size:
            raise IndexError(row)
        return self.make(int(row) % self.size)


@dataclass(frozen=True)
class Features:
    """Tokenised rows with their targets. Rows of one example follow one another.

    `group` rows (pairs of an embedding task: 2) belong together: a batch has them as one line, so
    that nothing that shuffles or divides batches can part them. Who chooses rows works on the lines
    of `units` and needs no special case:

        rows = features.units[order].ravel()      # order: any choice of range(len(features.units))
        inputs, targets = features.batch(rows)    # int32 [B, T]; of a group [B, group, T]
    """

    token_ids: Sequence[np.ndarray]  # int32 [T_i] per row, special tokens included
    segment_ids: Sequence[np.ndarray] | None  # int32 [T_i]; None: all 0
    example: np.ndarray  # int [rows]: the index of the example that each row came from
    targets: Sequence[np.ndarray] | None  # per row: [], [C], [T_i] or [2]; None without labels
    details: list[dict[str, Any]]  # per row: what `answers` needs (offsets, words, text)
    pad_id: int | None
    group: int = 1
    per_token: bool = False  # targets are [T_i]: padded with IGNORED
    segments: Sequence[np.ndarray] | None = None  # int32 [T_i]: documents of a row; None: all 1
    shift: int = 0  # rows may be moved along their text by less than this, anew in every epoch
    row_lengths: np.ndarray | None = None  # int [rows], where counting them would make the rows
    digest: str | None = None  # names the data, where reading all tokens would take long
    source_lengths: np.ndarray | None = None  # int [rows]: tokens of sources, where rows have them

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of every row: int [rows]."""
        if self.row_lengths is not None:
            return self.row_lengths
        if isinstance(self.token_ids, Rows):
            return self.token_ids.lengths
        return np.array([len(ids) for ids in self.token_ids], dtype=np.int64)

    @property
    def units(self) -> np.ndarray:
        """Row numbers [len(self) / group, group]: the rows of one line stay together."""
        return np.arange(len(self)).reshape(-1, self.group)

    def batch(
        self, rows: Sequence[int] | np.ndarray, length: int | None = None
    ) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
        """Rows padded to `length`, or to their longest: inputs int32 [B, T], and targets.

        Targets are [B], [B, C], [B, 2], or [B, T] padded with -100; None without labels. With a
        `group` the rows must be whole lines of `units`, B is their number, and inputs are
        [B, group, T]. A row longer than `length` is cut.
        """
        lines = np.asarray(rows).reshape(-1, self.group)
        if (lines != lines[:, :1] - lines[:, :1] % self.group + np.arange(self.group)).any():
            raise DataError(
                f"{self.group} rows each belong together, and these do not stand so: {list(rows)}. "
                "Choose among the lines of features.units."
            )
        inputs = self._arrays(rows, length)
        if self.group > 1:
            inputs = {
                name: array.reshape(-1, self.group, array.shape[-1])
                for name, array in inputs.items()
            }
        if self.targets is None:
            return inputs, None
        chosen = [self.targets[row] for row in lines[:, 0]]
        size = inputs["token_ids"].shape[-1]
        return inputs, padded(chosen, size, IGNORED) if self.per_token else np.stack(chosen)

    def inputs(
        self, rows: Sequence[int] | np.ndarray, length: int | None = None
    ) -> dict[str, np.ndarray]:
        """The inputs of any rows, each on its own, as a model that answers takes them: [B, T]."""
        return self.batch(rows, length)[0] if self.group == 1 else self._arrays(rows, length)

    def _arrays(
        self, rows: Sequence[int] | np.ndarray, length: int | None
    ) -> dict[str, np.ndarray]:
        if length is None:
            length = max((len(self.token_ids[row]) for row in rows), default=1)
        return {
            "token_ids": padded([self.token_ids[row] for row in rows], length, self.pad_id or 0),
            "segment_ids": np.zeros((len(rows), length), np.int32)
            if self.segment_ids is None
            else padded([self.segment_ids[row] for row in rows], length, 0),
            "padding_mask": padded([self._mask(row) for row in rows], length, 0),
        }

    def _mask(self, row: int) -> np.ndarray:
        if self.segments is not None:
            return self.segments[row]
        return np.ones(len(self.token_ids[row]))


def made(encodings: Sequence[Encoding], tokenizer: Tokenizer, **more: Any) -> Features:
    """Features of encodings, one row each; `more` are fields of Features that differ."""
    fields: dict[str, Any] = {
        "example": np.arange(len(encodings)),
        "targets": None,
        "details": [{} for _ in encodings],
    }
    return Features(
        token_ids=[np.asarray(encoding.ids, np.int32) for encoding in encodings],
        segment_ids=[np.asarray(encoding.type_ids, np.int32) for encoding in encodings],
        pad_id=tokenizer.pad_token_id,
        **{**fields, **more},
    )


def padded(arrays: Sequence[np.ndarray], length: int, value: int) -> np.ndarray:
    """Arrays [T_i], cut to `length`, as one int32 [B, length]."""
    result = np.full((len(arrays), length), value, np.int32)
    for row, array in zip(result, arrays, strict=True):
        row[: len(array)] = array[:length]
    return result


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
        """The measure of `tfllm evaluate`: a name in `evaluation.MEASURES`, or a function of the
        task's own, `measure(answers, examples) -> {name: value}`."""
        raise NotImplementedError

    @property
    def measure_options(self) -> dict[str, Any]:
        """Keyword arguments of the measure that come from the task's settings."""
        return {}

    @property
    def headline_metrics(self) -> tuple[str, ...]:
        """The metric that stands for the task where only one can: the first of these that was
        measured. Higher is better."""
        return ()

    @property
    def metric_names(self) -> tuple[str, ...]:
        """All metrics by name, from training and evaluation, `loss` apart."""
        return ()

    @property
    def head_key(self) -> tuple[Any, ...]:
        """What decides the head's variables and their meaning: heads with equal keys are alike."""
        return (self.kind,)

    def check_label(self, example: Example) -> None:
        """Raises DataError, naming file and line, for a label that the task does not know."""

    @classmethod
    def from_hf(cls, source: HuggingFaceHead) -> Task:
        """The task of a Hugging Face directory with this task's head. Raises CheckpointError."""
        return cls(max_length=source.length_of_texts())

    def hf_config(self, before: Mapping[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
        """What the head adds to Hugging Face's `config.json`.

        Args:
            before: The `config.json` that the checkpoint came from, empty where it came from none.
            tokenizer: The model's tokenizer.
        """
        return {}

    def hf_generation_config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """`generation_config.json` of a model that has none, from its `config.json`."""
        return {}

    def check_hf(self, model_type: str) -> None:
        """Raises CheckpointError for what Hugging Face's models of `model_type` cannot say."""

    def completed(self, examples: Sequence[Example]) -> Task:
        """A copy in which what the settings leave open (labels) is found in the examples."""
        return self

    def starting(self, start_id: int | None) -> Task:
        """A copy that knows the first token of what its model writes, where that is not in rows."""
        return self

    def model(self, backbone: keras.Model, config: Any) -> keras.Model:
        """Backbone and head: functional, the backbone's inputs, one float32 output."""
        raise NotImplementedError

    def to_train(self, model: keras.Model) -> keras.Model:
        """The model as `tfllm train` trains it: itself, or the same layers with other inputs and
        outputs, which `loss` and `metrics` know.

        Keras' own `fit` needs it where rows are groups (pairs of embedding). The other kind, scores
        at hidden tokens only, gives the same losses as the model itself, which `fit` takes.
        """
        return model

    def to_export(self) -> Task:
        """The task that a model of this one is exported for: itself, or one that can be served."""
        return self

    def features(
        self, examples: Sequence[Example], tokenizer: Tokenizer, *, targets: bool = True
    ) -> Features:
        """Rows of examples. Raises DataError for an example that cannot be used.

        Targets are made where the examples have labels; `targets=False` leaves labels unread, so
        that a file may be predicted whose labels the model does not know.
        """
        raise NotImplementedError

    def rows(self, examples: Sequence[Example], tokenizer: Tokenizer) -> Features:
        """`features` of examples, or of the prepared corpus that they stand for.

        Raises SettingError for a corpus of another vocabulary's tokens.
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

    def corpus_features(self, corpus: Any, tokenizer: Tokenizer) -> Features:
        """Rows over a `data.corpora.corpus.Corpus`, made when asked for. Not of every task."""
        raise NotImplementedError

    def for_epoch(self, features: Features, seed: int = 0, epoch: int = 0) -> Features:
        """The features as training (and validation, with epoch 0) sees them in one epoch.

        The same object for most tasks. Where chance takes part (masked_lm), a function of
        (seed, epoch, row) alone, so that a resumed run sees what an unbroken one would.
        """
        return features

    def loss(
        self, label_smoothing: float = 0.0, class_weights: ClassWeights = None
    ) -> keras.losses.Loss:
        """The loss over (targets, outputs) of `Features.batch`, of the model of `to_train`.

        As a Keras loss: a value per target, whose mean Keras takes.

        `class_weights`: a number per label in the labels' order, or {label: number}.
        Raises SettingError for an option that the task has no use for.
        """
        raise NotImplementedError

    def metrics(self) -> list[keras.metrics.Metric] | dict[str, list[keras.metrics.Metric]]:
        """Keras metrics over (targets, outputs), for progress lines and choosing the best epoch.

        A list for every output where the model has several, as `compile(metrics=...)` takes it.
        """
        raise NotImplementedError

    def answers(self, outputs: Sequence[np.ndarray], features: Features) -> list[dict[str, Any]]:
        """One JSON dict per example. `outputs`: per row of features, [T] axes may be padded."""
        raise NotImplementedError

    def paired(self, first: np.ndarray, second: np.ndarray) -> dict[str, Any]:
        """The answer for the outputs of both texts of a pair, where `encodes_pairs_apart`."""
        raise NotImplementedError

    def answer_from_signature(
        self, example: Example, outputs: Mapping[str, np.ndarray]
    ) -> dict[str, Any]:
        """The answer from the outputs of `serving_default` for one example, without batch axis."""
        raise NotImplementedError

    def signatures(self, model: keras.Model, graph_tokenizer: Any) -> dict[str, Any]:
        """Serving signatures: name -> tf.function with an input signature, all with a batch axis.

        The functions capture the model's variables and the tokenizer's tables; keep both alive.
        `METHODS` in tfllm.tasks names each signature's method for TF Serving.
        """
        raise NotImplementedError
