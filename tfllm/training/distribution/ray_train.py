"""Runs whose workers Ray Train places (the extra [ray])."""

from __future__ import annotations

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
) -> Path:
    """Train a recipe with the processes of a Ray cluster.

    Args:
        recipe: The recipe.
        directory: The run's directory, which the first worker must be able to write.
        workers: Processes of the cluster that RAY_ADDRESS names, or of one started here.
        resume: Whether to resume the run in the directory.

    Returns:
        The run's directory.

    Raises:
        TrainingFailed: A worker has failed.
        MissingExtra: Ray is not installed.
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
        train_worker,
        train_loop_config=settings,
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=_has_gpus()),
        run_config=RunConfig(name=directory.name, storage_path=str(directory / "workers")),
    )
    try:
        trainer.fit()
    except (TrainingFailedError, RuntimeError) as error:
        raise TrainingFailed(
            f"A worker of Ray failed ({str(error).strip().splitlines()[-1][:200]}). "
            f"Resume from the last state with --output {directory} --resume."
        ) from None
    return directory


def train_worker(settings: dict[str, Any]) -> None:
    """Train as one worker: Ray has set TF_CONFIG."""
    os.chdir(settings["folder"])  # Ray starts workers elsewhere, and recipes name files from here
    from tfllm import config
    from tfllm.training.run import train

    recipe = config.build(json.loads(settings["recipe"]), Recipe, source="the recipe")
    train(recipe, settings["directory"], settings["resume"])


def _has_gpus() -> bool:
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU"))
