"""tfllm evaluate: metrics of a checkpoint or an artifact on a data file."""

from __future__ import annotations

from typing import Annotated, Any

import typer

EXAMPLES = """Examples:

tfllm evaluate runs/sst2 --data dev.tsv --output results.json --plots plots

tfllm evaluate exports/sst2 --data dev.tsv --set columns.text=sentence --set columns.label=label

tfllm evaluate runs/stsb/checkpoint --data sts.csv.gz --set header=false --set columns.label=4

tfllm evaluate runs/shakespeare --data play.txt --set format=document --set stride=16

tfllm evaluate exports/squad/model.tflite --data dev-v2.0.json --limit 500

tfllm evaluate runs/multi30k --data 'val.{en,de}.gz' --set num_beams=4
"""


def evaluate(
    model: Annotated[str, typer.Argument(help="Checkpoint, run, SavedModel or .tflite file.")],
    data: Annotated[
        str, typer.Option(help="File with gold answers: .tsv .csv .jsonl .json .conll .parquet")
    ],
    set: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="How the file is read (format, columns.FIELD, header, labels.NAME) and measured "
            "(language of span answers; stride, measure=last_word of language models; num_beams, "
            "length_penalty, max_new_tokens of generated texts).",
        ),
    ] = None,
    tokenize: Annotated[
        str | None,
        typer.Option(help="Generated texts: sacrebleu's tokenizer for BLEU; 13a, for Chinese zh."),
    ] = None,
    truncate: Annotated[
        bool,
        typer.Option("--truncate", help="Sequence to sequence: cut sources that are too long."),
    ] = False,
    output: Annotated[str | None, typer.Option(help="JSON file for the result.")] = None,
    plots: Annotated[
        str | None, typer.Option(help="Directory for confusion_matrix.png and calibration.png.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only so many examples, from the start.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples per batch.")] = 32,
) -> None:
    """Measure a checkpoint or an artifact on a file, with the metrics of its task."""
    import json

    import tfllm
    from tfllm.cli.output import progress_bar, result_file

    overrides = [*(set or []), *([f"tokenize={tokenize}"] if tokenize else [])]
    with progress_bar("measured") as bar:
        result = tfllm.evaluate(
            model,
            data,
            overrides=[*overrides, *(["truncate=true"] if truncate else [])],
            limit=limit,
            batch_size=batch_size,
            plots=plots,
            on_start=bar.set_total,
            progress=bar,
        )
    if output:
        with result_file(output) as file:
            json.dump(result, file, ensure_ascii=False, indent=2)
            file.write("\n")
    print("\n".join(table(result)))


def table(result: dict[str, Any]) -> list[str]:
    """Return the result as lines of text: numbers, a row per class, samples, the matrix."""
    metrics = result["metrics"]
    lines = [
        f"{result['model']} on {result['data']}: {result['examples']:,} examples in "
        f"{result['seconds']:.1f} s"
    ]
    width = max((len(name) for name in metrics), default=0)
    for name, value in metrics.items():
        if not isinstance(value, dict | list):
            lines.append(f"  {name:<{width}}  {_format_value(value)}")
    if classes := metrics.get("per_class"):
        columns = list(next(iter(classes.values())))
        rows = [[name, *map(_format_value, row.values())] for name, row in classes.items()]
        lines += ["", *_align_columns([["class", *columns], *rows])]
    for sample in metrics.get("samples") or []:
        targets = sample["target"] if isinstance(sample["target"], list) else [sample["target"]]
        lines += ["", f"  source  {sample['source']}"]
        lines += [f"  target  {target}" for target in targets]
        lines.append(f"  text    {sample['text']}")
    matrix = metrics.get("confusion_matrix")
    if matrix and len(matrix["labels"]) <= WIDEST_MATRIX:
        rows = [
            [name, *map(str, row)]
            for name, row in zip(matrix["labels"], matrix["counts"], strict=True)
        ]
        lines += ["", *_align_columns([["gold \\ predicted", *matrix["labels"]], *rows])]
    return lines


WIDEST_MATRIX = 10  # labels; a wider one is in the JSON and in the picture


def _align_columns(rows: list[list[str]]) -> list[str]:
    from rich.cells import cell_len  # a Chinese character takes two columns

    widths = [max(cell_len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            " " * (width - cell_len(cell)) + cell for cell, width in zip(row, widths, strict=True)
        ]
        cells[0] = row[0] + " " * (widths[0] - cell_len(row[0]))
        lines.append("  " + "  ".join(cells).rstrip())
    return lines


def _format_value(value: Any) -> str:
    if value is None:
        return "undefined"
    if isinstance(value, str):
        return value
    return f"{value:.4f}" if isinstance(value, float) else f"{value:,}"


COMMANDS = {"": evaluate}
