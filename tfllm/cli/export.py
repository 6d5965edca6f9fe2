"""tfllm export: a checkpoint to files that run elsewhere, each checked against it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tfllm.export import Artifact, Check

EXAMPLES = """Examples:

tfllm export runs/sst2 --to savedmodel --output exports/sst2

tfllm export runs/sst2 --to tflite-int8-full --output exports/sst2-int8 --data dev.tsv

tfllm export runs/sst2 --to mediapipe --output exports/sst2-phone --set max_length=64

tfllm export runs/chat --to litertlm-int8 --output exports/chat --set max_length=1024

tfllm export checkpoints/minilm --to export/savedmodel.yaml --output exports/minilm
"""


WIDTH = 140  # of the table where there is no terminal


def export(
    model: Annotated[str, typer.Argument(help="Checkpoint, run, Hugging Face directory, hf://…")],
    to: Annotated[
        str,
        typer.Option(
            metavar="PROFILE",
            help="savedmodel, tflite-float32, tflite-float16, tflite-int8, tflite-int8-full, "
            "tflite-text, mediapipe; for language models also tflite-int4, tflite-loop, litertlm, "
            "litertlm-int8, savedmodel-xla; or a YAML file of export/.",
        ),
    ],
    output: Annotated[str, typer.Option(help="The artifact's folder; a SavedModel's versions.")],
    data: Annotated[
        str | None,
        typer.Option(help="File with gold answers; the task's metric may not fall on it."),
    ] = None,
    set: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Overrides a key of the profile."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only so many examples of --data, from the start.")
    ] = None,
) -> None:
    """Write an artifact, check it against the checkpoint, and keep it only when all checks pass."""
    import tfllm

    checks: list[Check] = []
    try:
        artifact = tfllm.export(
            model, to, output, data=data, limit=limit, overrides=set or [], on_check=checks.append
        )
    finally:
        if checks:
            print_checks(checks)
    print_files(artifact)


def print_checks(checks: list[Check]) -> None:
    """Print the table of checks."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("check")
    table.add_column("value", overflow="fold")
    table.add_column("limit", overflow="fold")
    table.add_column("passed")
    for check in checks:
        passed = ("yes" if check.limit else "") if check.passed else "NO"
        table.add_row(check.name, check.value, check.limit, passed)
    width = None if sys.stdout.isatty() else WIDTH
    Console(width=width, markup=False, highlight=False).print(table)


def print_files(artifact: Artifact) -> None:
    """Print where the artifact is, and its largest files."""
    total = sum(artifact.files.values())
    print(f"{artifact.path}  {total / 1e6:.2f} MB")
    for name, size in artifact.files.items():
        if size >= total / 100:
            print(f"  {size / 1e6:9.2f} MB  {name}")


COMMANDS = {"": export}
