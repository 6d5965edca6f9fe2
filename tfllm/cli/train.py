"""`tfllm train`: a recipe to a run directory."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tfllm.training.run import Run

EXAMPLES = """
Examples:

  tfllm train models/bert/quickstart.yaml

  tfllm train models/bert/sst2.yaml --set train.epochs=1 --output runs/sst2

  tfllm train models/bert/sst2.yaml --output runs/sst2 --resume
"""

SIGNAL_STATUS = 128  # a shell's status for a command that a signal ended: 128 + its number


def train(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file of models/.")],
    overrides: Annotated[
        list[str],
        typer.Option("--set", metavar="KEY=VALUE", help="Another value for a key of the recipe."),
    ] = [],  # noqa: B006
    output: Annotated[
        Path | None, typer.Option(help="The run's directory; runs/NAME where unset.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in the directory, exactly.")
    ] = False,
) -> None:
    """Train a model from a recipe; the run's directory is printed in the end."""
    from tfllm import config
    from tfllm.training.recipe import Recipe

    settings = config.load(recipe, Recipe, overrides)
    if settings.export:
        from tfllm.export.base import profile

        for name in settings.export:
            profile(name, [])  # a wrong name is an error now, not after training
    directory = output or Path("runs") / settings.name

    from tfllm.training import directory as files

    files.check_free(directory, resume)

    from tfllm.evaluation.metrics import measure
    from tfllm.training.run import train as run_training

    run = run_training(settings, directory, resume, measure)
    if run.signal is not None:
        again = ["tfllm", "train", str(recipe)]
        again += [part for override in overrides for part in ("--set", override)]
        again += ["--output", str(directory), "--resume"]
        print(f"tfllm: stopped; the state is saved. Go on with: {' '.join(again)}", file=sys.stderr)
        raise typer.Exit(SIGNAL_STATUS + run.signal)
    for name in settings.export:
        from tfllm.cli.export import export

        # A profile's own file is named by its path: its artifact lies under the file's name.
        folder = Path(name).stem if name.endswith((".yaml", ".yml")) else name
        export(str(run.directory), name, str(run.directory / "export" / folder))
    _report(run)


def _report(run: Run) -> None:
    """A few lines about the run on stderr, its directory on stdout."""
    from tfllm.training.callbacks import shown

    summary = run.summary
    lines = [
        f"{summary['steps']} steps, {summary['examples']} examples in {summary['seconds']:.0f} s, "
        f"padding {summary['padding']:.0%}, {summary['precision']}"
    ]
    if best := summary.get("best"):
        lines.append(f"best {best['measure']} {best['value']:.4f} at step {best['step']}")
    elif summary.get("validation"):
        lines.append(f"validation: {shown(summary['validation'])}")
    lines.append(f"next: tfllm evaluate {run.directory} --data FILE")
    lines.append(f"      tfllm export {run.directory} --to savedmodel --output DIR")
    print("\n".join(lines), file=sys.stderr)
    print(run.directory)


COMMANDS = {"": train}
