"""A recipe: the YAML of `models/*/*.yaml` as typed settings.

Its keys are name, model, task, tokenizer, data, train, evaluate and export. The docstring of every
field is its description in the JSON Schema.
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
    """Low-rank adapters (LoRA, Hu et al. 2021): W + B A, with W frozen."""

    rank: Positive = 8
    """The rank of the adapters."""
    alpha: float | None = Field(default=None, gt=0)
    """The adapters are scaled by alpha / rank. Unset: alpha is the rank."""
    targets: tuple[str, ...] = ("query", "value")
    """The layers that get adapters: query, key, value, attention_output, up, down."""


class ModelSettings(Settings):
    """The initial model: `from`, a pretrained checkpoint, or `family` and its shape, trained from
    scratch. Further keys beside `family` are fields of the family's Config, such as num_layers."""

    model_config = ConfigDict(extra="allow", serialize_by_alias=True, populate_by_name=True)

    source: str | None = Field(default=None, alias="from")
    """The checkpoint to start from: a tfllm checkpoint or run, a Hugging Face directory, or
    hf://org/name."""
    family: str | None = None
    """The family of a model that is trained from scratch, such as bert."""
    lora: LoraSettings | None = None
    """Train low-rank adapters and the head only. The run's checkpoint has them merged."""

    @model_validator(mode="after")
    def _one_origin(self) -> ModelSettings:
        if (self.source is None) == (self.family is None):
            raise ValueError("give either `from` (a checkpoint) or `family` (from scratch)")
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
    """The tokenizer of a model that is trained from scratch; a checkpoint (model.from) has its own.

    Either `path`, an existing tokenizer, or `kind`, one to train on the training texts.
    """

    path: str | None = None
    """A directory with tokenizer.json or vocab.txt, or a vocab.txt file. `${NAME}` is replaced from
    the environment."""
    lowercase: bool | None = None
    """Lower-case and strip accents. Unset: as the directory's files say."""
    kind: Literal["characters", "bpe", "wordpiece", "unigram"] | None = None
    """Train a tokenizer of this kind before the run; it is saved in the run's tokenizer/."""
    vocabulary_size: Positive | None = None
    """The largest number of tokens, special tokens included. Required except for `kind:
    characters`, where unset means every character."""
    special_tokens: tuple[str, ...] = ()
    """Special tokens to add, such as <s>, </s>, <unk>, <|user|>."""
    chat_template: str | None = None
    """A Jinja file that formats conversations. Unset: the directory's own."""

    @model_validator(mode="after")
    def _one_origin(self) -> TokenizerSettings:
        if (self.path is None) == (self.kind is None):
            raise ValueError("give either `path` (a tokenizer) or `kind` (one to train)")
        only_trained = {
            "vocabulary_size": self.vocabulary_size,
            "special_tokens": self.special_tokens,
        }
        for name, value in only_trained.items():
            if self.path is not None and value:
                raise ValueError(f"{name} goes with `kind`: an existing tokenizer has its own")
        if self.kind not in (None, "characters") and self.vocabulary_size is None:
            raise ValueError(f"kind {self.kind} needs vocabulary_size: the number of tokens")
        if self.kind not in (None, "wordpiece") and self.lowercase is not None:
            raise ValueError("lowercase goes with a vocab.txt (`path`) or with kind: wordpiece")
        return self


class TrainSettings(Settings):
    """How to train. The defaults are BERT's own for fine-tuning (Devlin et al. 2019)."""

    epochs: Positive | None = None
    """Passes over the training data; 3 where neither epochs nor steps is set."""
    steps: Positive | None = None
    """Optimizer steps, instead of epochs."""
    batch_size: Positive = 32
    """Examples per optimizer step, over all devices and micro-batches."""
    batch_tokens: Positive | None = None
    """Batches of about constant work: as many examples, at most batch_size, as fit into this number
    of tokens, padding included."""
    learning_rate: float = Field(default=5e-5, gt=0)
    """The peak learning rate, reached at the end of the warm-up."""
    schedule: Literal["linear", "cosine", "inverse_sqrt", "constant"] = "linear"
    """The decay of the learning rate after the warm-up: to final_learning_rate at the last step, or
    by the inverse square root of the step (Vaswani et al. 2017)."""
    final_learning_rate: float = Field(default=0.0, ge=0)
    """The learning rate at the last step of a linear or cosine schedule."""
    warmup: float = Field(default=0.06, ge=0)
    """Steps over which the learning rate rises from 0. Below 1: a share of all steps."""
    weight_decay: float = Field(default=0.01, ge=0)
    """AdamW: decoupled weight decay, not of biases and normalization layers."""
    clip_norm: float | None = Field(default=1.0, gt=0)
    """Gradients are clipped to this global norm. null: no clipping."""
    beta_1: float = Field(default=0.9, ge=0, lt=1)
    """AdamW: decay rate of the first moment."""
    beta_2: float = Field(default=0.999, ge=0, lt=1)
    """AdamW: decay rate of the second moment."""
    epsilon: float = Field(default=1e-8, gt=0)
    """AdamW: added to the root of the second moment."""
    ema: float | None = Field(default=None, gt=0, lt=1)
    """Decay of an exponential moving average of the weights, such as 0.999. The averages are
    evaluated and saved."""
    accumulate: Positive = 1
    """Gradient accumulation: micro-batches per step. The same result with less memory."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """The precision of the layers' arithmetic; weights stay float32. auto: bfloat16 where the
    hardware has it, else float32."""
    kernels: Literal["auto", "plain", "fused", "compiled"] = "auto"
    """Kernels of GELU, layer normalization and dropout: Keras' own (plain), with gradients written
    by hand (fused), or compiled by XLA. auto: plain on a GPU; compiled from 50 million trained
    parameters; else fused."""
    rematerialize: bool = False
    """Gradient checkpointing: keep only the input of every block and recompute the block in the
    backward pass. The same gradients with less memory, for about a third more time."""
    strategy: str = "auto"
    """The devices to train on. one: one device; mirrored: all GPUs of this machine; multi_worker:
    several processes, named by TF_CONFIG or Slurm; tpu; auto: all that are available. With Keras on
    JAX: data_parallel (auto), one, model_parallel."""
    model_devices: Positive | None = None
    """With model_parallel: the devices that share one copy of the model. Unset: all."""
    worker_timeout: float = Field(default=1800.0, gt=0, allow_inf_nan=False)
    """Seconds that the workers of a run wait for one another at its start."""
    steps_per_execution: Positive = 1
    """Steps that run in one call, without Python between them: less overhead for very short steps.
    Whatever is due at a step still happens at that step, so results are the same."""
    seed: int = Field(default=1, ge=0)
    """The seed of initial weights, the order of examples and dropout."""
    checkpoint_every: Positive | None = None
    """Steps between saved states for --resume. Unset: every epoch."""
    keep: Positive = 2
    """The number of newest states to keep."""
    log_every: Positive = 20
    """Steps between lines of metrics.jsonl."""
    profile: tuple[Positive, Positive] | None = None
    """The first and the last step to profile with TensorFlow, both included; the profile goes into
    logs/, for TensorBoard."""
    samples: int = Field(default=4, ge=0)
    """Validation examples that are written to logs/ with the model's predictions at every
    evaluation. 0: no text of the data is written there."""
    carbon_intensity: float = Field(default=475.0, ge=0)
    """Grams of CO2 equivalent per kWh of electricity, for the estimate in summary.json. The default
    is the world's mean of 2018 (IEA 2019)."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Label smoothing: the share of a target's weight that is spread over all labels."""
    class_weights: Literal["balanced"] | dict[str, Weight] | tuple[Weight, ...] | None = None
    """The weight of each label in the loss, by name or in order. balanced: inversely proportional
    to its frequency, as in scikit-learn."""

    @model_validator(mode="after")
    def _epochs_or_steps(self) -> TrainSettings:
        if self.epochs and self.steps:
            raise ValueError("give either epochs or steps, not both")
        if self.final_learning_rate > self.learning_rate:
            raise ValueError(
                f"final_learning_rate ({self.final_learning_rate}) is above learning_rate "
                f"({self.learning_rate}), which is the peak"
            )
        if self.profile and self.profile[0] > self.profile[1]:
            raise ValueError(
                f"profile: {list(self.profile)} ends before it begins; give [first, last] step"
            )
        if self.batch_size < self.accumulate:
            raise ValueError(
                f"accumulate ({self.accumulate}) divides a batch into more parts than batch_size "
                f"({self.batch_size}) has examples"
            )
        return self


class EvaluateSettings(Settings):
    """Evaluation on the validation data while training."""

    every: Positive | None = None
    """Steps between evaluations. Unset: every epoch."""
    best: str | None = None
    """The metric that selects the checkpoint to keep, for example accuracy. Unset: the last
    checkpoint is kept."""
    direction: Literal["maximize", "minimize"] | None = None
    """Whether a high or a low value of `best` is better; only for metrics of your own, as those of
    tfllm have a direction."""
    patience: Positive | None = None
    """Early stopping: the number of evaluations without a better value of `best`. Evaluations in
    which it is undefined do not count."""
    batch_size: Positive = 64
    """Rows per batch of the evaluation."""
    generate: int | None = Field(default=None, ge=0)
    """seq2seq: the number of validation examples to generate texts for at every evaluation, which
    are measured by bleu, rouge_l and others. Unset: after training only, for up to 2,000 examples;
    0: never."""
    generation: GenerationOverrides = GenerationOverrides()
    """seq2seq: the generation settings for these texts, which are also saved with the
    checkpoint."""

    @model_validator(mode="after")
    def _patience_needs_best(self) -> EvaluateSettings:
        if self.patience and not self.best:
            raise ValueError("patience needs `best`: the metric that should improve")
        if self.direction and not self.best:
            raise ValueError("direction needs `best`: the metric that it is about")
        return self


class Recipe(Settings):
    """A recipe: the model, the task, the data, and how to train, evaluate and export."""

    name: str
    """The run's name, and that of its directory under runs/."""
    model: ModelSettings
    """The initial model: a checkpoint, or a family and its shape."""
    task: AnyTask
    """What the model is trained for: its `kind`, such as classification, and its settings."""
    tokenizer: TokenizerSettings | str | None = None
    """The tokenizer of a model that is trained from scratch, or the path of one."""
    data: DataSettings
    """Training and validation files, and how they are read."""
    train: TrainSettings = TrainSettings()
    """How to train: length, batches, optimizer, precision, devices, logs."""
    evaluate: EvaluateSettings = EvaluateSettings()
    """Evaluation while training, and which checkpoint is kept."""
    export: tuple[str, ...] = ()
    """Export profiles, by name or YAML file, that `tfllm train` exports to after training, into the
    run's export/."""
