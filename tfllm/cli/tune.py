"""`tfllm tune`: hyperparameter search over a recipe."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tfllm.cli.options import Overrides, RecipeFile

if TYPE_CHECKING:
    from tfllm.training.tuning.search import TuningResult

EXAMPLES = """
Examples:

  tfllm tune models/bert/tiny.yaml --space models/bert/tiny_space.yaml --trials 12

  tfllm tune models/bert/tiny.yaml --space models/bert/tiny_space.yaml --trials 24 --processes 2

  tfllm train runs/tiny-tune/best.yaml

The same command continues a search that was stopped, and joins one that is running.
"""

SIGNAL_STATUS = 128  # a shell's status for a command that a signal ended: 128 + its number


def tune(
    recipe: RecipeFile,
    space: Annotated[
        Path, typer.Option(help="The search space: a YAML file of recipe keys and their ranges.")
    ],
    trials: Annotated[
        int, typer.Option(min=1, help="Number of trials in all, earlier ones included.")
    ] = 20,
    output: Annotated[
        Path | None, typer.Option(help="The search's directory; runs/NAME-tune if unset.")
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="Trials to train in parallel.")] = 1,
    overrides: Overrides = [],  # noqa: B006
) -> None:
    """Search for a recipe's best hyperparameters; print the path of the best recipe.

    Trials are compared by evaluate.best, or by the validation loss.
    """
    from tfllm import config
    from tfllm.training.recipe import Recipe

    data, lines = config.read_yaml(recipe)
    settings = config.build(data, Recipe, source=str(recipe), lines=lines, overrides=overrides)
    data = config.apply_overrides(data, overrides)

    from tfllm.training.tuning import search
    from tfllm.training.tuning.space import read_space

    measure, _ = search.measure_of(settings)
    search_space = read_space(space, data)
    folder = output or Path("runs") / f"{settings.name}-tune"
    _say(f"{trials} trials in '{folder}', compared by {measure} on the validation data")
    tuned = search.tune(data, search_space, trials, folder, processes, _say)
    if tuned.signal is not None:
        print(
            f"tfllm: stopped after {tuned.count} trials; what ran has saved its state. "
            "Resume with the same command.",
            file=sys.stderr,
        )
        raise typer.Exit(SIGNAL_STATUS + tuned.signal)
    _report(tuned, measure)


def _report(tuned: TuningResult, measure: str) -> None:
    """Print the result on stderr, the best recipe's path on stdout."""
    from tfllm.training.tuning.report import BEST, TEXT

    assert tuned.best is not None  # else an error was raised
    text = f"best: trial {tuned.best['number']}, {measure} {tuned.best['value']:.4f}"
    if tuned.first is not None:
        text += f"; the recipe as it is: {tuned.first['value']:.4f}"
    _say(text)
    _say(f"all trials: {tuned.folder / TEXT}")
    _say(f"next: tfllm train {tuned.folder / BEST}")
    print(tuned.folder / BEST)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


COMMANDS = {"": tune}
