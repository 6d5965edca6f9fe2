"""`train(recipe, output)`: from a recipe to a run directory, through `model.fit`."""

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
from tfllm.tasks import Features, Task
from tfllm.training import checks, inputs, jax_model, optimizers, origin, resuming
from tfllm.training import directory as files
from tfllm.training.acceleration import kernels, precision, rematerialization
from tfllm.training.averages import Averages
from tfllm.training.callbacks import Keeper, check_best
from tfllm.training.distribution import strategies
from tfllm.training.distribution.strategies import Devices
from tfllm.training.epochs import Epochs
from tfllm.training.jax_model import JaxModel
from tfllm.training.measuring import Measure, Validation, input_names
from tfllm.training.model import TrainingModel, fold_replica_into_dropout
from tfllm.training.monitoring.logs import Log
from tfllm.training.monitoring.profiling import Profile
from tfllm.training.monitoring.progress import Bar
from tfllm.training.monitoring.watching import Watch, target_share
from tfllm.training.recipe import Recipe, TrainSettings
from tfllm.training.resuming import Opening
from tfllm.training.state import Place
from tfllm.training.stopping import signals
from tfllm.training.texts import texts_of

DEFAULT_EPOCHS = 3


@dataclass(frozen=True)
class Run:
    """What a training came to."""

    directory: Path
    summary: dict[str, Any]
    signal: int | None = None
    """The signal that stopped it before its end, or None."""


def train(
    recipe: Recipe,
    output: str | Path | None = None,
    resume: bool = False,
    measure: Measure | None = None,
    progress: bool = True,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    *,
    locked: bool = False,
) -> Run:
    """Trains what the recipe says and leaves a run directory.

    `output` is runs/NAME where unset. `resume` goes on from the newest state in it, exactly.
    `measure(task, answers, examples)` adds measures to the task's own Keras metrics; `callbacks`
    hear of the run's epochs as those of `fit` (`tfllm.training.epochs`) and may stop it. Ctrl-C,
    SIGTERM and SIGHUP save the state and return. `locked`: the caller holds the directory's lock
    (`tfllm.training.directory.locked`).
    Raises InputError before anything is written, TrainingFailed when the loss is no number or a
    worker was lost. Of several workers (`training.distribution.cluster`) the chief alone writes.
    """
    directory = Path(output or Path("runs") / recipe.name)
    devices = strategies.choose(
        recipe.train.strategy, recipe.train.model_devices, recipe.train.worker_timeout
    )
    with strategies.losses_told(devices, directory), contextlib.ExitStack() as held:
        if devices.is_chief and not locked:
            files.check_free(directory, resume)
            held.enter_context(files.locked(directory))
        opening = resuming.opening(recipe, directory, resume, devices)
        return _train(recipe, directory, opening, devices, measure, progress, callbacks)


def _train(
    recipe: Recipe,
    directory: Path,
    opening: Opening,
    devices: Devices,
    measure: Measure | None,
    progress: bool,
    callbacks: Sequence[keras.callbacks.Callback],
) -> Run:
    resume, chosen = opening.resume, opening.chosen
    kind = chosen["precision"]
    settings = recipe.train.model_copy(update=chosen)
    keras.utils.set_random_seed(settings.seed)
    with devices.strategy.scope(), precision.policy(kind):
        examples = train_examples(recipe.data)
        start = origin.start(recipe, examples, directory / files.TOKENIZER if resume else None)
        if resume and devices.is_chief:
            files.check_same(directory, start.resolved(recipe), opening.summary is not None)
        features = _features(start.task, examples, start.tokenizer)
        if devices.is_chief:
            checks.check_targets(start.task, features, settings.class_weights)
        validation = _validation(recipe, start, measure)
        digests = inputs.digests(features, validation, start)
        resuming.check(opening, start.resolved(recipe), digests, devices)
        if opening.summary is not None:
            return Run(directory, opening.summary)
        if devices.is_chief and resume:
            for read in (examples, validation.examples if validation else ()):
                inputs.check_shards(read, opening.started)
        batches = _batches(settings, features, devices.replicas)
        steps = _total_steps(settings, batches)
        if devices.is_chief:
            checks.warn_of_warmup(settings, steps)
        model, used = _model(start, settings, steps, features)
    if devices.replicas > 1:
        fold_replica_into_dropout(model)
    check_best(recipe.evaluate, validation, model)
    first = Place(
        inputs=digests, chosen=chosen | used, replicas=devices.replicas,
        backend=keras.backend.backend(),
    )  # fmt: skip
    place = resuming.place(directory if resume else None, model, first, devices)
    log = None
    if devices.is_chief:
        if origin.is_learned(recipe.tokenizer) and not resume:
            start.tokenizer.save(directory / files.TOKENIZER)
        files.write_text(directory / files.RECIPE, config.dump(start.resolved(recipe)))
        log = Log(directory, place.step)
    with Bar(steps, place.step, progress and devices.is_chief) as bar, signals() as stop:
        watch = Watch(model, kind, devices.replicas, target_share(start.task), settings)
        keeper = Keeper(
            recipe, directory, place, batches, steps, log, bar, stop,
            lambda: start.save(directory), validation, devices.of_chief,
            lambda rows: resuming.named(rows, features, examples), watch,
            Epochs(callbacks, _epochs(settings)) if callbacks else None,
        )  # fmt: skip
        profiles = []
        if settings.profile is not None and log is not None:
            profiles = [Profile(*settings.profile, directory / files.LOGS, place.step)]
        with contextlib.ExitStack() as last:
            last.callback(keeper.writer.settle)
            _fit(model, start.task, features, keeper, profiles, devices)
            keeper.writer.wait()
        if log is not None:
            log.close()
        if stop.signal is not None and place.step < steps and not place.stopped_early:
            return Run(directory, {}, stop.signal)
        return _finish(keeper, start, model, kind)


def _features(task: Task, examples: Sequence[dict[str, Any]], tokenizer: Any) -> Features:
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
    """How many epochs there will be; None where steps are counted."""
    return None if settings.steps else settings.epochs or DEFAULT_EPOCHS


def _model(
    start: origin.Start, settings: TrainSettings, steps: int, features: Features
) -> tuple[Any, dict[str, str]]:
    """The model compiled with loss and optimizer, and what `train.kernels` came to."""
    trained = start.task.training_model(start.model)
    on_jax = keras.backend.backend() == "jax"
    model: Any = (JaxModel if on_jax else TrainingModel)(trained.input, trained.output)
    used = {}
    if on_jax:
        jax_model.check(settings)
    else:
        used["kernels"] = _install(model, start, settings)
    model.micro_batches = settings.accumulate
    model.clip_norm = settings.clip_norm
    if settings.ema is not None:
        model.averages = Averages(model.trainable_variables, settings.ema)
    weights = settings.class_weights
    if weights == "balanced":
        weights = balanced_weights(start.task, features)
    model.compile(
        optimizer=optimizers.optimizer(settings, steps, model.trainable_variables),
        loss=start.task.loss(settings.label_smoothing, weights),
        # On a CPU, XLA in TensorFlow multiplies bfloat16 several times slower.
        jit_compile=on_jax,
        auto_scale_loss=False,
    )
    return model, used


def _install(model: Any, start: origin.Start, settings: TrainSettings) -> str:
    """Puts in what TensorFlow computes faster, or with less memory; returns the kernels."""
    chosen = kernels.choose(settings.kernels, _parameters(model.trainable_weights))
    if chosen != "plain":
        kernels.install(model, compiled=chosen == "compiled")
    if settings.rematerialize and not rematerialization.install(model):
        raise SettingError(
            f"train.rematerialize: '{start.checkpoint.family}' has no blocks that can be "
            "computed again. Set it to false."
        )
    return chosen


def balanced_weights(task: Task, features: Features) -> tuple[float, ...]:
    """examples / (labels * examples of the label), as scikit-learn's "balanced"."""
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


def _validation(recipe: Recipe, start: origin.Start, measure: Measure | None) -> Validation | None:
    examples = validation_examples(recipe.data)
    if not examples:
        return None
    return Validation(
        start.task, examples, start.tokenizer, recipe.evaluate.batch_size, measure,
        recipe.train.seed, texts_of(start, examples, measure, recipe.evaluate),
    )  # fmt: skip


def _fit(
    model: Any,
    task: Task,
    features: Features,
    keeper: Keeper,
    callbacks: Sequence[keras.callbacks.Callback],
    devices: Devices,
) -> None:
    place, steps = keeper.place, keeper.total_steps
    if place.step >= steps or place.stopped_early:
        return
    seed = keeper.recipe.train.seed
    dataset = feeding.dataset(
        lambda epoch: task.for_epoch(features, seed, epoch),
        keeper.batches,
        input_names(model),
        place.epoch,
        place.epoch_step,
        feeding.Split(devices.replicas, devices.own_replicas),
    )
    model.steps_per_call = keeper.steps_ahead
    if devices.cluster is not None:
        model.stop_flag = tf.Variable(0.0, trainable=False)
        model.log_names = (*model.log_names, "stop")
    with devices.fitting():
        # One Keras "epoch" is the whole run: the place, epochs included, is the keeper's, which
        # calls the caller's callbacks (`tfllm.training.epochs`).
        model.fit(
            devices.fed(dataset),
            epochs=1,
            steps_per_epoch=steps - place.step,
            shuffle=False,  # the batches are
            callbacks=[keeper, *callbacks],
            verbose=0,
        )


def _finish(keeper: Keeper, start: origin.Start, model: Any, kind: str) -> Run:
    """Writes the last checkpoint, if no best one is kept, and the summary."""
    recipe, place = keeper.recipe, keeper.place
    if keeper.log is not None and (recipe.evaluate.best is None or place.best is None):
        with model.averaged():
            start.save(keeper.directory)
    texts = keeper.validation.texts if keeper.validation and keeper.log is not None else None
    summary = {
        "name": recipe.name,
        "task": start.task.kind,
        "steps": place.step,
        "epochs": round(place.epoch + place.epoch_step / len(keeper.batches.epoch(0)), 3),
        "examples": place.examples,
        "tokens": place.tokens,
        "padding": place.padding,
        "seconds": round(place.seconds, 3),
        "parameters": _parameters(model.weights),
        "trainable_parameters": _parameters(model.trainable_weights),
        "precision": kind,
        "replicas": place.replicas,
        "seed": recipe.train.seed,
        "validation": place.measured or None,
        "best": (
            {"measure": recipe.evaluate.best, "value": place.best, "step": place.best_step}
            if recipe.evaluate.best is not None
            else None
        ),
        **({"texts": texts.at_the_end(keeper.directory)} if texts is not None else {}),
        **(keeper.watch.summary() if keeper.watch is not None else {}),
        **files.surroundings(),
    }
    if keeper.log is not None:
        text = json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
        files.write_text(keeper.directory / files.SUMMARY, text)
    return Run(keeper.directory, summary)


def _parameters(weights: Sequence[Any]) -> int:
    """How many numbers the weights hold."""
    return sum(math.prod(weight.shape) for weight in weights)
