"""tfllm predict: predictions, one JSON line per input."""

from __future__ import annotations

from typing import Annotated, Any

import typer

EXAMPLES = """Examples:

tfllm predict runs/sst2 "a gorgeous, witty film" "dull"

tfllm predict hf://sentence-transformers/all-MiniLM-L6-v2 --input lines.txt --output vectors.jsonl

tfllm predict exports/squad '{"question": "Who?", "context": "Ada wrote it."}'

cat reviews.txt | tfllm predict exports/sst2/model.tflite --input -

tfllm predict runs/multi30k "A man sleeps on a sofa." --set num_beams=4 --set max_new_tokens=60
"""


def predict(
    model: Annotated[str, typer.Argument(help="Checkpoint, run, SavedModel or .tflite file.")],
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="[TEXT]...", help="Texts, or JSON objects.")
    ] = None,
    input: Annotated[
        str | None,
        typer.Option(help="A text per line, JSON lines, or a table; - is standard input."),
    ] = None,
    output: Annotated[str | None, typer.Option(help="File for the lines; stdout if unset.")] = None,
    set: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="How --input is read, e.g. columns.text=sentence; how text is generated from "
            "sources, e.g. num_beams=4.",
        ),
    ] = None,
    truncate: Annotated[
        bool,
        typer.Option("--truncate", help="Sequence to sequence: cut sources that are too long."),
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Inputs per batch.")] = 32,
) -> None:
    """Print the model's predictions, one JSON line per input, in the order of the inputs."""
    import itertools
    import json

    from tfllm.cli.output import progress_bar, result_file
    from tfllm.errors import SettingError
    from tfllm.evaluation.settings import settings_for
    from tfllm.runtimes import inputs

    if bool(texts) == bool(input):
        raise SettingError("Give either texts or --input FILE (- for standard input).")
    settings = settings_for(model, input or "", set or [])
    if input:
        examples = inputs.read_inputs(input, settings)
    elif settings.reading != settings_for(model, "").reading:
        raise SettingError("--set says how --input is read. Give --input FILE, or leave it out.")
    else:
        examples = inputs.parse_texts(texts or [])
    # The first input is read before the model is loaded: a missing file is known at once.
    examples = itertools.chain([next(examples)], examples)

    import tfllm

    opened = tfllm.open(model)
    options: dict[str, Any] = {"truncate": truncate, **settings.generation_options}
    with result_file(output) as file, progress_bar("predicted") as advance:
        while chunk := list(itertools.islice(examples, CHUNK_BATCHES * batch_size)):
            for prediction in opened.predict(
                chunk, batch_size=batch_size, progress=advance, **options
            ):
                file.write(json.dumps(prediction, ensure_ascii=False) + "\n")
            file.flush()


# Inputs of similar length share a batch within so many batches; memory holds only these.
CHUNK_BATCHES = 32

COMMANDS = {"": predict}
