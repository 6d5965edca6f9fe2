"""`tfllm prepare`: a recipe's texts to a tokenized corpus on the disk."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tfllm.cli.options import Overrides

EXAMPLES = """
Examples:

  tfllm prepare models/bert/corpus.yaml --output corpora/reviews

  tfllm prepare models/bert/corpus.yaml --set data.prepare.duplicates=near --output corpora/near

  tfllm train RECIPE --set data.train=corpora/reviews
"""

# What happened to documents that are not in the corpus, in the order of the report.
OUTCOMES = {
    "bad_lines": "bad lines", "short": "too short", "exact_duplicates": "duplicates",
    "near_duplicates": "near-duplicates", "held_out": "held out",
    "without_tokens": "without tokens",
}  # fmt: skip


def prepare(
    recipe: Annotated[Path, typer.Argument(help="A recipe; its data and tokenizer are used.")],
    output: Annotated[Path, typer.Option(help="Directory to write the corpus to.")],
    overrides: Overrides = [],  # noqa: B006
    workers: Annotated[
        int | None, typer.Option(min=1, help="Number of processes; the machine's cores if unset.")
    ] = None,
) -> None:
    """Tokenize texts into TFRecord shards, with sentences, documents, checksums and statistics.

    After an interruption the same command continues after the last complete shard. The result
    depends neither on that nor on the number of workers.
    """
    from tfllm import config
    from tfllm.cli.output import stage_bar
    from tfllm.data.corpora.process_pool import available_cores
    from tfllm.training.corpora import CorpusRecipe, prepare_corpus

    settings = config.load(recipe, CorpusRecipe, overrides)
    try:
        with stage_bar() as progress:
            manifest = prepare_corpus(
                settings,
                output,
                workers=workers or available_cores(),
                progress=progress,
                notice=_say,
            )
    except KeyboardInterrupt:
        _say("stopped; complete shards are kept. The same command continues after them.")
        raise
    for line in _summary(manifest, output):
        print(line, file=sys.stderr)
    print(output)


def _say(text: str) -> None:
    print(f"tfllm: {text}", file=sys.stderr, flush=True)


def _summary(manifest: dict[str, Any], output: Path) -> list[str]:
    read = manifest["read"]
    lines = [
        f"{manifest['documents']:,} documents, {manifest['sentences']:,} sentences, "
        f"{manifest['tokens']:,} tokens in {len(manifest['shards'])} shards"
    ]
    left_out = [f"{read[key]:,} {name}" for key, name in OUTCOMES.items() if read[key]]
    if left_out:
        lines.append(f"left out: {', '.join(left_out)}")
    if read["bad_lines"]:
        lines.append(f"bad lines, with file and line: {output / 'rejected.jsonl'}")
    if unknown := manifest["unknown_tokens"]:
        lines.append(f"unknown tokens: {unknown / manifest['tokens']:.3%}")
    lines.append(f"lengths: {output / 'lengths.png'}")
    lines.append(f"next: tfllm train RECIPE --set data.train={output}")
    return lines


COMMANDS = {"": prepare}
