"""The same runs with their workers placed by Ray Train (the extra [ray])."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any

from tfllm.errors import MissingExtra, TrainingFailed
from tfllm.training.recipe import Recipe


def run(
    recipe: Recipe,
    directory: Path,
    workers: int,
    resume: bool = False,
    measure: Any = None,
) -> Path:
    """Trains a recipe with `workers` processes of the Ray cluster that RAY_ADDRESS names, or of
    one started here; returns the run's directory, which the first worker must be able to write.

    Raises TrainingFailed when a worker fails, MissingExtra without Ray.
    """
    try:
        from ray.train import RunConfig, ScalingConfig
        from ray.train.base_trainer import TrainingFailedError
        from ray.train.tensorflow import TensorflowTrainer
    except ImportError:
        raise MissingExtra("ray[train]", "ray") from None
    directory = directory.absolute()
    settings = {
        "recipe": recipe.model_dump_json(by_alias=True, exclude_unset=True),
        "directory": str(directory),
        "resume": resume,
        "folder": os.getcwd(),
    }
    trainer = TensorflowTrainer(
        functools.partial(work, measure=measure),
        train_loop_config=settings,
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=_has_gpus()),
        run_config=RunConfig(name=directory.name, storage_path=str(directory / "workers")),
    )
    try:
        trainer.fit()
    except (TrainingFailedError, RuntimeError) as error:
        raise TrainingFailed(
            f"A worker of Ray failed ({str(error).strip().splitlines()[-1][:200]}). "
            f"Go on from the last state with --output {directory} --resume."
        ) from None
    return directory


def work(settings: dict[str, Any], measure: Any = None) -> None:
    """One worker: Ray has set TF_CONFIG."""
    os.chdir(settings["folder"])  # Ray starts workers elsewhere, and recipes name files from here
    from tfllm import config
    from tfllm.training.run import train

    recipe = config.build(json.loads(settings["recipe"]), Recipe, source="the recipe")
    train(recipe, settings["directory"], settings["resume"], measure)


def _has_gpus() -> bool:
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU"))
