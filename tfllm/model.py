"""The front door: load, train, measure, generate with, save and export one model.

    model = tfllm.load("hf://org/name", task="classification", labels=["negative", "positive"])
    train = model.dataset("train.tsv", batch_size=32, shuffle=True)
    model.compile(learning_rate=2e-5, steps=3 * len(train))
    model.fit(train, epochs=3)
    model.predict("a gorgeous, witty film")

`load` gives a `Model`, which holds a plain functional `keras.Model`. `open` gives an
`InferenceModel` for any artifact, with the same `predict`, `generate` and `evaluate`.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import itertools
import os
import queue
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    ParamSpec,
    TypedDict,
    TypeVar,
    Unpack,
    overload,
)

import keras as keras_package
import tensorflow as tf

from tfllm import config, tasks
from tfllm.checkpoints import describe, store
from tfllm.checkpoints.base import Checkpoint
from tfllm.data import feeding, sources
from tfllm.data.batching import Batches
from tfllm.data.read_settings import Format, ReadSettings
from tfllm.data.settings import find_corpus
from tfllm.errors import CheckpointError, SettingError, StorageError, did_you_mean
from tfllm.evaluation import harness
from tfllm.evaluation.plots import write_plots
from tfllm.evaluation.settings import EvaluationSettings, settings_for, settings_of_run
from tfllm.export import Artifact, Check, Profile, load_profile
from tfllm.export import export as write_artifact
from tfllm.generation.config import FIELDS, GenerationConfig
from tfllm.generation.text_generator import GeneratedText, Truncate
from tfllm.runtimes import inputs as runtime_inputs
from tfllm.runtimes.checkpoint import open_checkpoint
from tfllm.runtimes.opening import open_model
from tfllm.runtimes.protocols import Predictor
from tfllm.tasks import Task
from tfllm.tokenizers.base import Tokenizer
from tfllm.training import directory as run_directory
from tfllm.training import run as training
from tfllm.training.distribution import cluster as clusters
from tfllm.training.optimizers import AdamW, Schedule, warmup_steps
from tfllm.training.recipe import Recipe
from tfllm.training.run import Run

if TYPE_CHECKING:
    from keras import Model as KerasModel

P = ParamSpec("P")
R = TypeVar("R")
Example = Mapping[str, Any]
Data = str | Path | Sequence[str | Example]
"""A file of examples, a prepared corpus, or a list of texts or of dicts of fields."""
Message = Mapping[str, str]
Prompt = str | Example | Sequence[Message]
"""A text; an example with `prompt`, `source`, `text` or `messages`; or a conversation."""
Progress = Callable[[float], None]

WARMUP_SHARE = 0.06  # of `steps`
WARMUP_STEPS = 100  # where `steps` is not given


class GenerationOptions(TypedDict, total=False):
    """Keyword arguments of `generate`: the fields of `GenerationConfig`, which documents them."""

    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    no_repeat_ngram_size: int
    bad_words_ids: Sequence[Sequence[int]]
    min_new_tokens: int
    forced_bos_token_id: int
    forced_eos_token_id: int
    num_beams: int
    length_penalty: float
    coverage_penalty: float
    renormalize_logits: bool
    early_stopping: bool | Literal["never"]
    num_return_sequences: int
    eos_token_id: Sequence[int]
    seed: int


class EvaluationOptions(GenerationOptions, total=False):
    """Keyword arguments of `evaluate`: how the file is read, how the task is measured, and how
    texts are generated. `tfllm.evaluation.settings.EvaluationSettings` documents them."""

    format: Format
    columns: Mapping[str, str | int]
    header: bool
    quoting: bool
    labels: Mapping[str, str | float]
    label_separator: str
    language: str
    stride: int
    measure: Literal["all", "last_word"]
    tokenize: str
    truncate: bool


def check_options(function: Callable[P, R]) -> Callable[P, R]:
    """Raise SettingError with the nearest known name for an unknown keyword argument."""
    known = [name for name in inspect.signature(function).parameters if name != "self"]

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in kwargs:
            if name not in known:
                raise SettingError(
                    f"{function.__name__} has no option '{name}'. {did_you_mean(name, known)}"
                )
        return function(*args, **kwargs)

    return call


class InferenceModel:
    """A model that is ready to answer: a checkpoint or any exported artifact.

    Made by `tfllm.open`. One thread at a time may use it.
    """

    def __init__(self, predictor: Predictor, source: str | Path | None = None):
        """
        Args:
            predictor: The runtime that answers.
            source: The path or name that it was opened from.
        """
        self._opened: Predictor | None = predictor
        self.source = None if source is None else str(source)

    @property
    def predictor(self) -> Predictor:
        """The runtime that answers."""
        assert self._opened is not None
        return self._opened

    @property
    def task(self) -> Task:
        """What the model is for, with its settings."""
        return self.predictor.task

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Texts to token ids and back; of an encoder-decoder `.target` has that of the targets."""
        return self.predictor.tokenizer

    def describe(self) -> dict[str, Any]:
        """Return kind, path, family, task and size in bytes."""
        return self.predictor.describe()

    @overload
    def predict(  # type: ignore[overload-overlap]  # a str is a sequence of str
        self,
        inputs: str | Example,
        *,
        batch_size: int = 32,
        truncate: bool = False,
        progress: Progress | None = None,
        **options: Unpack[GenerationOptions],
    ) -> dict[str, Any]: ...

    @overload
    def predict(
        self,
        inputs: Sequence[str | Example],
        *,
        batch_size: int = 32,
        truncate: bool = False,
        progress: Progress | None = None,
        **options: Unpack[GenerationOptions],
    ) -> list[dict[str, Any]]: ...

    def predict(
        self,
        inputs: str | Example | Sequence[str | Example],
        *,
        batch_size: int = 32,
        truncate: bool = False,
        progress: Progress | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Any:
        """Return the task's prediction for each input: the JSON lines of `tfllm predict`.

        Args:
            inputs: A text or a dict of fields (`text`, `text_pair`, `question`, `context`,
                `words`, `source`, `messages`), or a list of them.
            batch_size: Inputs per batch.
            truncate: Sequence-to-sequence models: cut sources that are too long.
            progress: Called with the number of inputs done since its last call.
            **options: Sequence-to-sequence models: fields of GenerationConfig.

        Returns:
            A dict for one input, a list of dicts in their order for a list. See
            docs/tasks.md for the fields of each task.

        Raises:
            SettingError: An option that this model does not have.
            DataError: An input without the fields that the task reads.
        """
        examples, single = _examples_of(inputs)
        generation: dict[str, Any] = dict(options)
        _check_names("predict", generation, (*GENERATION_OPTIONS, "batch_size", "truncate"))
        if truncate:
            generation["truncate"] = True
        harness.check_generation(generation, self.task)
        examples = list(runtime_inputs.check_examples(examples, self.task))
        answers = self.predictor.predict(examples, batch_size, progress, **generation)
        return answers[0] if single else answers

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        config: GenerationConfig | None = None,
        *,
        stop_strings: str | Sequence[str] = (),
        bad_words: Sequence[str] = (),
        truncate: Truncate | None = None,
        batch_size: int = 8,
        precision: Literal["float32", "bfloat16"] = "float32",
        stream: bool = False,
        on_text: Callable[[int, str], None] | None = None,
        details: bool = False,
        **options: Unpack[GenerationOptions],
    ) -> Any:
        """Generate text after prompts or, with an encoder-decoder, from sources.

        Args:
            prompts: A text, a conversation (a list of `role` and `content`), or an example with
                `prompt`, `source`, `text` or `messages`; or a list of them.
            config: All settings at once; `options` replace its fields. Unset: the defaults of
                GenerationConfig, of an encoder-decoder those of its checkpoint.
            stop_strings: Texts that end the output and are not part of it.
            bad_words: Texts that must not appear.
            truncate: "left" drops the beginning of prompts that are too long, "right" the end of
                sources; unset, such a prompt is an error.
            batch_size: Texts generated at once.
            precision: Of a checkpoint's matrix products; "bfloat16" works on copies.
            stream: Return an iterator over pieces of the text, for a single prompt.
            on_text: Called with the index of a text and each piece of it as it is generated.
            details: Return `GeneratedText` objects: token counts, log-probabilities, scores.
            **options: Fields of GenerationConfig: max_new_tokens, temperature, top_k, ...

        Returns:
            The text without its prompt for one prompt, a list of texts for a list; with
            `num_return_sequences` above 1 a list of texts in place of each.

        Raises:
            SettingError: An option that does not exist or that this model does not have, a prompt
                that is empty or too long, a model that does not generate text.
        """
        fields: dict[str, Any] = dict(options)
        _check_names("generate", fields, (*GENERATION_OPTIONS, *GENERATE_OPTIONS))
        single = _is_single(prompts)
        examples = [_prompt_example(each) for each in ([prompts] if single else prompts)]
        generator = self.generator(precision)
        settings = _settings(generator, config, fields)
        if bad_words:
            words = (*settings.bad_words_ids, *generator.encode_bad_words(bad_words))
            settings = settings.model_copy(update={"bad_words_ids": words})
        stops = (stop_strings,) if isinstance(stop_strings, str) else tuple(stop_strings)
        generator.engine.max_batch_size = max(batch_size, settings.num_beams)

        def texts(
            some: Sequence[Example], on_text: Callable[[int, str], None] | None = None
        ) -> list[GeneratedText]:
            return generator.generate_examples(
                some, settings, stop=stops, truncate=truncate, on_text=on_text
            )

        if stream:
            if not single or settings.num_return_sequences > 1:
                raise SettingError("stream: give one prompt, and num_return_sequences 1.")
            return _stream(lambda on_text: texts(examples, on_text))
        generated = texts(examples, on_text)
        results: list[Any] = list(generated) if details else [text.text for text in generated]
        count = settings.num_return_sequences
        if count > 1:
            results = [results[row : row + count] for row in range(0, len(results), count)]
        return results[0] if single else results

    def evaluate(
        self,
        data: Data,
        *,
        limit: int | None = None,
        batch_size: int = 32,
        progress: Progress | None = None,
        **options: Unpack[EvaluationOptions],
    ) -> dict[str, Any]:
        """Measure the model on examples with gold answers.

        Args:
            data: A file, a prepared corpus, or a list of examples.
            limit: Only so many examples, from the start.
            batch_size: Examples per batch.
            progress: Called with the number of examples done since its last call.
            **options: How the file is read (`columns`, `format`, ...), by default as the model's
                recipe or export says; how the task is measured (`stride`, `tokenize`, ...); how
                texts are generated (`num_beams`, ...).

        Returns:
            The task's metrics by name, such as `{"accuracy": 0.93, "f1_macro": 0.92, ...}`.

        Raises:
            SettingError: An option that does not exist or that this model does not have.
            DataError: An example without gold answers.
        """
        settings, examples = _evaluation_data(self.source, data, limit, options)
        return harness.evaluate(
            self.predictor, examples, batch_size=batch_size, progress=progress, **settings.options
        )

    def generator(self, precision: str = "float32") -> Any:
        """Return what generates text: a `tfllm.generation.text_generator.TextGenerator`.

        Args:
            precision: "float32", or "bfloat16" for the products in a checkpoint's blocks.

        Raises:
            SettingError: The model does not generate text.
        """
        generator = getattr(self.predictor, "generator", None)
        if generator is None:
            raise SettingError(
                f"This model is for {self.task.kind.replace('_', ' ')} and does not generate text. "
                "Use predict, or a model for causal_lm or seq2seq."
            )
        if precision != "float32":
            raise SettingError(
                f"--precision {precision}: an exported file has its own. Leave the option out, or "
                "give the checkpoint."
            )
        return generator


class Model(InferenceModel):
    """A model with its configuration, tokenizer and task. Made by `tfllm.load`.

    It can be trained as any Keras model: `keras` is a plain functional `keras.Model`, which may be
    compiled, fitted, frozen in part, extended and saved without this class.
    """

    def __init__(self, checkpoint: Checkpoint, source: str | Path | None = None):
        """
        Args:
            checkpoint: The loaded checkpoint.
            source: The path or name that it was loaded from.
        """
        self.checkpoint = checkpoint
        self.source = None if source is None else str(source)
        self._opened = None

    @property
    def keras(self) -> KerasModel:
        """The functional Keras model: int32 inputs [B, T] by name, the task's raw outputs."""
        return self.checkpoint.model

    @property
    def config(self) -> Any:
        """The family's Config: the shape of the model."""
        return self.checkpoint.config

    @property
    def task(self) -> Task:
        """What the model is for, with its settings."""
        return self.checkpoint.task

    @property
    def predictor(self) -> Predictor:
        """The runtime that answers with the model's current weights."""
        if self._opened is None:
            self._opened = open_checkpoint(self.checkpoint)
        return self._opened

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Texts to token ids and back; of an encoder-decoder `.target` has that of the targets."""
        return self.checkpoint.tokenizer

    @cached_property
    def trainable(self) -> KerasModel:
        """The model that `compile` and `fit` train.

        It is `keras` itself or, for an embedding task, the same layers over pairs of texts, inputs
        int32 [B, 2, T].
        """
        model = self.task.training_model(self.keras)
        takes_pairs = len(model.input["token_ids"].shape) > len(self.keras.input["token_ids"].shape)
        return model if takes_pairs else self.keras

    @check_options
    def dataset(
        self,
        data: Data,
        *,
        columns: Mapping[str, str | int] | None = None,
        batch_size: int = 32,
        shuffle: bool = False,
        seed: int = 0,
        format: Format | None = None,
        header: bool | None = None,
        quoting: bool | None = None,
        labels: Mapping[str, str | float] | None = None,
        label_separator: str | None = None,
        limit: int | None = None,
        sample_weight: Sequence[float] | None = None,
        drop_remainder: bool = False,
    ) -> tf.data.Dataset:
        """Return tokenized, padded batches for `fit`, `evaluate` and `predict` of Keras.

        Batches are padded to one of a few lengths. With `shuffle`, examples of similar length
        share a batch, and every iteration over the dataset is the next epoch, in another order and
        with other masked tokens: a function of (seed, epoch). Without, they stay in order.

        Args:
            data: A file, a prepared corpus, or a list of texts or of dicts of fields.
            columns: Field to the file's column, such as `{"text": "sentence"}`. What is unset
                here and below is as the recipe of the model's run says.
            batch_size: Examples per batch (of embedding tasks: pairs).
            shuffle: Whether to shuffle, and to put examples of similar length together.
            seed: Of the order and of masked tokens.
            format: The file's format; by its ending where unset.
            header: Whether the first line of a table names the columns: yes where unset.
            quoting: Whether fields may be in double quotes. Unset: yes in CSV, no in TSV.
            labels: Names for labels as they are in the data, such as `{"0": "negative"}`.
            label_separator: What separates several labels in one field.
            limit: Only so many examples, from the start.
            sample_weight: A weight for each example; then batches have it as third part.
            drop_remainder: Whether to leave out the last batch where it is not full.

        Returns:
            A dataset of known length of (inputs {name: int32 [B, T]}, targets[, weights [B]]);
            of inputs alone where the examples have no labels. Embedding: inputs [B, 2, T].

        Raises:
            DataError: The file, or an example in it, cannot be used.
        """
        options = {
            "format": format,
            "columns": columns,
            "header": header,
            "quoting": quoting,
            "labels": labels,
            "label_separator": label_separator,
        }
        reading = {name: value for name, value in options.items() if value is not None}
        _, examples = _evaluation_data(self.source, data, limit, reading)
        task = self.task.with_decoder_start_token_id(self.checkpoint.decoder_start_token_id)
        features = task.load_features(examples, self.tokenizer)
        plan = Batches(
            features.lengths,
            features.units,
            batch_size,
            seed=seed,
            shuffle=shuffle,
            smallest=batch_size if drop_remainder else 1,
            source_lengths=features.source_lengths,
        )
        return feeding.epochs(
            lambda epoch: task.for_epoch(features, seed, epoch if shuffle else 0),
            plan,
            list(self.keras.input),
            None if sample_weight is None else [sample_weight[row] for row in features.example],
        )

    @check_options
    def compile(
        self,
        learning_rate: float | keras_package.optimizers.schedules.LearningRateSchedule = 5e-5,
        *,
        steps: int | None = None,
        warmup: float | None = None,
        schedule: Literal["linear", "cosine", "inverse_sqrt", "constant"] | None = None,
        weight_decay: float = 0.01,
        clip_norm: float | None = 1.0,
        optimizer: keras_package.optimizers.Optimizer | str | None = None,
        loss: Any = None,
        metrics: Any = None,
        label_smoothing: float = 0.0,
        class_weights: Mapping[str, float] | Sequence[float] | None = None,
        jit_compile: bool = False,
        run_eagerly: bool = False,
        steps_per_execution: int = 1,
    ) -> None:
        """Compile with the task's loss and metrics, and AdamW with warm-up.

        AdamW (Loshchilov and Hutter 2019) has no weight decay on biases and normalizations.

        Args:
            learning_rate: The highest learning rate, or a schedule of your own.
            steps: Optimizer steps of the training to come, such as `epochs * len(dataset)`; the
                rate falls linearly to 0 at the last. Unset: it stays constant after the warm-up.
            warmup: Steps over which the rate rises from 0; below 1 a share of `steps`. Unset: 6%
                of `steps`, or 100 steps.
            schedule: How the rate falls; unset: "linear" with `steps`, else "constant".
            weight_decay: AdamW's, on matrices only.
            clip_norm: The largest global norm of the gradient; None: no limit.
            optimizer: A Keras optimizer in place of AdamW.
            loss: A Keras loss in place of the task's.
            metrics: Keras metrics in place of the task's.
            label_smoothing: The share of a target's weight that is spread over all labels.
            class_weights: A weight per label in the loss, by name or in order.
            jit_compile: As `keras.Model.compile`.
            run_eagerly: As `keras.Model.compile`.
            steps_per_execution: As `keras.Model.compile`.

        Raises:
            SettingError: An option that the task has no use for.
        """
        if optimizer is None:
            rate = learning_rate
            if isinstance(rate, int | float):
                rate = _schedule(float(rate), steps, warmup, schedule)
            optimizer = AdamW(
                rate,
                weight_decay=weight_decay,
                global_clipnorm=clip_norm,
                epsilon=1e-8,
                decay_vectors=False,
            )
        if self.trainable.dtype_policy.name == "mixed_float16":
            # Keras would add it by itself, but leave it and its state out of a `.keras` file.
            optimizer = keras_package.optimizers.get(optimizer)
            if not isinstance(optimizer, keras_package.optimizers.LossScaleOptimizer):
                optimizer = keras_package.optimizers.LossScaleOptimizer(optimizer)
        weights = dict(class_weights) if isinstance(class_weights, Mapping) else class_weights
        self.trainable.compile(
            optimizer,
            loss=self.task.loss(label_smoothing, weights) if loss is None else loss,
            metrics=self.task.metrics() if metrics is None else metrics,
            jit_compile=jit_compile,
            run_eagerly=run_eagerly,
            steps_per_execution=steps_per_execution,
        )

    @check_options
    def fit(
        self,
        x: Any,
        y: Any = None,
        *,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: str | int = "auto",
        callbacks: Sequence[keras_package.callbacks.Callback] | None = None,
        validation_data: Any = None,
        validation_freq: int = 1,
        validation_steps: int | None = None,
        class_weight: Mapping[int, float] | None = None,
        sample_weight: Any = None,
        shuffle: bool | None = None,
        initial_epoch: int = 0,
        steps_per_epoch: int | None = None,
    ) -> keras_package.callbacks.History:
        """Train with `keras.Model.fit`, whose arguments these are; `x` is usually a `dataset`.

        A dataset is shuffled by itself; `shuffle` is for arrays.

        Returns:
            Keras' History.
        """
        return self.trainable.fit(
            x,
            y,
            batch_size=batch_size,
            epochs=epochs,
            verbose=verbose,
            callbacks=list(callbacks or ()),
            validation_data=validation_data,
            validation_freq=validation_freq,
            validation_steps=validation_steps,
            class_weight=None if class_weight is None else dict(class_weight),
            sample_weight=sample_weight,
            shuffle=not isinstance(x, tf.data.Dataset) if shuffle is None else shuffle,
            initial_epoch=initial_epoch,
            steps_per_epoch=steps_per_epoch,
        )

    def generator(self, precision: str = "float32") -> Any:
        """Return what generates text with the current weights; see InferenceModel.generator."""
        generator = super().generator()
        if precision != "float32":  # of new copies: the weights may have been trained
            return type(generator)(self.checkpoint, precision=precision)
        decoder = generator.engine.decoder
        if decoder.head is not None:  # a copy of the embeddings
            table = decoder.layers["token_embedding"].embeddings
            decoder.head.assign(tf.transpose(tf.convert_to_tensor(table)))
        return generator

    def save(self, directory: str | Path) -> Path:
        """Write a tfllm checkpoint: weights, configuration, task and tokenizer, all or nothing.

        Args:
            directory: Where to write; an older checkpoint there is replaced.

        Raises:
            StorageError: It cannot be written; an older checkpoint is as it was.
        """
        return store.save(self.checkpoint, directory)

    @check_options
    def export(
        self,
        profile: str | Path | Profile,
        output: str | Path,
        *,
        data: Data | None = None,
        limit: int | None = None,
        overrides: Sequence[str] = (),
        on_check: Callable[[Check], None] | None = None,
    ) -> Artifact:
        """Write an artifact and check it against this model. See `tfllm.export`.

        Args:
            profile: A built-in profile, a YAML file or a Profile.
            output: Directory of the artifact; of a SavedModel, of its versions.
            data: Labeled examples, on which the task's metric may not fall.
            limit: Only so many examples, from the start.
            overrides: `key=value` texts of the profile.
            on_check: Called with each check as it is done.

        Returns:
            The artifact's path and checks.

        Raises:
            CheckFailed: A check did not pass. What was at `output` before is unchanged.
            SettingError: The target cannot hold this model, or not as the profile asks.
        """
        return export(
            self,
            profile,
            output,
            data=data,
            limit=limit,
            overrides=overrides,
            on_check=on_check,
        )


@check_options
def load(
    source: str | Path,
    *,
    task: str | Task | Mapping[str, Any] | None = None,
    labels: Sequence[str] | None = None,
    max_length: int | None = None,
    dtype: str | None = None,
    seed: int | None = None,
    tokenizer: str | Path | None = None,
) -> Model:
    """Load a checkpoint as a model to train, predict or generate with, save and export.

    Args:
        source: A tfllm checkpoint or run, a Hugging Face directory, `hf://org/name`, or a
            llama2.c file.
        task: What the model is for: "classification", "token_classification",
            "question_answering", "embedding", "masked_lm", "next_sentence", "pretraining",
            "causal_lm" or "seq2seq"; or a Task with all its settings. Unset: the checkpoint's own.
            A head that the checkpoint does not have is new, with random weights.
        labels: The names of the labels, for tasks that have some, in the order of the outputs.
        max_length: The most tokens of a row, special tokens included.
        dtype: A Keras dtype policy, such as "mixed_bfloat16". Unset: the current one.
        seed: Of the weights of a new head.
        tokenizer: The tokenizer's file, for a llama2.c file.

    Returns:
        The model.

    Raises:
        CheckpointError: The source is not a checkpoint, or it is damaged.
        SettingError: The model cannot have this task.
    """
    chosen = _task(source, task, labels, max_length)
    before = keras_package.config.dtype_policy()
    if dtype is not None:
        _set_policy(dtype)
    try:
        checkpoint = store.load(source, task=chosen, seed=seed, tokenizer=tokenizer)
    finally:
        keras_package.config.set_dtype_policy(before)
    return Model(checkpoint, source)


@check_options
def open(source: str | Path) -> InferenceModel:
    """Open any model for `predict`, `generate` and `evaluate`.

    Args:
        source: A checkpoint (see `load`), a SavedModel or the directory of its versions, a .tflite
            file or its directory, a .litertlm file or its directory.

    Returns:
        An InferenceModel; a `Model` where the source is a checkpoint.

    Raises:
        CheckpointError: A checkpoint is damaged, or the path is no model.
        ArtifactError: An exported file is damaged.
    """
    try:
        store.find(source)
    except CheckpointError:  # an artifact or, as its error says, no model at all
        return InferenceModel(open_model(source), source)
    return load(source)


@check_options
def train(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    *,
    output: str | Path | None = None,
    overrides: Sequence[str] = (),
    resume: bool = False,
    callbacks: Sequence[keras_package.callbacks.Callback] = (),
    progress: bool = True,
    on_check: Callable[[Check], None] | None = None,
    on_export: Callable[[Artifact], None] | None = None,
) -> Run:
    """Train what a recipe says, then export to the profiles that it names.

    Args:
        recipe: A YAML file, the same as a dict, or a Recipe.
        output: The run's directory; runs/NAME where unset.
        overrides: `key=value` texts, such as "train.epochs=1".
        resume: Continue the run in the directory, exactly.
        callbacks: Keras callbacks, called with the run's epochs.
        progress: Whether to show a bar on stderr.
        on_check: Called with each check of an export.
        on_export: Called with each artifact.

    Returns:
        The run: its directory, its summary, and the signal that stopped it, if any.

    Raises:
        InputError: The recipe, its data or its checkpoint cannot be used; nothing is written.
        TrainingFailed: The loss is not a number, or a worker was lost.
    """
    settings = recipe_of(recipe, overrides)
    for name in settings.export:
        load_profile(name)  # a wrong name is an error now, not after training
    directory = Path(output or Path("runs") / settings.name)
    cluster = clusters.find_cluster(os.environ)
    if cluster is not None and not cluster.is_chief:  # of several workers the first alone writes
        return training.train(settings, directory, resume, progress=progress, callbacks=callbacks)
    run_directory.check_free(directory, resume)
    with run_directory.locked(directory):
        run = training.train(
            settings, directory, resume, progress=progress, callbacks=callbacks, locked=True
        )
        for name in settings.export if run.signal is None else ():
            # A profile's own file is named by its path: its artifact is under the file's name.
            folder = Path(name).stem if name.endswith((".yaml", ".yml")) else name
            target = run.directory / "export" / folder
            artifact = export(run.directory, name, target, on_check=on_check)
            if on_export:
                on_export(artifact)
    return run


@check_options
def evaluate(
    model: str | Path | InferenceModel,
    data: Data,
    *,
    overrides: Sequence[str] = (),
    limit: int | None = None,
    batch_size: int = 32,
    plots: str | Path | None = None,
    on_start: Callable[[int], None] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure a checkpoint or an artifact on examples with gold answers.

    Args:
        model: A path or name, see `open`, or an opened model.
        data: A file, a prepared corpus, or a list of examples.
        overrides: `key=value` texts about reading, measuring and generating, such as
            "columns.text=sentence" or "num_beams=4".
        limit: Only so many examples, from the start.
        batch_size: Examples per batch.
        plots: A directory for plots of the result.
        on_start: Called with the number of examples before the first is measured.
        progress: Called with the number of examples done since its last call.

    Returns:
        `{"metrics": {...}, "examples", "seconds", "model", "data", "versions"}`.

    Raises:
        DataError: The data cannot be measured on; the message names file and line.
        SettingError: An override is not valid.
        StorageError: `plots` is a file.
    """
    source = model.source if isinstance(model, InferenceModel) else str(model)
    settings, examples = _evaluation_data(source, data, limit, {}, overrides)
    if plots is not None and Path(plots).is_file():
        raise StorageError(f"--plots: '{plots}' is a file. Name a directory.")
    opened = model if isinstance(model, InferenceModel) else open(model)
    if on_start is not None:
        on_start(len(examples))
    measured = harness.measured_answers(
        opened.predictor, examples, batch_size=batch_size, progress=progress, **settings.options
    )
    if plots is not None:
        write_plots(measured.metrics, measured.answers, measured.examples, str(plots))
    name = str(data) if isinstance(data, str | Path) else f"{len(examples)} examples"
    return harness.report(measured, model=source or "model", data=name)


@check_options
def export(
    model: str | Path | Model,
    profile: str | Path | Profile,
    output: str | Path,
    *,
    data: Data | None = None,
    limit: int | None = None,
    overrides: Sequence[str] = (),
    on_check: Callable[[Check], None] | None = None,
) -> Artifact:
    """Write an artifact, check it against the model, and keep it only when every check passes.

    Args:
        model: A checkpoint's path or name, see `load`, or a loaded model.
        profile: The name of a profile ("savedmodel", "tflite-int8", "litertlm", ...), a YAML file
            of `export/`, or a Profile.
        output: The artifact's folder; of a SavedModel the folder of its versions.
        data: Examples with gold answers, on which the task's metric may not fall.
        limit: Only so many examples of `data`, from the start.
        overrides: `key=value` texts for the profile, such as "max_length=64".
        on_check: Called with each check as it is done.

    Returns:
        The artifact: its path, its files and the checks that it passed.

    Raises:
        CheckFailed: It differs from the model; nothing is kept.
        SettingError: This model cannot be exported so.
    """
    settings = profile if isinstance(profile, Profile) else load_profile(str(profile), overrides)
    source = model.source if isinstance(model, Model) else str(model)
    file = data if isinstance(data, str | Path) else settings.calibration.data
    if file and source and settings.data == ReadSettings():  # as the run's recipe says
        reading = settings_for(source, str(file)).reading
        settings = settings.model_copy(update={"data": reading})
    elif source and settings.data == ReadSettings() and (recorded := settings_of_run(source)):
        settings = settings.model_copy(update={"data": recorded})
    examples = [] if data is None else read_examples(data, settings.data, limit)
    checkpoint = model.checkpoint if isinstance(model, Model) else store.load(model)
    if (task := checkpoint.task.export_task()) is not checkpoint.task:
        checkpoint = _with_task(checkpoint, task)
    return write_artifact(checkpoint, settings, output, examples, on_check=on_check)


def recipe_of(
    recipe: str | Path | Mapping[str, Any] | Recipe, overrides: Sequence[str] = ()
) -> Recipe:
    """Return a recipe with overrides applied.

    Args:
        recipe: A YAML file, its content as plain data, or a Recipe.
        overrides: `key=value` texts.

    Raises:
        SettingError: A key or value is not valid; the message names file and line.
    """
    if isinstance(recipe, str | Path):
        return config.load(recipe, Recipe, overrides)
    if isinstance(recipe, Recipe):
        if not overrides:
            return recipe
        recipe = recipe.model_dump(mode="json")
    return config.build(recipe, Recipe, "recipe", overrides=overrides)


def _evaluation_data(
    source: str | None,
    data: Data,
    limit: int | None,
    options: Mapping[str, Any],
    overrides: Sequence[str] = (),
) -> tuple[EvaluationSettings, Sequence[Any]]:
    """The settings of an evaluation, and its examples.

    Of a file, what neither `options` nor `overrides` set is as the model's run or export says.
    """
    path = str(data) if isinstance(data, str | Path) else ""
    settings = settings_for((path and source) or "", path, overrides, options)
    return settings, read_examples(data, settings.reading, limit)


def read_examples(data: Data, settings: ReadSettings, limit: int | None = None) -> Sequence[Any]:
    """Return the examples of a file, a prepared corpus or a list. Raises DataError."""
    if isinstance(data, str | Path):
        corpus = find_corpus(str(data))
        if corpus is not None:
            return corpus
        return list(itertools.islice(sources.read(str(data), settings), limit))
    rows = ({"text": each} if isinstance(each, str) else dict(each) for each in data)
    return list(itertools.islice(sources.named(rows, settings), limit))


GENERATION_OPTIONS = tuple(FIELDS)
GENERATE_OPTIONS = (
    "config", "stop_strings", "bad_words", "truncate", "batch_size", "precision", "stream",
    "on_text", "details",
)  # fmt: skip


def _check_names(function: str, options: Iterable[str], known: Sequence[str]) -> None:
    for name in options:
        if name not in known:
            raise SettingError(f"{function} has no option '{name}'. {did_you_mean(name, known)}")


def _task(
    source: str | Path,
    task: str | Task | Mapping[str, Any] | None,
    labels: Sequence[str] | None,
    max_length: int | None,
) -> Task | None:
    """The task to load a checkpoint for; None for its own."""
    changes: dict[str, Any] = {}
    if labels is not None:
        changes["labels"] = list(labels)
    if max_length is not None:
        changes["max_length"] = max_length
    if task is None and not changes:
        return None
    if isinstance(task, Mapping):
        return tasks.build({**task, **changes})
    if isinstance(task, Task):
        return tasks.build({**task.model_dump(mode="json"), **changes}) if changes else task
    own = _own_task(source)
    if task is None and own is None:
        raise SettingError(f"labels, max_length: '{source}' has no task of its own. Give task=.")
    if own is not None and task in (None, own["kind"]):
        return tasks.build({**own, **changes})
    return tasks.build({"kind": task, **changes})


def _own_task(source: str | Path) -> dict[str, Any] | None:
    """The task of a checkpoint as plain data; None where its head has none in tfllm."""
    path = store.find(source)
    try:
        return describe.describe(path)["task"]
    except CheckpointError:
        return None


def _set_policy(dtype: str) -> None:
    try:
        keras_package.config.set_dtype_policy(dtype)
    except ValueError:
        raise SettingError(
            f"dtype: Keras has no dtype policy '{dtype}'. Use float32, mixed_bfloat16 or "
            "mixed_float16."
        ) from None


def _with_task(checkpoint: Checkpoint, task: Task) -> Checkpoint:
    """The same weights under the head of another task."""
    with tempfile.TemporaryDirectory() as folder:
        store.save(checkpoint, Path(folder) / "checkpoint")
        loaded = store.load(Path(folder) / "checkpoint", task=task)
    return dataclasses.replace(loaded, path=checkpoint.path)


def _schedule(peak: float, steps: int | None, warmup: float | None, kind: str | None) -> Schedule:
    if steps is None:
        if kind not in (None, "constant", "inverse_sqrt"):
            raise SettingError(
                f"schedule {kind}: it ends at a known step. Give steps, such as "
                "epochs * len(dataset)."
            )
        if warmup is not None and 0 < warmup < 1:
            raise SettingError("warmup: below 1 it is a share of steps. Give steps, or a number.")
        rise = WARMUP_STEPS if warmup is None else int(warmup)
        return Schedule(peak, kind or "constant", rise, rise)
    rise = warmup_steps(WARMUP_SHARE if warmup is None else warmup, steps)
    return Schedule(peak, kind or "linear", rise, steps)


def _examples_of(inputs: Any) -> tuple[list[dict[str, Any]], bool]:
    """(examples as dicts of fields, whether it was one and no list)."""
    single = isinstance(inputs, str | Mapping)
    examples = [inputs] if single else list(inputs)
    return [
        {"text": example} if isinstance(example, str) else dict(example) for example in examples
    ], single


def _is_single(prompts: Any) -> bool:
    """Whether it is one prompt: a text, an example, or one conversation."""
    if isinstance(prompts, str | Mapping):
        return True
    return bool(prompts) and isinstance(prompts[0], Mapping) and "role" in prompts[0]


def _prompt_example(prompt: Any) -> dict[str, Any]:
    """A prompt as an example with `prompt` or `messages`."""
    if isinstance(prompt, str):
        return {"prompt": prompt}
    if not isinstance(prompt, Mapping):
        return {"messages": list(prompt)}
    text = next((prompt[name] for name in ("prompt", "source", "text") if name in prompt), None)
    if isinstance(text, str):
        return {**prompt, "prompt": text}
    if isinstance(prompt.get("messages"), list):
        return dict(prompt)
    where = prompt.get("_where", "the prompt")
    raise SettingError(
        f"{where}: neither 'prompt' (a text) nor 'messages' (a list of messages). Give one of them."
    )


def _settings(
    generator: Any, config: GenerationConfig | None, options: Mapping[str, Any]
) -> GenerationConfig:
    """The fields of `config`, `options` in their place; the generator's defaults for others."""
    fields: dict[str, Any] = {} if config is None else config.model_dump(exclude_unset=True)
    fields |= options
    for name in ("bad_words_ids", "eos_token_id"):
        if isinstance(fields.get(name), list | tuple):
            fields[name] = tuple(
                tuple(each) if isinstance(each, list) else each for each in fields[name]
            )
    return generator.generation_config(**fields)


class _Stopped(Exception):
    """Whoever reads a stream has gone."""


def _stream(generate: Callable[[Callable[[int, str], None]], Any]) -> Iterator[str]:
    """The pieces that `generate` passes to its callback, as they come, from another thread."""
    pieces: queue.SimpleQueue[str | BaseException | None] = queue.SimpleQueue()
    stopped = threading.Event()

    def on_text(number: int, piece: str) -> None:
        if stopped.is_set():
            raise _Stopped
        pieces.put(piece)

    def work() -> None:
        try:
            generate(on_text)
            pieces.put(None)
        except BaseException as error:
            pieces.put(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while (piece := pieces.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            yield piece
    finally:
        stopped.set()
        thread.join()
