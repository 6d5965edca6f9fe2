"""tfllm tokenizer: encode, decode, check, train."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tfllm.tokenizers.base import Tokenizer
    from tfllm.tokenizers.parity_check import Report

EXAMPLES = """Examples:

tfllm tokenizer encode runs/sst2 "unaffable" "a second text"

tfllm tokenizer decode runs/sst2 101 14477 20961 3468 102

tfllm tokenizer check exports/sst2 reviews.txt train.tsv.gz

tfllm tokenizer train corpus.txt.gz --vocabulary-size 8000 --output tokenizers/mine

tfllm tokenizer train poems.jsonl.gz --column text --kind characters --vocabulary-size 8000 \
    --output tokenizers/poems
"""

MODEL = typer.Argument(help="A directory with tokenizer files: checkpoint, run, SavedModel.")
TARGET = typer.Option("--target", help="The tokenizer of targets, where it is another.")
SHOWN_CHARACTERS = 200


def encode(
    model: Annotated[str, MODEL],
    texts: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TEXT]...", help="Texts; lines of stdin if none."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object per text.")] = False,
    target: Annotated[bool, TARGET] = False,
) -> None:
    """Print the ids and the pieces of each text."""
    import json as json_package
    import sys

    tokenizer = load(model, target)
    for text in texts or (line.rstrip("\n") for line in sys.stdin):
        row = tokenizer.encode(text)
        pieces = [tokenizer.vocabulary[i] for i in row.ids]
        if json:
            fields = {"ids": row.ids, "pieces": pieces, "offsets": row.offsets}
            print(json_package.dumps(fields, ensure_ascii=False))
        else:
            print(" ".join(map(str, row.ids)))
            print(" ".join(pieces))


def decode(
    model: Annotated[str, MODEL],
    ids: Annotated[list[int], typer.Argument(metavar="ID...", help="Token ids.")],
    special: Annotated[bool, typer.Option(help="Print special tokens too.")] = False,
    target: Annotated[bool, TARGET] = False,
) -> None:
    """Print the text of token ids."""
    from tfllm.errors import SettingError

    tokenizer = load(model, target)
    last = tokenizer.vocabulary_size - 1
    for number in ids:
        if not 0 <= number <= last:
            raise SettingError(f"There is no token {number}: the vocabulary has ids 0 to {last}.")
    print(tokenizer.decode(ids, skip_special_tokens=not special))


def check(
    model: Annotated[str, MODEL],
    files: Annotated[
        list[str], typer.Argument(metavar="FILE...", help="Text, its lines taken as they are; .gz.")
    ],
    batch_lines: Annotated[int, typer.Option(min=1, help="Lines per call.")] = 256,
    target: Annotated[bool, TARGET] = False,
) -> None:
    """Compare the Python tokenizer with the one in the graph, line by line.

    Ids and offsets, and for vocabularies of decoders the text of the ids, too.
    MB/s are per second of processor time, as one core would have it.
    """
    from tfllm.cli.output import progress_bar
    from tfllm.errors import CheckFailed, DataError
    from tfllm.tokenizers.parity_check import check_file

    missing = [file for file in files if not Path(file).is_file()]
    if missing:
        raise DataError(f"There is no file '{missing[0]}'. Check the path.")
    tokenizer = load(model, target)
    graph = tokenizer.graph()
    width = max(len("total"), *map(len, files))
    print(
        f"{'file':<{width}} {'lines':>10} {'MB':>8} {'different':>9} {'Python MB/s':>11} graph MB/s"
    )
    reports = []
    for file in files:
        with progress_bar(file, Path(file).stat().st_size) as advance:
            reports.append(check_file(file, tokenizer, graph, advance, batch_lines))
        print(_row(file, [reports[-1]], width), flush=True)
    if len(files) > 1:
        print(_row("total", reports, width))
    different = sum(report.different for report in reports)
    if different:
        _print_examples(reports, tokenizer)
        lines = sum(report.lines for report in reports)
        raise CheckFailed(
            f"{different} of {lines} lines differ between Python and the graph. "
            "docs/tokenizers.md lists the known differences."
        )


def train(
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE...", help="UTF-8 text, JSON lines, TSV, CSV, Parquet; .gz."),
    ],
    vocabulary_size: Annotated[int, typer.Option(help="Tokens, the special ones included.")],
    output: Annotated[str, typer.Option(help="Directory to write the tokenizer's files to.")],
    kind: Annotated[
        str, typer.Option(help="wordpiece, bpe (over bytes), unigram or characters.")
    ] = "wordpiece",
    special_tokens: Annotated[
        list[str] | None,
        typer.Option("--special-token", help="A further special token; may be repeated."),
    ] = None,
    column: Annotated[
        str | None,
        typer.Option(help="The field or column with the text; FILE is JSON lines or a table."),
    ] = None,
    lowercase: Annotated[
        bool | None, typer.Option("--lowercase/--cased", help="WordPiece; lower-cased by default.")
    ] = None,
    min_frequency: Annotated[
        int | None, typer.Option(min=1, help="Rarer pairs or characters are left out.")
    ] = None,
) -> None:
    """Train a vocabulary, streaming; the same files and options give the same one.

    Without --column every line is text, whatever the file.
    """
    from tfllm.cli.output import stage_bar
    from tfllm.data.corpora.documents import TextLines
    from tfllm.tokenizers.train import TrainerOptions, train_tokenizer

    _check_free(Path(output))
    options = TrainerOptions(
        vocabulary_size,
        tuple(special_tokens or ()),
        lowercase=lowercase,
        min_frequency=min_frequency,
    )
    with stage_bar() as progress:
        texts = TextLines(tuple(files), column, lambda *done: progress("read", *done))
        tokenizer = train_tokenizer(texts, kind, options, ", ".join(files))
    _write(tokenizer, Path(output))
    print(f"{output}: {tokenizer.vocabulary_size} tokens")


def load(model: str, target: bool = False) -> Tokenizer:
    """Load the tokenizer of any directory that has one.

    Args:
        model: The directory.
        target: Whether to return the tokenizer of targets.

    Raises:
        TokenizerError: There is none, or it cannot be used.
    """
    from tfllm.tokenizers.loading import load_tokenizer

    tokenizer = load_tokenizer(_folder(model))
    return tokenizer.target if target else tokenizer


def _folder(model: str) -> Path:
    from tfllm.checkpoints import hub
    from tfllm.runtimes.opening import version_folder
    from tfllm.tokenizers.loading import find_vocabulary_file

    if model.startswith(hub.SCHEME):
        return hub.fetch(model)
    path = Path(model)
    if path.suffix == ".tflite":
        path = path.parent
    if path.is_file() or find_vocabulary_file(path):
        return path
    if (path / "checkpoint").is_dir():
        return path / "checkpoint"
    if version := version_folder(path):
        return version / "assets"
    return path


def _check_free(output: Path) -> None:
    from tfllm.errors import StorageError

    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise StorageError(f"--output: '{output}' exists. Name a new directory.")


def _write(tokenizer: Tokenizer, output: Path) -> None:
    """Write under a temporary name beside the output, then rename: nothing is half-written."""
    import os
    import shutil
    import tempfile

    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        tokenizer.save(temporary / "files")
        try:
            os.replace(temporary / "files", output)
        except OSError:
            _check_free(output)  # another process has written there meanwhile
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _row(name: str, reports: list[Report], width: int) -> str:
    lines = sum(report.lines for report in reports)
    different = sum(report.different for report in reports)
    size = sum(report.size_bytes for report in reports) / 1e6
    python = sum(report.python_seconds for report in reports)
    graph = sum(report.graph_seconds for report in reports)
    return (
        f"{name:<{width}} {lines:>10,} {size:>8.2f} {different:>9,} "
        f"{size / python if python else 0:>11.2f} {size / graph if graph else 0:>10.2f}"
    )


def _print_examples(reports: list[Report], tokenizer: Tokenizer) -> None:
    for report in reports:
        for example in report.examples:
            print(f"{report.path}:{example.line}: {example.text[:SHOWN_CHARACTERS]!r}")
            for name, tokens in (("Python", example.python), ("graph", example.graph)):
                index = next(
                    (
                        index
                        for index, pair in enumerate(
                            zip(example.python, example.graph, strict=False)
                        )
                        if pair[0] != pair[1]
                    ),
                    min(len(example.python), len(example.graph)),
                )
                pieces = [(tokenizer.vocabulary[i], a, b) for i, a, b in tokens[index : index + 3]]
                print(f"  {name:<6} from token {index}: {pieces}")


COMMANDS = {"encode": encode, "decode": decode, "check": check, "train": train}
