"""tfllm generate: texts that go on from prompts, or are written after sources."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from tfllm.generation.config import GenerationConfig
    from tfllm.generation.text_generator import Text, TextGenerator

EXAMPLES = """Examples:

tfllm generate runs/stories "Once upon a time" --stream

tfllm generate gpt2 "The sea" --temperature 0.8 --top-p 0.95 --seed 3 --num-return-sequences 4

tfllm generate runs/poems "床前" --num-beams 5 --max-new-tokens 20 --stop "。"

tfllm generate gpt2 --input prompts.jsonl --json --output texts.jsonl

tfllm generate runs/en-de "A dog runs." --num-beams 5 --num-return-sequences 5 --json

tfllm generate t5-small --input articles.txt --truncate right --max-new-tokens 60
"""

CHUNK = 4  # batches of prompts that are read before the first text of them is written

# Options that `tfllm chat` has too, each with its own default.
Temperature = Annotated[
    float | None, typer.Option(help="Higher is bolder; 0 takes the likeliest token each time.")
]
TopK = Annotated[int | None, typer.Option(help="Sample among so many tokens; 0: all.")]
TopP = Annotated[float | None, typer.Option(help="Sample among tokens of this joint share.")]
MinP = Annotated[
    float | None, typer.Option(help="Sample among tokens of this share of the likeliest one.")
]
RepetitionPenalty = Annotated[
    float | None, typer.Option(help="Above 1: less of what prompt and text hold.")
]
Precision = Annotated[
    str,
    typer.Option(help="Of a checkpoint's products: float32, or bfloat16 (faster, other rounding)."),
]


def generate(
    model: Annotated[str, typer.Argument(help="Checkpoint, run, llama2.c .bin or exported model.")],
    prompts: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PROMPT]...", help='Texts to go on from ("" too), or sources.'),
    ] = None,
    input: Annotated[
        str | None,
        typer.Option(
            help="A prompt or source a line, or JSON lines with prompt, source or messages; - is "
            "stdin."
        ),
    ] = None,
    output: Annotated[str | None, typer.Option(help="File for the texts; stdout if unset.")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Tokens to write at most; 64 if unset.")
    ] = None,
    min_new_tokens: Annotated[int | None, typer.Option(help="Tokens to write at least.")] = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = None,
    presence_penalty: Annotated[
        float | None, typer.Option(help="Off the logit of tokens in the text.")
    ] = None,
    frequency_penalty: Annotated[
        float | None, typer.Option(help="Off the logit, for each time in the text.")
    ] = None,
    no_repeat_ngram_size: Annotated[
        int | None, typer.Option(help="No so many tokens in a row twice; 0: off.")
    ] = None,
    bad_word: Annotated[
        list[str] | None, typer.Option(help="A text that must not appear; may be repeated.")
    ] = None,
    num_beams: Annotated[
        int | None, typer.Option(help="Above 1: beam search of that width.")
    ] = None,
    length_penalty: Annotated[
        float | None, typer.Option(help="Of beam search: higher favours longer texts.")
    ] = None,
    coverage_penalty: Annotated[
        float | None, typer.Option(help="Of beam search with sources: against what is left out.")
    ] = None,
    early_stopping: Annotated[
        str | None, typer.Option(help="When beam search ends: true, false or never.")
    ] = None,
    num_return_sequences: Annotated[int | None, typer.Option(help="Texts per prompt.")] = None,
    seed: Annotated[int, typer.Option(help="Of the random numbers: one seed, one text.")] = 0,
    stop: Annotated[
        list[str] | None, typer.Option(help="A text that ends the output; may be repeated.")
    ] = None,
    truncate: Annotated[
        str | None,
        typer.Option(
            help="left: drop the beginning of prompts that are too long; right: the end of sources."
        ),
    ] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Print text as it is written.")] = False,
    json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="JSON lines with prompt, text, token_count, finish_reason and a beam's score.",
        ),
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts written at once.")] = 8,
    precision: Precision = "float32",
) -> None:
    """Texts that go on from prompts or answer sources, in their order, without them.

    Models that read sources (translation, summarization) take what is unset from their checkpoint.
    """
    import itertools

    from tfllm.cli.output import progress_bar, result_file

    given = _checked(locals())
    examples = _read(input) if input else ({"prompt": text} for text in prompts or [])
    # The first is read before the model is loaded: a missing file is known at once.
    first = next(examples)
    examples = itertools.chain([first], examples)

    generator = open_writer(model, precision)
    settings = generator.defaults(**given)
    generator.engine.max_rows = max(batch_size, settings.num_beams)
    if bad_word:
        words = (*settings.bad_words_ids, *generator.bad_words_ids(bad_word))
        settings = settings.model_copy(update={"bad_words_ids": words})
    writer = _Writer(generator, settings, tuple(stop or ()), truncate)
    if stream:
        writer.stream(examples)
        return
    total = None if input else len(prompts or [])
    with result_file(output) as file, progress_bar("written", total) as advance:
        while chunk := list(itertools.islice(examples, CHUNK * batch_size)):
            for text in writer.texts(chunk):
                file.write(_line(text) if json else f"{text.text}\n")
            file.flush()
            advance(len(chunk))


def _checked(options: dict[str, Any]) -> dict[str, Any]:
    """The settings among the options that were given. Raises SettingError for what is wrong with
    any model; whether they fit together depends on what the model itself says."""
    from tfllm.errors import SettingError
    from tfllm.generation.config import generation_config

    truncate, early_stopping = options["truncate"], options["early_stopping"]
    if bool(options["prompts"]) == bool(options["input"]):
        raise SettingError('Give either prompts or --input FILE (- for standard input; "" too).')
    if options["stream"] and (options["json"] or options["output"]):
        raise SettingError("--stream prints plain text as it comes. Leave out --json and --output.")
    if truncate not in (None, "left", "right"):
        raise SettingError(f"--truncate: '{truncate}' is not known. Write left or right.")
    if early_stopping not in (None, *EARLY_STOPPING):
        raise SettingError(f"--early-stopping: '{early_stopping}' is not true, false or never.")
    if any(not one for one in options["stop"] or ()):
        raise SettingError("--stop: an empty text would end every text at once. Leave it out.")
    given = {name: options[name] for name in SETTINGS if options[name] is not None}
    for name, value in given.items():
        if name not in TOGETHER:
            generation_config(**{name: value})
    if early_stopping is not None:
        given["early_stopping"] = EARLY_STOPPING[early_stopping]
    return given


SETTINGS = (
    "max_new_tokens", "min_new_tokens", "temperature", "top_k", "top_p", "min_p",
    "repetition_penalty", "presence_penalty", "frequency_penalty", "no_repeat_ngram_size",
    "num_beams", "length_penalty", "coverage_penalty", "num_return_sequences", "seed",
)  # fmt: skip
TOGETHER = ("coverage_penalty", "num_return_sequences")
"""Those that are wrong only beside others."""
EARLY_STOPPING: dict[str, Any] = {"true": True, "false": False, "never": "never"}


def open_writer(model: str, precision: str = "float32") -> TextGenerator:
    """What writes texts with a checkpoint or an exported file. Raises SettingError."""
    from tfllm.errors import SettingError
    from tfllm.runtimes.opening import open_model

    predictor = open_model(model)
    if not predictor.task.generates:
        raise SettingError(
            f"'{model}' is for {predictor.task.kind.replace('_', ' ')} and cannot write text. Give "
            "a causal language model or one for seq2seq, or use tfllm predict."
        )
    if precision == "float32":
        return predictor.generator  # type: ignore[attr-defined]

    if predictor.describe()["kind"] != "checkpoint":
        raise SettingError(
            f"--precision {precision}: '{model}' is an exported file, which has its own precision. "
            "Leave the option out, or give the checkpoint."
        )
    writer = type(predictor.generator)  # type: ignore[attr-defined]
    return writer(predictor.checkpoint, precision=precision)  # type: ignore[attr-defined]


def _read(path: str) -> Iterator[dict[str, Any]]:
    """Prompts or sources of a file: `prompt`, `source`, or `messages`. Raises DataError naming file
    and line."""
    from tfllm.errors import DataError
    from tfllm.runtimes.inputs import read_inputs

    for example in read_inputs(path):
        prompt = example.get("prompt", example.get("source", example.get("text")))
        if isinstance(prompt, str):
            yield {**example, "prompt": prompt}
        elif isinstance(example.get("messages"), list):
            yield example
        else:
            raise DataError(
                f"{example.get('_where', path)}: neither 'prompt' (a text) nor 'messages' (a list "
                "of messages). Write one of them on each line."
            )


class _Writer:
    """Prompts and conversations to texts, with errors that name the prompt's place."""

    def __init__(
        self,
        generator: TextGenerator,
        settings: GenerationConfig,
        stop: tuple[str, ...],
        truncate: Any,
    ):
        self.generator, self.settings = generator, settings
        self.stop, self.truncate = stop, truncate

    def texts(self, examples: list[dict[str, Any]], on_text: Any = None) -> list[Text]:
        ids = [self._ids(example) for example in examples]
        prompts = [example.get("prompt", "") for example in examples]
        plain = all("prompt" in example for example in examples)
        return self.generator.continued(
            ids, self.settings, stop=self.stop, on_text=on_text, prompts=prompts if plain else None
        )

    def _ids(self, example: dict[str, Any]) -> list[int]:
        from tfllm.errors import SettingError

        try:
            if "prompt" in example:
                ids = self.generator.encode(example["prompt"], self.settings, self.truncate)
            else:
                ids = self.generator.chat(example["messages"], self.settings, self.truncate)
            self.generator.check(ids)
        except SettingError as error:
            where = example.get("_where")
            raise SettingError(f"{where}: {error}" if where else str(error)) from None
        return ids

    def stream(self, examples: Iterable[dict[str, Any]]) -> None:
        """Prints each text as it is written, one after another. Ctrl-C leaves what is printed."""
        import sys

        sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
        for example in examples:
            waiting: dict[int, str] = {}

            def on_text(number: int, piece: str, waiting: dict[int, str] = waiting) -> None:
                if number:  # the prompt's first text is shown live, the others after it
                    waiting[number] = waiting.get(number, "") + piece
                else:
                    print(piece, end="", flush=True)

            try:
                self.texts([example], on_text)
            except KeyboardInterrupt:
                print(flush=True)
                raise
            print(flush=True)
            for number in range(1, self.settings.num_return_sequences):
                print(waiting.get(number, ""), flush=True)


def _line(text: Text) -> str:
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
