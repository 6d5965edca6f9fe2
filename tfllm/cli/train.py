"""`tfllm train`: a recipe to a run directory."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from tfllm.cli import INTERRUPTED
from tfllm.cli.export import print_checks, print_files
from tfllm.cli.options import Overrides, RecipeFile, Resume, RunDirectory

if TYPE_CHECKING:
    from tfllm.export import Artifact, Check
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
    """Train a model from a recipe, export it as the recipe says, print the run's directory."""
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
    """Run the work of one worker, with its errors printed; return its exit status."""
    import traceback

    from tfllm.errors import TfllmError

    try:
        return work()
    except TfllmError as error:
        print(f"tfllm: {error.cli_message}", file=sys.stderr)
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
    """Train and export; return the exit status."""
    from tfllm.training.backend import choose_backend

    choose_backend(recipe, overrides)  # before Keras is imported
    import tfllm

    checks: list[Check] = []

    def on_export(artifact: Artifact) -> None:
        print_checks(checks)
        print_files(artifact)
        checks.clear()

    try:
        run = tfllm.train(
            recipe,
            output=output,
            overrides=overrides,
            resume=resume,
            on_check=checks.append,
            on_export=on_export,
        )
    finally:
        if checks:  # of an export that failed
            print_checks(checks)
    if run.signal is not None:
        again = ["tfllm", "train", str(recipe)]
        again += [part for override in overrides for part in ("--set", override)]
        again += ["--output", str(run.directory), "--resume"]
        print(
            f"tfllm: stopped; the state is saved. Resume with: {' '.join(again)}", file=sys.stderr
        )
    elif is_chief:
        _report(run)
    return _status(run)


def _status(run: Run) -> int:
    """Ctrl-C stops the run; schedulers send SIGTERM for a clean stop."""
    return INTERRUPTED if run.signal == signal.SIGINT else 0


SHOWN_TEXTS = ("bleu", "chrf", "ter", "rouge_l", "length_ratio")


def _report(run: Run) -> None:
    """Print a few lines about the run on stderr, its directory on stdout."""
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
