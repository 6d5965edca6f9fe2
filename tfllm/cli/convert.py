"""tfllm convert: checkpoints between tfllm and Hugging Face, both ways."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

EXAMPLES = """Examples:

tfllm convert hf://sentence-transformers/all-MiniLM-L6-v2 --output checkpoints/minilm

tfllm convert runs/sst2 --output for-transformers --to huggingface

tfllm convert stories260K.bin --tokenizer tok512.bin --output checkpoints/stories
"""


def convert(
    source: Annotated[str, typer.Argument(help="Checkpoint, run, hf://org/name or llama2.c file.")],
    output: Annotated[str, typer.Option(help="The new directory.")],
    to: Annotated[
        Literal["tfllm", "huggingface"], typer.Option(help="The form to write.")
    ] = "tfllm",
    tokenizer: Annotated[
        str | None, typer.Option(help="Of a llama2.c file; without, the one beside it.")
    ] = None,
) -> None:
    """Writes a checkpoint in the other form: weights, head, labels and tokenizer."""
    from tfllm.checkpoints.files import refuse_occupied
    from tfllm.checkpoints.locate import find

    refuse_occupied(output)
    found = find(source)  # a wrong path is told before Keras is loaded

    from tfllm.checkpoints import huggingface, store

    checkpoint = store.load(found, tokenizer=tokenizer)
    written = (store.save if to == "tfllm" else huggingface.write)(checkpoint, output)
    print(written)


COMMANDS = {"": convert}
