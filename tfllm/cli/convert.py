"""tfllm convert: checkpoints between tfllm, Hugging Face and GGUF."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

EXAMPLES = """Examples:

tfllm convert hf://sentence-transformers/all-MiniLM-L6-v2 --output checkpoints/minilm

tfllm convert runs/sst2 --output for-transformers --to huggingface

tfllm convert model-Q4_K_M.gguf --output checkpoints/model

tfllm convert runs/chat --output for-llama.cpp --to gguf --dtype q8_0

tfllm convert stories260K.bin --tokenizer tok512.bin --output checkpoints/stories
"""


def convert(
    source: Annotated[
        str, typer.Argument(help="Checkpoint, run, hf://org/name, GGUF or llama2.c file.")
    ],
    output: Annotated[str, typer.Option(help="The new directory.")],
    to: Annotated[
        Literal["tfllm", "huggingface", "gguf"], typer.Option(help="The format to write.")
    ] = "tfllm",
    dtype: Annotated[
        str, typer.Option(help="Of a GGUF file's matrices: f32, f16, bf16, q8_0 or q4_0.")
    ] = "f16",
    tokenizer: Annotated[
        str | None, typer.Option(help="Of a llama2.c file; without, the one beside it.")
    ] = None,
) -> None:
    """Write a checkpoint in another format: weights, head, labels and tokenizer."""
    from tfllm.checkpoints.files import check_writable
    from tfllm.checkpoints.locate import find

    check_writable(output)
    path = find(source)  # a wrong path is an error before Keras is loaded

    from tfllm.checkpoints import gguf, huggingface, store

    checkpoint = store.load(path, tokenizer=tokenizer)
    if to == "gguf":
        print(gguf.write(checkpoint, output, dtype))
    elif to == "huggingface":
        print(huggingface.write(checkpoint, output))
    else:
        print(store.save(checkpoint, output))


COMMANDS = {"": convert}
