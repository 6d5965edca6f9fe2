"""tfllm benchmark: latency, throughput and memory of a checkpoint or an artifact."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from tfllm.generation.text_generator import TextGenerator
    from tfllm.runtimes.protocols import Predictor

EXAMPLES = """Examples:

tfllm benchmark runs/sst2

tfllm benchmark exports/sst2/model.tflite --batch-sizes 1 --length 16,64 --json

tfllm benchmark runs/poems --length 32,96 --new-tokens 24

tfllm benchmark exports/sst2 --input reviews.txt --seconds 20
"""


def benchmark(
    model: Annotated[str, typer.Argument(help="Checkpoint, run, SavedModel or .tflite file.")],
    batch_sizes: Annotated[str, typer.Option(help="Texts per call, separated by commas.")] = "1,32",
    length: Annotated[
        str | None,
        typer.Option(help="Tokens per text, separated by commas; 16 and the task's own if unset."),
    ] = None,
    input: Annotated[
        str | None, typer.Option(help="Real inputs instead: text lines, JSON lines or a table.")
    ] = None,
    new_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens that a language model generates per text.")
    ] = 32,
    seconds: Annotated[float, typer.Option(min=0.0, max=86400.0, help="Seconds per row.")] = 5.0,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout, not a table.")] = False,
    output: Annotated[str | None, typer.Option(help="File for the JSON.")] = None,
) -> None:
    """Measure latency (percentiles), throughput, peak memory and size on disk.

    Of a language model: tokens per second of prefill and decoding, on prompts of random tokens.
    Calls follow one another in this process; loading and warm-up are not part of the times.
    """
    import json

    from tfllm.cli.output import result_file
    from tfllm.evaluation.settings import settings_for
    from tfllm.runtimes import inputs

    batches = _numbers(batch_sizes, "--batch-sizes")
    lengths = _numbers(length, "--length") if length else []
    examples = list(inputs.read_inputs(input, settings_for(model, input).reading)) if input else []
    result = _measure(model, lengths, batches, examples, new_tokens, seconds)
    if output or as_json:
        with result_file(output) as file:
            json.dump(result, file, ensure_ascii=False, indent=2)
            file.write("\n")
    if not as_json:
        print("\n".join(table(result)))


def _measure(
    model: str,
    lengths: list[int],
    batches: list[int],
    examples: list[dict[str, Any]],
    new_tokens: int,
    seconds: float,
) -> dict[str, Any]:
    """The benchmark of one model. Raises SettingError."""
    import time

    import tfllm
    from tfllm import machine
    from tfllm.errors import SettingError
    from tfllm.runtimes.benchmark import peak_memory_bytes

    start = time.perf_counter()
    opened = tfllm.open(model)
    load_seconds = time.perf_counter() - start
    if not opened.task.generates:
        rows = _rows(opened.predictor, lengths, batches, examples, seconds)
    elif examples:
        raise SettingError("--input: a language model's speed is measured on --length tokens.")
    else:
        rows = _language_rows(opened.generator(), lengths, batches, new_tokens, seconds)
    return {
        **opened.describe(),
        "model": model,
        "load_seconds": round(load_seconds, 3),
        "rows": rows,
        "peak_memory_bytes": peak_memory_bytes(),
        "versions": machine.versions(),
        "machine": machine.machine(),
    }


def _numbers(text: str, option: str) -> list[int]:
    from tfllm.errors import SettingError

    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise SettingError(f"{option}: '{text}' is not a list of numbers. Write it as 1,32.")
    return numbers


SHORT = 16  # tokens
PROMPT = 32  # tokens of a language model's prompt


def _rows(
    predictor: Predictor,
    lengths: list[int],
    batches: list[int],
    examples: list[dict[str, Any]],
    seconds: float,
) -> list[dict[str, Any]]:
    """One row for every set of texts and batch size."""
    from tfllm.cli.output import progress_bar
    from tfllm.runtimes.benchmark import measure_speed

    sets = _example_sets(predictor, lengths, examples, max(batches))
    rows = []
    with progress_bar("measured", len(sets) * len(batches)) as advance:
        for name, texts in sets.items():
            for size in batches:
                rows.append({"length": name, **measure_speed(predictor, texts, size, seconds)})
                advance(1)
    return rows


def _example_sets(
    predictor: Predictor, lengths: list[int], examples: list[dict[str, Any]], largest: int
) -> dict[str, list[dict[str, Any]]]:
    """Name of the row -> examples."""
    from tfllm.errors import SettingError
    from tfllm.runtimes import inputs
    from tfllm.runtimes.benchmark import DIFFERENT_BATCHES, sample_examples

    if examples:
        return {"as given": list(inputs.check_examples(examples, predictor.task))}
    longest = predictor.task.max_length
    if lengths and max(lengths) > longest:
        raise SettingError(
            f"--length: {max(lengths)} tokens, but the model's rows have at most {longest}. "
            "Choose a smaller one."
        )
    return {
        str(tokens): sample_examples(
            predictor.task, predictor.vocabulary, tokens, DIFFERENT_BATCHES * largest
        )
        for tokens in lengths or sorted({min(SHORT, longest), longest})
    }


def _language_rows(
    generator: TextGenerator,
    lengths: list[int],
    batches: list[int],
    new_tokens: int,
    seconds: float,
) -> list[dict[str, Any]]:
    """One row for every length of prompt and batch size."""
    from tfllm.cli.output import progress_bar
    from tfllm.runtimes.benchmark import measure_generation

    engine = generator.engine
    lengths = lengths or [PROMPT]
    rows = []
    with progress_bar("measured", len(lengths) * len(batches)) as advance:
        for length in lengths:
            for size in batches:
                rows.append(measure_generation(engine, length, new_tokens, size, seconds))
                advance(1)
    return rows


def table(result: dict[str, Any]) -> list[str]:
    """Return the result as lines of text."""
    megabyte = 2**20
    lines = [
        f"{result['model']}: {result['kind']}, {result['size_bytes'] / megabyte:.1f} MiB, "
        f"loaded in {result['load_seconds']:.1f} s, "
        f"peak memory {result['peak_memory_bytes'] / megabyte:,.0f} MiB",
    ]
    if result["rows"] and "ms_per_token" in result["rows"][0]:
        return [*lines, *_language_table(result["rows"])]
    lines += [
        f"{'tokens':>9} {'batch':>6} {'p50 ms':>9} {'p90 ms':>9} {'p99 ms':>9} {'texts/s':>10}",
    ]
    for row in result["rows"]:
        lines.append(
            f"{row['length']:>9} {row['batch_size']:>6} {row['p50_ms']:>9.2f} "
            f"{row['p90_ms']:>9.2f} {row['p99_ms']:>9.2f} {row['texts_per_second']:>10.1f}"
        )
    return lines


def _language_table(rows: list[dict[str, Any]]) -> list[str]:
    head = ("prompt", "new", "batch", "first ms", "ms/token", "read tokens/s", "written tokens/s")
    names = ("prompt_tokens", "new_tokens", "batch_size", "first_token_ms", "ms_per_token",
             "read_tokens_per_second", "written_tokens_per_second")  # fmt: skip
    return [
        "".join(f"{name:>17}" if len(name) > 8 else f"{name:>10}" for name in head),
        *(
            "".join(
                f"{row[name]:>17,.1f}" if len(title) > 8 else f"{row[name]:>10,}"
                for title, name in zip(head, names, strict=True)
            )
            for row in rows
        ),
    ]


COMMANDS = {"": benchmark}
