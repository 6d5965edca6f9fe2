"""Train a recipe into a run directory, through `keras.Model.fit`.

train -> _train -> _prepare: examples, initial model, features, validation
                -> _compile: the Keras model that is trained (`tfllm.training.model`)
                -> _fit:     model.fit with `RunCallback` (`tfllm.training.callbacks`)
                -> _finish:  checkpoint and summary.json
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfllm import config
from tfllm.data import batching, feeding
from tfllm.data.settings import train_examples, validation_examples
from tfllm.errors import DataError, SettingError
from tfllm.evaluation import metrics
from tfllm.tasks import Features, Task
from tfllm.tasks.features import Example
from tfllm.tokenizers.base import Tokenizer
from tfllm.training import checks, jax_model, optimizers, resuming
from tfllm.training import directory as files
from tfllm.training.acceleration import kernels, precision, rematerialization
from tfllm.training.callbacks import CallerCallbacks, RunCallback, RunContext, check_best
from tfllm.training.distribution import strategies
from tfllm.training.distribution.strategies import Devices
from tfllm.training.initial_model import InitialModel, build_model
from tfllm.training.jax_model import JaxModel
from tfllm.training.model import TrainingModel, fold_replica_into_dropout
from tfllm.training.monitoring.logs import RunLog
from tfllm.training.monitoring.profiling import ProfileSteps
from tfllm.training.monitoring.progress import ProgressBar
from tfllm.training.monitoring.resources import ResourceMonitor, target_share
from tfllm.training.recipe import Recipe, TrainSettings
from tfllm.training.resuming import PreviousRun
from tfllm.training.state import TrainingProgress
from tfllm.training.stopping import catch_stop_signals
from tfllm.training.validation import Measure, Validation, generated_texts, input_names
from tfllm.training.vocabulary import is_trained

DEFAULT_EPOCHS = 3

FitModel = TrainingModel | JaxModel


@dataclass(frozen=True)
class Run:
    """The result of a training."""

    directory: Path
    summary: dict[str, Any]
    signal: int | None = None
    """The signal that stopped it before its end, or None."""


def train(
    recipe: Recipe,
    output: str | Path | None = None,
    resume: bool = False,
    measure: Measure | None = metrics.measure,
    progress: bool = True,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    *,
    locked: bool = False,
) -> Run:
    """Train a recipe and write a run directory.

    SIGINT (Ctrl-C), SIGTERM and SIGHUP save the state and return. Of several workers
    (`training.distribution.cluster`) the chief alone writes.

    Args:
        recipe: The recipe.
        output: The run's directory; runs/NAME where None.
        resume: Continue from the newest state in the directory, exactly.
        measure: From (task, answers, examples) to metrics beside the task's own Keras metrics.
            None: those alone.
        progress: Whether to show progress on stderr.
        callbacks: Keras callbacks, called by the run's epochs as `fit` would, and which may stop it
            (`tfllm.training.callbacks.CallerCallbacks`).
        locked: Whether the caller holds the directory's lock (`tfllm.training.directory.locked`).

    Returns:
        The run, with its summary.

    Raises:
        InputError: Before anything is written: a setting, a file or the directory is not usable.
        TrainingFailed: The loss is not finite, or a worker was lost.
    """
    directory = Path(output or Path("runs") / recipe.name)
    devices = strategies.choose(
        recipe.train.strategy, recipe.train.model_devices, recipe.train.worker_timeout
    )
    with strategies.report_lost_workers(devices, directory), contextlib.ExitStack() as stack:
        if devices.is_chief and not locked:
            files.check_free(directory, resume)
            stack.enter_context(files.locked(directory))
        previous = resuming.read_previous_run(recipe, directory, resume, devices)
        return _train(recipe, directory, previous, devices, measure, progress, callbacks)


def _train(
    recipe: Recipe,
    directory: Path,
    previous: PreviousRun,
    devices: Devices,
    measure: Measure | None,
    show_progress: bool,
    callbacks: Sequence[keras.callbacks.Callback],
) -> Run:
    settings = recipe.train.model_copy(update=previous.resolved)
    keras.utils.set_random_seed(settings.seed)
    with devices.strategy.scope(), precision.policy(settings.precision):
        data = _prepare(recipe, settings, directory, previous, devices, measure)
        if previous.summary is not None:
            return Run(directory, previous.summary)
        initial, features, examples = data.initial, data.features, data.examples
        batches = _batches(settings, features, devices.replicas)
        steps = _total_steps(settings, batches)
        if devices.is_chief:
            checks.warn_of_warmup(settings, steps)
        model, resolved = _compile(initial, settings, steps, features)
    if devices.replicas > 1:
        fold_replica_into_dropout(model)
    check_best(recipe.evaluate, data.validation, model)
    start = TrainingProgress(
        inputs=data.digests, resolved=previous.resolved | resolved, replicas=devices.replicas,
        backend=keras.backend.backend(),
    )  # fmt: skip
    state_directory = directory if previous.resume else None
    progress = resuming.restore_or_start(state_directory, model, start, devices)
    log = _open_log(recipe, directory, initial, progress, previous) if devices.is_chief else None
    with (
        ProgressBar(steps, progress.step, show_progress and devices.is_chief) as bar,
        catch_stop_signals() as stop,
    ):
        run = RunContext(
            recipe=recipe, directory=directory, progress=progress, batches=batches,
            total_steps=steps, log=log, bar=bar, stop=stop,
            monitor=ResourceMonitor(
                model, settings.precision, devices.replicas, target_share(initial.task), settings
            ),
            save_checkpoint=lambda: initial.save(directory),
            broadcast=devices.broadcast_from_chief,
            describe_rows=lambda rows: resuming.describe_rows(rows, features, examples),
            validation=data.validation,
            caller=CallerCallbacks(callbacks, _epochs(settings)) if callbacks else None,
        )  # fmt: skip
        _fit(model, initial.task, features, run, devices)
        if log is not None:
            log.close()
        if stop.signal is not None and progress.step < steps and not progress.stopped_early:
            return Run(directory, {}, stop.signal)
        return _finish(run, initial, model, settings.precision)


@dataclass(frozen=True)
class _Data:
    """What a run is made of, before the model is compiled."""

    examples: Sequence[Example]
    initial: InitialModel
    features: Features
    validation: Validation | None
    digests: dict[str, str]


def _prepare(
    recipe: Recipe,
    settings: TrainSettings,
    directory: Path,
    previous: PreviousRun,
    devices: Devices,
    measure: Measure | None,
) -> _Data:
    """Read the data, build the initial model, and compare both with a run to resume."""
    resume = previous.resume
    examples = train_examples(recipe.data)
    initial = build_model(recipe, examples, directory / files.TOKENIZER if resume else None)
    resolved = initial.resolved(recipe)
    if resume and devices.is_chief:
        files.check_same(directory, resolved, previous.summary is not None)
    features = _features(initial.task, examples, initial.tokenizer)
    if devices.is_chief:
        checks.check_targets(initial.task, features, settings.class_weights)
    validation = _validation(recipe, initial, measure)
    digests = resuming.input_digests(features, validation, initial)
    resuming.check_inputs(previous, resolved, digests, devices)
    if resume and devices.is_chief and previous.summary is None:
        for each in (examples, validation.examples if validation else ()):
            resuming.check_shards(each, previous.started)
    return _Data(examples, initial, features, validation, digests)


def _open_log(
    recipe: Recipe,
    directory: Path,
    initial: InitialModel,
    progress: TrainingProgress,
    previous: PreviousRun,
) -> RunLog:
    """Write the tokenizer and the resolved recipe, and open the run's log."""
    if is_trained(recipe.tokenizer) and not previous.resume:
        initial.tokenizer.save(directory / files.TOKENIZER)
    files.write_text(directory / files.RECIPE, config.dump(initial.resolved(recipe)))
    return RunLog(directory, progress.step)


def _features(task: Task, examples: Sequence[Example], tokenizer: Tokenizer) -> Features:
    features = task.load_features(examples, tokenizer)
    if task.for_epoch(features).targets is None:
        raise DataError(
            f"{examples[0]['_where']}: the examples have no labels to train on. "
            "Name their column in data.columns, for example label: COLUMN"
        )
    return features


def _batches(settings: TrainSettings, features: Features, replicas: int) -> batching.Batches:
    if features.group > 1 and settings.accumulate > 1:
        raise SettingError(
            "train.accumulate must be 1 for this task: its loss compares all examples of a batch."
        )
    if features.group > 1 and replicas > 1:
        raise SettingError(
            f"train.strategy: {replicas} devices would each compare only their own part of a "
            "batch, and this task's loss compares all examples of it. Use train.strategy=one."
        )
    return batching.Batches(
        features.lengths,
        features.units,
        settings.batch_size,
        settings.batch_tokens,
        settings.seed,
        source_lengths=features.source_lengths,
    )


def _total_steps(settings: TrainSettings, batches: batching.Batches) -> int:
    if settings.steps:
        return settings.steps
    epochs = _epochs(settings)
    assert epochs is not None
    return sum(len(batches.epoch(epoch)) for epoch in range(epochs))


def _epochs(settings: TrainSettings) -> int | None:
    """The number of epochs; None where the recipe counts steps."""
    return None if settings.steps else settings.epochs or DEFAULT_EPOCHS


def _compile(
    initial: InitialModel, settings: TrainSettings, steps: int, features: Features
) -> tuple[FitModel, dict[str, str]]:
    """Compile the model with loss and optimizer; also return what `train.kernels` resolved to."""
    trained = initial.task.training_model(initial.model)
    on_jax = keras.backend.backend() == "jax"
    model: FitModel = (JaxModel if on_jax else TrainingModel)(trained.input, trained.output)
    resolved = {}
    if on_jax:
        jax_model.check_settings(settings)
    else:
        resolved["kernels"] = _accelerate(model, initial, settings)
    model.micro_batches = settings.accumulate
    model.clip_norm = settings.clip_norm
    if settings.ema is not None:
        model.averages = optimizers.WeightAverages(model.trainable_variables, settings.ema)
    weights = settings.class_weights
    if weights == "balanced":
        weights = balanced_weights(initial.task, features)
    model.compile(
        optimizer=optimizers.build_optimizer(settings, steps, model.trainable_variables),
        loss=initial.task.loss(settings.label_smoothing, weights),
        # On a CPU, XLA in TensorFlow multiplies bfloat16 several times slower.
        jit_compile=on_jax,
        auto_scale_loss=False,
    )
    return model, resolved


def _accelerate(model: FitModel, initial: InitialModel, settings: TrainSettings) -> str:
    """Install faster kernels and rematerialization; return which kernels."""
    chosen = kernels.choose(settings.kernels, _count_parameters(model.trainable_weights))
    if chosen != "plain":
        kernels.install(model, compiled=chosen == "compiled")
    if settings.rematerialize and not rematerialization.install(model):
        raise SettingError(
            f"train.rematerialize: '{initial.checkpoint.family}' has no blocks that can be "
            "rematerialized. Set it to false."
        )
    return chosen


def balanced_weights(task: Task, features: Features) -> tuple[float, ...]:
    """Compute examples / (labels * examples of the label), as scikit-learn's "balanced".

    Args:
        task: A task with labels.
        features: The training rows.

    Returns:
        A weight for each label.

    Raises:
        SettingError: The task has no labels.
    """
    labels = getattr(task, "labels", ())
    if not labels or features.targets is None:
        raise SettingError("train.class_weights: balanced needs a task with labels.")
    targets = np.concatenate([np.ravel(target) for target in features.targets])
    if getattr(task, "problem", "") == "multi_label":
        counts = np.stack(features.targets).sum(axis=0)
        total = len(features.targets)
    else:
        counts = np.bincount(targets[targets >= 0].astype(int), minlength=len(labels))
        total = counts.sum()
    if not counts.all():
        missing = labels[int(np.argmin(counts))]
        raise SettingError(
            f"train.class_weights: balanced, but no training example has the label '{missing}'. "
            "Remove it from task.labels, or give the weights as numbers."
        )
    return tuple(float(value) for value in total / (len(labels) * counts))


def _validation(
    recipe: Recipe, initial: InitialModel, measure: Measure | None
) -> Validation | None:
    examples = validation_examples(recipe.data)
    if not examples:
        return None
    return Validation(
        initial.task, examples, initial.tokenizer, recipe.evaluate.batch_size, measure,
        recipe.train.seed, generated_texts(initial, examples, measure, recipe.evaluate),
    )  # fmt: skip


def _fit(
    model: FitModel, task: Task, features: Features, run: RunContext, devices: Devices
) -> None:
    """Run the remaining steps, and wait for the last state to be written."""
    progress, settings = run.progress, run.recipe.train
    if progress.step >= run.total_steps or progress.stopped_early:
        return
    callback = RunCallback(run)
    callbacks: list[keras.callbacks.Callback] = [callback]
    if settings.profile is not None and run.log is not None:
        folder = run.directory / files.LOGS
        callbacks.append(ProfileSteps(*settings.profile, folder, progress.step))
    dataset = feeding.dataset(
        lambda epoch: task.for_epoch(features, settings.seed, epoch),
        run.batches,
        input_names(model),
        progress.epoch,
        progress.epoch_step,
        feeding.Split(devices.replicas, devices.own_replicas),
    )
    model.steps_per_call = callback.steps_ahead
    if devices.cluster is not None:
        model.stop_flag = tf.Variable(0.0, trainable=False)
        model.log_names = (*model.log_names, "stop")
    with contextlib.ExitStack() as stack:
        stack.callback(callback.writer.join)
        with devices.fit_scope():
            # One Keras "epoch" is the whole run: the run's epochs are counted by the callback.
            model.fit(
                devices.distribute(dataset),
                epochs=1,
                steps_per_epoch=run.total_steps - progress.step,
                shuffle=False,  # the batches are shuffled
                callbacks=callbacks,
                verbose=0,
            )
        callback.writer.wait()


def _finish(run: RunContext, initial: InitialModel, model: FitModel, kind: str) -> Run:
    """Write the last checkpoint, unless the best one is kept, and the summary."""
    recipe, progress = run.recipe, run.progress
    if run.log is not None and (recipe.evaluate.best is None or progress.best is None):
        with model.averaged():
            initial.save(run.directory)
    texts = run.validation.texts if run.validation and run.log is not None else None
    summary = {
        "name": recipe.name,
        "task": initial.task.kind,
        "steps": progress.step,
        "epochs": round(progress.epoch + progress.epoch_step / len(run.batches.epoch(0)), 3),
        "examples": progress.examples,
        "tokens": progress.tokens,
        "padding": progress.padding,
        "seconds": round(progress.seconds, 3),
        "parameters": _count_parameters(model.weights),
        "trainable_parameters": _count_parameters(model.trainable_weights),
        "precision": kind,
        "replicas": progress.replicas,
        "seed": recipe.train.seed,
        "validation": progress.metrics or None,
        "best": (
            {"measure": recipe.evaluate.best, "value": progress.best, "step": progress.best_step}
            if recipe.evaluate.best is not None
            else None
        ),
        **({"texts": texts.after_training(run.directory)} if texts is not None else {}),
        **run.monitor.summary(),
        **files.environment(),
    }
    if run.log is not None:
        text = json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
        files.write_text(run.directory / files.SUMMARY, text)
    return Run(run.directory, summary)


def _count_parameters(weights: Sequence[keras.Variable]) -> int:
    return sum(math.prod(weight.shape) for weight in weights)
