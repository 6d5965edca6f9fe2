"""tfllm convert: checkpoints between tfllm and Hugging Face, both ways."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

EXAMPLES = """Examples:

tfllm convert hf://sentence-transformers/all-MiniLM-L6-v2 --output checkpoints/minilm

tfllm convert runs/sst2 --output for-transformers --to huggingface
"""


def convert(
    source: Annotated[str, typer.Argument(help="Checkpoint, run, or hf://org/name.")],
    output: Annotated[str, typer.Option(help="The new directory.")],
    to: Annotated[
        Literal["tfllm", "huggingface"], typer.Option(help="The form to write.")
    ] = "tfllm",
) -> None:
    """Writes a checkpoint in the other form: weights, head, labels and tokenizer."""
    from tfllm.checkpoints import huggingface, store
    from tfllm.checkpoints.files import refuse_occupied

    refuse_occupied(output)
    checkpoint = store.load(source)
    written = (store.save if to == "tfllm" else huggingface.write)(checkpoint, output)
    print(written)


COMMANDS = {"": convert}
