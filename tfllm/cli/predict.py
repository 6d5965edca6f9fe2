"""tfllm predict: answers, one JSON line per input."""

from __future__ import annotations

from typing import Annotated

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
        typer.Option(help="A text a line, JSON lines, or a table; - is standard input."),
    ] = None,
    output: Annotated[str | None, typer.Option(help="File for the lines; stdout if unset.")] = None,
    set: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="How --input is read, e.g. columns.text=sentence; how texts are written after "
            "sources, e.g. num_beams=4.",
        ),
    ] = None,
    truncate: Annotated[
        bool, typer.Option("--truncate", help="Written texts: cut sources that are too long.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Inputs answered at once.")] = 32,
) -> None:
    """Answers, one JSON line per input, in the order of the inputs."""
    import itertools
    import json

    from tfllm.cli.output import progress_bar, result_file
    from tfllm.errors import SettingError
    from tfllm.evaluation.harness import check_generation
    from tfllm.evaluation.settings import settings_for
    from tfllm.runtimes import inputs
    from tfllm.runtimes.opening import open_model

    if bool(texts) == bool(input):
        raise SettingError("Give either texts or --input FILE (- for standard input).")
    overrides = [*(set or []), *(["truncate=true"] if truncate else [])]
    settings = settings_for(model, input or "", overrides)
    if input:
        examples = inputs.read_inputs(input, settings)
    elif settings.reading != settings_for(model, "").reading:
        raise SettingError("--set says how --input is read. Give --input FILE, or leave it out.")
    else:
        examples = inputs.from_texts(texts or [])
    # The first input is read before the model is loaded: a missing file is known at once.
    examples = itertools.chain([next(examples)], examples)
    predictor = open_model(model)
    examples = inputs.check(examples, predictor.task)
    generation = settings.generation_options
    check_generation(generation, predictor.task)
    with result_file(output) as file, progress_bar("answered") as advance:
        while chunk := list(itertools.islice(examples, CHUNK_BATCHES * batch_size)):
            for answer in predictor.answers(chunk, batch_size, advance, **generation):
                file.write(json.dumps(answer, ensure_ascii=False) + "\n")
            file.flush()


# Inputs of like length share a batch within so many batches; memory holds only these.
CHUNK_BATCHES = 32

COMMANDS = {"": predict}
