"""`tfllm train`: a recipe to a run directory."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from tfllm.cli import INTERRUPTED
from tfllm.cli.options import Overrides, RecipeFile, Resume, RunDirectory

if TYPE_CHECKING:
    from tfllm.training.recipe import Recipe
    from tfllm.training.run import Run

EXAMPLES = """
Examples:

  tfllm train models/bert/quickstart.yaml

  tfllm train models/bert/sst2.yaml --set train.epochs=1 --output runs/sst2

  tfllm train models/bert/sst2.yaml --output runs/sst2 --resume

  tfllm train models/bert/sst2.yaml --set train.strategy=data_parallel

The last one trains with Keras on JAX. Several processes: see tfllm launch --help. With TF_CONFIG in
the environment, or in a Slurm step of several tasks, the command is one worker of a run.
"""


def train(
    recipe: RecipeFile,
    overrides: Overrides = [],  # noqa: B006
    output: RunDirectory = None,
    resume: Resume = False,
) -> None:
    """Train a model from a recipe; the run's directory is printed in the end."""
    import os

    from tfllm.training.distribution import cluster as clusters

    cluster = clusters.find_cluster(os.environ)
    if cluster is None:
        status = _train(recipe, overrides, output, resume)
    else:
        # Not the interpreter's own way out, on which TensorFlow's workers wait for one another.
        os._exit(_worker(lambda: _train(recipe, overrides, output, resume, cluster.is_chief)))
    if status:
        raise typer.Exit(status)


def _worker(work: Callable[[], int]) -> int:
    """The exit status of a worker's run, everything printed."""
    import traceback

    from tfllm.errors import TfllmError

    try:
        return work()
    except TfllmError as error:
        print(f"tfllm: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("tfllm: stopped by Ctrl-C.", file=sys.stderr)
        return INTERRUPTED
    except SystemExit as stop:  # of SIGTERM before the training
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _train(
    recipe: Path, overrides: list[str], output: Path | None, resume: bool, is_chief: bool = True
) -> int:
    """Trains and exports; returns the exit status."""
    from tfllm import config
    from tfllm.training.backend import choose_backend

    choose_backend(recipe, overrides)
    from tfllm.training.recipe import Recipe

    settings = config.load(recipe, Recipe, overrides)
    if settings.export:
        from tfllm.export.base import profile

        for name in settings.export:
            profile(name, [])  # a wrong name is an error now, not after training
    directory = output or Path("runs") / settings.name

    from tfllm.training import directory as files

    if is_chief:
        files.check_free(directory, resume)
        with files.locked(directory):
            run = _run(settings, directory, resume)
            if run.signal is None:
                _export(settings.export, run)
    else:  # of several workers the first alone writes
        run = _run(settings, directory, resume)
    if run.signal is not None:
        again = ["tfllm", "train", str(recipe)]
        again += [part for override in overrides for part in ("--set", override)]
        again += ["--output", str(directory), "--resume"]
        print(f"tfllm: stopped; the state is saved. Go on with: {' '.join(again)}", file=sys.stderr)
    elif is_chief:
        _report(run)
    return _status(run)


def _status(run: Run) -> int:
    """Ctrl-C is a wish to break off; SIGTERM is how schedulers ask for a clean end."""
    return INTERRUPTED if run.signal == signal.SIGINT else 0


def _run(settings: Recipe, directory: Path, resume: bool) -> Run:
    from tfllm.evaluation.metrics import measure
    from tfllm.training.run import train as run_training

    return run_training(settings, directory, resume, measure, locked=True)


def _export(names: Iterable[str], run: Run) -> None:
    for name in names:
        from tfllm.cli.export import export

        # A profile's own file is named by its path: its artifact lies under the file's name.
        folder = Path(name).stem if name.endswith((".yaml", ".yml")) else name
        export(str(run.directory), name, str(run.directory / "export" / folder))


SHOWN_TEXTS = ("bleu", "chrf", "ter", "rouge_l", "length_ratio")


def _report(run: Run) -> None:
    """A few lines about the run on stderr, its directory on stdout."""
    from tfllm.training.callbacks import format_metric, format_metrics

    summary = run.summary
    lines = [
        f"{summary['steps']} steps, {summary['examples']} examples in {summary['seconds']:.0f} s, "
        f"padding {summary['padding']:.0%}, {summary['precision']}"
    ]
    if best := summary.get("best"):
        lines.append(
            f"{best['measure']} was undefined in every measurement: the last checkpoint is kept"
            if best["value"] is None
            else f"best {best['measure']} {format_metric(best['value'])} at step {best['step']}"
        )
    elif summary.get("validation"):
        lines.append(f"validation: {format_metrics(summary['validation'])}")
    if texts := summary.get("texts"):
        measured = {name: value for name, value in texts.items() if name in SHOWN_TEXTS}
        lines.append(f"{texts['examples']} texts written: {format_metrics(measured)}")
    lines.append(f"next: tfllm evaluate {run.directory} --data FILE")
    lines.append(f"      tfllm export {run.directory} --to savedmodel --output DIR")
    print("\n".join(lines), file=sys.stderr)
    print(run.directory)


COMMANDS = {"": train}
