"""A recipe: the YAML of `models/*/*.yaml` as typed settings.

name model task tokenizer data train evaluate export, in this order; every key is explained at its
attribute.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from tfllm.config import Settings
from tfllm.data.settings import DataSettings
from tfllm.generation.config import GenerationOverrides
from tfllm.tasks import AnyTask

Positive = Annotated[int, Field(gt=0)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class LoraSettings(Settings):
    """Low-rank adapters (Hu et al. 2021): W + B A, with W frozen."""

    rank: Positive = 8
    """Columns of A and rows of B."""
    alpha: float | None = Field(default=None, gt=0)
    """The adapter is scaled by alpha / rank; unset: alpha is the rank."""
    targets: tuple[str, ...] = ("query", "value")
    """Names of the layers that get adapters: query, key, value, attention_output, up, down."""


class ModelSettings(Settings):
    """Where weights come from: `from:` a checkpoint, or `family:` and its shape from nothing."""

    model_config = ConfigDict(extra="allow", serialize_by_alias=True, populate_by_name=True)

    source: str | None = Field(default=None, alias="from")
    """A tfllm checkpoint or run, a Hugging Face directory, or hf://org/name."""
    family: str | None = None
    """With the fields of the family's Config beside it: a model from nothing."""
    lora: LoraSettings | None = None
    """Train low-rank adapters only (and the head). The run's checkpoint has them merged."""

    @model_validator(mode="after")
    def _one_origin(self) -> ModelSettings:
        if (self.source is None) == (self.family is None):
            raise ValueError("give either `from` (a checkpoint) or `family` (from nothing)")
        if self.source is not None and self.shape:
            key = next(iter(self.shape))
            raise ValueError(
                f"unknown key '{key}': with `from`, the checkpoint says the model's shape. "
                "Known beside it: lora"
            )
        return self

    @property
    def shape(self) -> dict[str, Any]:
        """The fields of the family's Config."""
        return dict(self.__pydantic_extra__ or {})


class TokenizerSettings(Settings):
    """The tokenizer of a model from nothing; `from:` brings its own.

    `path:` one that is there, or `kind:` one that is learned from the training texts.
    """

    path: str | None = None
    """A directory with tokenizer.json or vocab.txt, or a vocab.txt file. `${NAME}` is replaced."""
    lowercase: bool | None = None
    """Lower-case and strip accents; unset: what the directory says."""
    kind: Literal["characters", "bpe", "wordpiece", "unigram"] | None = None
    """Learn a vocabulary of this kind before the run; it is kept in the run's tokenizer/."""
    vocabulary_size: Positive | None = None
    """Tokens at most, special ones included; needed but for characters, where unset is all."""
    special_tokens: tuple[str, ...] = ()
    """Tokens beside the learned ones, such as <s>, </s>, <unk>, <|user|>."""
    chat_template: str | None = None
    """A Jinja file that writes conversations; unset: what the directory has."""

    @model_validator(mode="after")
    def _one_origin(self) -> TokenizerSettings:
        if (self.path is None) == (self.kind is None):
            raise ValueError("give either `path` (a tokenizer) or `kind` (one to learn)")
        learned = {"vocabulary_size": self.vocabulary_size, "special_tokens": self.special_tokens}
        for name, value in learned.items():
            if self.path is not None and value:
                raise ValueError(f"{name} goes with `kind`: a tokenizer that is there has its own")
        if self.kind not in (None, "characters") and self.vocabulary_size is None:
            raise ValueError(f"kind {self.kind} needs vocabulary_size: how many tokens to learn")
        if self.kind not in (None, "wordpiece") and self.lowercase is not None:
            raise ValueError("lowercase goes with a vocab.txt (`path`) or with kind: wordpiece")
        return self


class TrainSettings(Settings):
    """How to train. The defaults are BERT's own for fine-tuning."""

    epochs: Positive | None = None
    """Passes over the data; 3 where neither epochs nor steps is set."""
    steps: Positive | None = None
    """Optimizer steps, instead of epochs."""
    batch_size: Positive = 32
    """Examples per optimizer step, over all devices and micro-batches."""
    batch_tokens: Positive | None = None
    """Constant work instead of constant examples: as many examples (at most batch_size) as fit into
    this number of padded tokens."""
    learning_rate: float = Field(default=5e-5, gt=0)
    """The highest learning rate."""
    schedule: Literal["linear", "cosine", "inverse_sqrt", "constant"] = "linear"
    """How it falls after the warm-up: to final_learning_rate at the last step, or with the inverse
    root of the step (Vaswani et al. 2017), whenever the last one is."""
    final_learning_rate: float = Field(default=0.0, ge=0)
    """The learning rate at the last step, where the schedule is not constant."""
    warmup: float = Field(default=0.06, ge=0)
    """Steps over which the learning rate rises from 0; below 1: a part of all steps."""
    weight_decay: float = Field(default=0.01, ge=0)
    """AdamW's, not on biases and normalisations."""
    clip_norm: float | None = Field(default=1.0, gt=0)
    """The largest global norm of a gradient; null: no limit."""
    beta_1: float = Field(default=0.9, ge=0, lt=1)
    """AdamW: decay of the mean of gradients."""
    beta_2: float = Field(default=0.999, ge=0, lt=1)
    """AdamW: decay of the mean of squared gradients."""
    epsilon: float = Field(default=1e-8, gt=0)
    """AdamW: added to the root of the mean square."""
    ema: float | None = Field(default=None, gt=0, lt=1)
    """Decay of a moving average of the weights, such as 0.999; the averages are what is measured
    and saved."""
    accumulate: Positive = 1
    """Micro-batches per step: the same result with less memory."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the layers' arithmetic; weights stay float32. auto: bfloat16 where the hardware has it."""
    kernels: Literal["auto", "plain", "fused", "compiled"] = "auto"
    """Elementwise parts: Keras' own, hand-written, or compiled by XLA. auto: plain with a GPU;
    compiled from 50 million trained parameters; else fused."""
    rematerialize: bool = False
    """Keep only the input of every block for the backward pass and compute the block again there:
    the same gradients with less memory, for about a third more time."""
    strategy: str = "auto"
    """one: one device; mirrored: all GPUs of this machine; multi_worker: several processes, named
    by TF_CONFIG or Slurm; tpu; auto: what there is. With Keras on JAX: data_parallel (auto), one,
    model_parallel."""
    model_devices: Positive | None = None
    """With model_parallel: how many devices share one copy of the model; unset: all."""
    worker_timeout: float = Field(default=1800.0, gt=0, allow_inf_nan=False)
    """Seconds that the workers of a run wait for one another at its start."""
    steps_per_execution: Positive = 1
    """Steps that run without Python between them. What is due in between still happens at its very
    step: less overhead for very short steps, the same results."""
    seed: int = Field(default=1, ge=0)
    """Of initial weights, order of examples and dropout."""
    checkpoint_every: Positive | None = None
    """Steps between states for --resume; unset: the end of every epoch."""
    keep: Positive = 2
    """The newest states that are kept."""
    log_every: Positive = 20
    """Steps between lines of metrics.jsonl."""
    profile: tuple[Positive, Positive] | None = None
    """The first and the last step to profile, both included; into logs/, for TensorBoard."""
    samples: int = Field(default=4, ge=0)
    """Validation examples that stand in logs/ with the model's answers, at every measurement; 0:
    no text of the data is written there."""
    carbon_intensity: float = Field(default=475.0, ge=0)
    """Grams of CO2 equivalent per kWh of the electricity in use, for the estimate in summary.json;
    unset: the world's mean of 2018 (IEA 2019)."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """The part of a target's weight that is spread over all labels."""
    class_weights: Literal["balanced"] | dict[str, Weight] | tuple[Weight, ...] | None = None
    """Weight of each label in the loss, by name or in order. balanced: the rarer, the heavier."""

    @model_validator(mode="after")
    def _epochs_or_steps(self) -> TrainSettings:
        if self.epochs and self.steps:
            raise ValueError("give either epochs or steps, not both")
        if self.final_learning_rate > self.learning_rate:
            raise ValueError(
                f"final_learning_rate ({self.final_learning_rate}) is above learning_rate "
                f"({self.learning_rate}), which is the highest"
            )
        if self.profile and self.profile[0] > self.profile[1]:
            raise ValueError(
                f"profile: {list(self.profile)} ends before it begins; give [first, last] step"
            )
        if self.batch_size < self.accumulate:
            raise ValueError(
                f"accumulate ({self.accumulate}) cuts a batch into more parts than batch_size "
                f"({self.batch_size}) has examples"
            )
        return self


class EvaluateSettings(Settings):
    """Measuring on the validation data while training."""

    every: Positive | None = None
    """Steps between measurements; unset: the end of every epoch."""
    best: str | None = None
    """The measure whose best checkpoint is kept, for example accuracy; unset: the last is kept."""
    direction: Literal["maximize", "minimize"] | None = None
    """Whether a high or a low value of `best` is better; for measures of your own alone, as those
    of tfllm have theirs."""
    patience: Positive | None = None
    """Stop after this many measurements without a better one; needs `best`. Measurements in which
    it is undefined do not count."""
    batch_size: Positive = 64
    """Rows per batch of predictions."""
    generate: int | None = Field(default=None, ge=0)
    """seq2seq: validation examples that texts are written for, and measured (bleu, rouge_l, ...),
    at every measurement. Unset: at the end of the run alone, for 2,000 of them; 0: never."""
    generation: GenerationOverrides = GenerationOverrides()
    """seq2seq: how these texts are written, and what the checkpoint keeps as its own settings."""

    @model_validator(mode="after")
    def _patience_needs_best(self) -> EvaluateSettings:
        if self.patience and not self.best:
            raise ValueError("patience needs `best`: the measure that should improve")
        if self.direction and not self.best:
            raise ValueError("direction needs `best`: the measure that it is about")
        return self


class Recipe(Settings):
    """What to train, on what, how, and what to do with it."""

    name: str
    """The run's name, and its directory's under runs/."""
    model: ModelSettings
    task: AnyTask
    tokenizer: TokenizerSettings | str | None = None
    data: DataSettings
    train: TrainSettings = TrainSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    export: tuple[str, ...] = ()
    """Profiles that `tfllm train` exports to after training, into the run's export/."""
