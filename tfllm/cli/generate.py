"""tfllm generate: texts after prompts, or from sources."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tfllm.cli.generation_options import (
    Precision,
    Stop,
    check_settings,
    with_generation_options,
)

if TYPE_CHECKING:
    from tfllm.generation.text_generator import GeneratedText
    from tfllm.model import InferenceModel

EXAMPLES = """Examples:

tfllm generate runs/stories "Once upon a time" --stream

tfllm generate gpt2 "The sea" --temperature 0.8 --top-p 0.95 --seed 3 --num-return-sequences 4

tfllm generate runs/poems "床前" --num-beams 5 --max-new-tokens 20 --stop "。"

tfllm generate gpt2 --input prompts.jsonl --json --output texts.jsonl

tfllm generate runs/en-de "A dog runs." --num-beams 5 --num-return-sequences 5 --json

tfllm generate t5-small --input articles.txt --truncate right --max-new-tokens 60
"""

CHUNK_BATCHES = 4  # batches of prompts that are read before their first text is generated


ModelArgument = Annotated[
    str, typer.Argument(help="Checkpoint, run, llama2.c .bin or exported model.")
]
Prompts = Annotated[
    list[str] | None,
    typer.Argument(metavar="[PROMPT]...", help='Prompts ("" too), or sources.'),
]
InputFile = Annotated[
    str | None,
    typer.Option(
        help="A prompt or source per line, or JSON lines with prompt, source or messages; - is "
        "standard input."
    ),
]
OutputFile = Annotated[str | None, typer.Option(help="File for the texts; stdout if unset.")]
BadWord = Annotated[
    list[str] | None, typer.Option(help="A text that must not be generated. Repeatable.")
]
Truncate = Annotated[
    str | None,
    typer.Option(
        help="left: drop the beginning of prompts that are too long; right: the end of sources."
    ),
]
Stream = Annotated[bool, typer.Option("--stream", help="Print text as it is generated.")]
JsonLines = Annotated[
    bool,
    typer.Option(
        "--json",
        help="JSON lines with prompt, text, token_count, finish_reason and, of beam search, score.",
    ),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Texts generated together.")]


@with_generation_options()
def generate(
    model: ModelArgument,
    prompts: Prompts = None,
    input: InputFile = None,
    output: OutputFile = None,
    stop: Stop = None,
    bad_word: BadWord = None,
    truncate: Truncate = None,
    stream: Stream = False,
    json: JsonLines = False,
    batch_size: BatchSize = 8,
    precision: Precision = "float32",
    **settings: Any,
) -> None:
    """Generate text after prompts or from sources, in their order; the prompt is not printed.

    Encoder-decoders (translation, summarization) take what is not set from their checkpoint.
    """
    options = check_settings(settings)
    _check_options(prompts, input, output, stop, truncate, stream, json)
    examples = _read(input) if input else ({"prompt": text} for text in prompts or [])
    # The first is read before the model is loaded: a missing file is known at once.
    examples = itertools.chain([next(examples)], examples)

    from tfllm.cli.output import progress_bar, result_file

    opened = open_model(model)
    options |= {
        "stop_strings": tuple(stop or ()),
        "bad_words": tuple(bad_word or ()),
        "truncate": truncate,
        "batch_size": batch_size,
        "precision": precision,
    }
    if stream:
        _stream(opened, examples, options)
        return
    total = None if input else len(prompts or [])
    with result_file(output) as file, progress_bar("generated", total) as advance:
        while chunk := list(itertools.islice(examples, CHUNK_BATCHES * batch_size)):
            for text in _texts(opened, chunk, options):
                file.write(_line(text) if json else f"{text.text}\n")
            file.flush()
            advance(len(chunk))


def _check_options(
    prompts: list[str] | None,
    input: str | None,
    output: str | None,
    stop: list[str] | None,
    truncate: str | None,
    stream: bool,
    json: bool,
) -> None:
    """Raises SettingError for options that are wrong with any model."""
    from tfllm.errors import SettingError

    if bool(prompts) == bool(input):
        raise SettingError('Give either prompts or --input FILE (- for standard input; "" too).')
    if stream and (json or output):
        raise SettingError("--stream prints plain text as it comes. Leave out --json and --output.")
    if truncate not in (None, "left", "right"):
        raise SettingError(f"--truncate: '{truncate}' is not known. Write left or right.")
    if any(not text for text in stop or ()):
        raise SettingError("--stop: an empty text would end every text at once. Leave it out.")


def open_model(model: str) -> InferenceModel:
    """Open a model that generates text.

    Raises:
        SettingError: It is another model.
    """
    import tfllm
    from tfllm.errors import SettingError

    opened = tfllm.open(model)
    if not opened.task.generates:
        raise SettingError(
            f"'{model}' is for {opened.task.kind.replace('_', ' ')} and does not generate text. "
            "Give a causal language model or one for seq2seq, or use tfllm predict."
        )
    return opened


def _read(path: str) -> Iterator[dict[str, Any]]:
    """Prompts or sources of a file: `prompt`, `source`, or `messages`. Raises DataError naming file
    and line."""
    from tfllm.errors import DataError
    from tfllm.runtimes.inputs import read_inputs

    for example in read_inputs(path):
        prompt = example.get("prompt", example.get("source", example.get("text")))
        if not isinstance(prompt, str) and not isinstance(example.get("messages"), list):
            raise DataError(
                f"{example.get('_where', path)}: neither 'prompt' (a text) nor 'messages' (a list "
                "of messages). Write one of them on each line."
            )
        yield example


def _texts(
    model: InferenceModel, examples: list[dict[str, Any]], options: dict[str, Any], **more: Any
) -> list[GeneratedText]:
    """The texts of all examples, in order."""
    results = model.generate(examples, details=True, **options, **more)
    return [text for each in results for text in (each if isinstance(each, list) else [each])]


def _stream(
    model: InferenceModel, examples: Iterable[dict[str, Any]], options: dict[str, Any]
) -> None:
    """Print each text as it is generated, one after another. Ctrl-C leaves what is printed."""
    import sys

    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    for example in examples:
        waiting: dict[int, str] = {}

        def on_text(index: int, piece: str, waiting: dict[int, str] = waiting) -> None:
            if index:  # the prompt's first text is shown live, the others after it
                waiting[index] = waiting.get(index, "") + piece
            else:
                print(piece, end="", flush=True)

        try:
            texts = _texts(model, [example], options, on_text=on_text)
        except KeyboardInterrupt:
            print(flush=True)
            raise
        print(flush=True)
        for index in range(1, len(texts)):
            print(waiting.get(index, ""), flush=True)


def _line(text: GeneratedText) -> str:
    import json

    fields = {
        "prompt": text.prompt,
        "text": text.text,
        "token_count": text.token_count,
        "finish_reason": text.finish_reason,
        **({} if text.score is None else {"score": round(text.score, 6)}),
    }
    return json.dumps(fields, ensure_ascii=False) + "\n"


COMMANDS = {"": generate}
