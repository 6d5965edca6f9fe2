"""Options that several verbs have, with one name and one help text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RecipeFile = Annotated[Path, typer.Argument(help="The recipe, a YAML file of models/.")]
Overrides = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the recipe. Repeatable."),
]
RunDirectory = Annotated[
    Path | None, typer.Option(help="The run's directory; runs/NAME where unset.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Resume the run in the directory, exactly.")]
