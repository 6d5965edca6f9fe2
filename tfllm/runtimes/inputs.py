"""Inputs to predict, from a file or standard input, one at a time.

Plain text has one input a line, and a blank line is an input too, so that the n-th prediction
belongs to the n-th line. Tables and JSON lines are read as training data is; gold labels in them
are left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator

from tfllm.data import sources
from tfllm.data.lines import STANDARD_INPUT, open_file, read_lines
from tfllm.data.read_settings import Format, ReadSettings
from tfllm.errors import DataError
from tfllm.runtimes.protocols import Example
from tfllm.tasks import Task
from tfllm.tasks.causal_lm import messages_of

SURROGATE = re.compile("[\ud800-\udfff]")
BEGINNING_BYTES = 4096
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

GOLD = ("label", "tags", "answers", "target")


def read_inputs(path: str, settings: ReadSettings | None = None) -> Iterator[Example]:
    """Read the inputs of a file, or of standard input for "-".

    Args:
        path: The file.
        settings: Its format and columns. Without a format the file's ending decides; where that is
            unknown, and for standard input, a beginning "{" means JSON lines and anything else
            plain text.

    Yields:
        Examples with `_where`.

    Raises:
        DataError: The file cannot be read; it names the line.
    """
    settings = settings or ReadSettings()
    format = settings.format or sources.known_format(path) or _looks_like(path)
    if format == "text":
        for number, line in read_lines(path):
            yield {"text": line, "_where": f"{path}:{number}"}
        return
    columns = {name: column for name, column in settings.columns.items() if name not in GOLD}
    changes = {"format": format, "columns": columns, "labels": {}}
    for example in sources.read(path, settings.model_copy(update=changes)):
        yield {name: value for name, value in example.items() if name not in GOLD}


def parse_texts(texts: Iterable[str]) -> Iterator[Example]:
    """Parse inputs of the command line: plain text, or JSON objects with the fields of a line."""
    for number, text in enumerate(texts, 1):
        where = f"argument {number}"
        try:
            data = json.loads(text) if text.lstrip().startswith("{") else None
        except json.JSONDecodeError:
            data = None  # a text that begins with a brace
        fields = data if isinstance(data, dict) else {"text": text}
        yield {**fields, "_where": where}


def check_examples(examples: Iterable[Example], task: Task) -> Iterator[Example]:
    """Check that examples have the fields that the task reads.

    Args:
        examples: The examples, read one at a time.
        task: The model's task.

    Yields:
        The same examples.

    Raises:
        DataError: One lacks a field.
    """
    choices = task.required_fields
    for example in examples:
        names = next((names for names in choices if names[0] in example), choices[0])
        for name in names:
            _check_field(example, name, task)
        yield example


def _check_field(example: Example, name: str, task: Task) -> None:
    value = example.get(name)
    where = example.get("_where", "input")
    if name == "messages":
        messages_of(example)
        return
    several = name == "words" or (name == "source" and isinstance(value, list))
    texts = value if several else [value]
    if isinstance(texts, list) and all(isinstance(text, str) for text in texts):
        if any(SURROGATE.search(text) for text in texts):
            raise DataError(
                f"{where}: the field '{name}' has half of a surrogate pair (\\ud800 to \\udfff), "
                "which is no character. Remove it or write the whole pair."
            )
        return
    expected = "a list of words" if name == "words" else "a text"
    problem = "is missing" if value is None else f"is not {expected}"
    fields = " and ".join(f"'{name}'" for name in task.required_fields[0])
    raise DataError(
        f"{where}: the field '{name}' {problem}. A model for "
        f"{task.kind.replace('_', ' ')} reads JSON lines with {fields}; name other columns with "
        f"--set columns.{name}=NAME."
    )


def _looks_like(path: str) -> Format:
    """jsonl where the first character is a brace, else text."""
    file = open_file(path)
    if path == STANDARD_INPUT:
        start = file.peek(BEGINNING_BYTES)  # type: ignore[attr-defined]
    else:
        with file:
            start = file.read(BEGINNING_BYTES)
    return "jsonl" if start.removeprefix(BYTE_ORDER_MARK).lstrip().startswith(b"{") else "text"
