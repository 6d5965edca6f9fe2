"""Reading of plain text, dialogues, JSON lines, SQuAD and CoNLL files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tfllm.data.lines import RAISE_ERRORS, ReadErrorPolicy, read_all, read_lines
from tfllm.data.read_settings import ReadSettings
from tfllm.errors import DataError, did_you_mean

Row = tuple[Any, dict[Any, Any]]

END_OF_UTTERANCE = "__eou__"
ROLES = ("user", "assistant")


def read_text(
    path: str | Path, settings: ReadSettings, errors: ReadErrorPolicy = RAISE_ERRORS
) -> Iterator[Row]:
    """Yield one text for each line; blank lines are skipped."""
    for number, line in read_lines(path, errors):
        if line.strip():
            yield number, {"text": line}


def read_paragraphs(
    path: str | Path, settings: ReadSettings, errors: ReadErrorPolicy = RAISE_ERRORS
) -> Iterator[Row]:
    """Yield the texts between blank lines with their line ends, numbered by the first line."""
    start, lines = 0, list[str]()
    for number, line in read_lines(path, errors):
        if line.strip():
            start = start if lines else number
            lines.append(line)
        elif lines:
            yield start, {"text": "\n".join(lines)}
            lines = []
    if lines:
        yield start, {"text": "\n".join(lines)}


def read_document(
    path: str | Path, settings: ReadSettings, errors: ReadErrorPolicy = RAISE_ERRORS
) -> Iterator[Row]:
    """Yield the complete file as one text, unchanged."""
    yield 1, {"text": read_all(path)}


def read_dialogues(
    path: str | Path, settings: ReadSettings, errors: ReadErrorPolicy = RAISE_ERRORS
) -> Iterator[Row]:
    """Yield a conversation for each line, with `__eou__` after each utterance.

    The first speaker is the user, the second the assistant. Text after a tab is ignored.

    Source: Li et al. 2017, "DailyDialog".
    """
    for number, line in read_lines(path, errors):
        parts = [part.strip() for part in line.split("\t")[0].split(END_OF_UTTERANCE)]
        messages = [
            {"role": ROLES[index % 2], "content": text}
            for index, text in enumerate(filter(None, parts))
        ]
        if messages:
            yield number, {"messages": messages}


def read_jsonl(
    path: str | Path, settings: ReadSettings, errors: ReadErrorPolicy = RAISE_ERRORS
) -> Iterator[Row]:
    """Yield one JSON object for each line; blank lines are skipped."""
    for number, line in read_lines(path, errors):
        if not line.strip():
            continue
        try:
            row = _object(line, f"{path}:{number}")
        except DataError as error:
            errors.report(error)
            continue
        yield number, row


def answers_of(answers: Any) -> Any:
    """Convert answers to `{"text": [...], "start": [...]}`, from any of SQuAD's layouts.

    Args:
        answers: Hugging Face's `{"text": [...], "answer_start": [...]}`, SQuAD's own list of
            `{"text", "answer_start"}`, or one answer without a list. Anything else is returned
            unchanged, for the task to refuse.
    """
    if isinstance(answers, list) and all(isinstance(answer, dict) for answer in answers):
        if not all("text" in answer for answer in answers):
            return answers
        starts = [answer.get("answer_start", answer.get("start")) for answer in answers]
        return {"text": [answer["text"] for answer in answers], "start": starts}
    if not isinstance(answers, dict):
        return answers
    renamed = {"start" if name == "answer_start" else name: part for name, part in answers.items()}
    if isinstance(renamed.get("text"), str):
        renamed = {name: [part] for name, part in renamed.items()}
    return renamed


def read_squad(
    path: str | Path, settings: ReadSettings, errors: ReadErrorPolicy = RAISE_ERRORS
) -> Iterator[Row]:
    """Yield the questions of a SQuAD 1.1 or 2.0 file, numbered by their ids.

    Source: Rajpurkar et al. 2016, "SQuAD"; 2018, "Know what you don't know".

    Raises:
        DataError: The file is not SQuAD's JSON (data > paragraphs > qas > answers).
    """
    document = _parse(read_all(path), f"{path}:1")
    try:
        for article in document["data"]:
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    yield _squad_example(question, paragraph["context"])
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{path}: not SQuAD's JSON (data > paragraphs > qas): {_missing(error)}. "
            "Set data.format to what the file is."
        ) from None


def read_conll(
    path: str | Path, settings: ReadSettings, errors: ReadErrorPolicy = RAISE_ERRORS
) -> Iterator[Row]:
    """Yield the sentences of a CoNLL file, numbered by their first lines.

    Each line has a word and its columns; a blank line follows each sentence. A file of one column
    has words and no tags.

    Args:
        path: The file.
        settings: `columns` has the indices of words and tags; unset: the first and the last.
        errors: What happens to unusable lines.

    Raises:
        DataError: A line has another number of columns.
    """
    columns: dict[str, str | int] = {"words": 0, "tags": -1, **settings.columns}
    start, width = 0, 0
    sentence: list[list[str]] = []
    for number, line in read_lines(path, errors):
        fields = line.split("\t") if "\t" in line else line.split()
        if not line.strip() or fields[0] == "-DOCSTART-":
            if sentence:
                yield start, _conll_example(sentence, columns, settings, f"{path}:{start}")
            sentence = []
            continue
        if not sentence:
            start = number
        if not width:
            width = len(fields)
            if width == 1 and "tags" not in settings.columns:
                del columns["tags"]  # words alone
        if len(fields) != width:
            raise DataError(
                f"{path}:{number}: {len(fields)} columns, but the lines before have {width}. "
                "Put one word with its tags on each line, a blank line between sentences."
            )
        sentence.append(fields)
    if sentence:
        yield start, _conll_example(sentence, columns, settings, f"{path}:{start}")


def _conll_example(
    sentence: list[list[str]], columns: dict[str, Any], settings: ReadSettings, where: str
) -> dict[Any, Any]:
    """The sentence under the keys that `data.columns` asks for, or under words and tags."""
    width = len(sentence[0])
    example: dict[Any, Any] = {}
    for field, index in columns.items():
        if not isinstance(index, int) or not -width <= index < width:
            raise DataError(
                f"{where}: no column {index!r} for data.columns.{field}: the lines have "
                f"{width} columns. {did_you_mean(str(index), map(str, range(width)))}"
            )
        example[index if field in settings.columns else field] = [row[index] for row in sentence]
    return example


def _squad_example(question: dict, context: str) -> Row:
    answers = question.get("answers") or []
    return question["id"], {
        "id": str(question["id"]),
        "question": question["question"],
        "context": context,
        "answers": answers_of([{**answer, "text": answer["text"]} for answer in answers]),
    }


def _object(line: str, where: str) -> dict[str, Any]:
    row = _parse(line, where)
    if not isinstance(row, dict):
        raise DataError(
            f"{where}: expected an object {{...}}, found {type(row).__name__}. "
            "Write one JSON object on each line."
        )
    return row


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=lambda pairs: _without_repeats(pairs, where))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where}: not JSON: {error.msg} at character {error.pos + 1}. Correct the line, "
            "or set data.format to what the file is."
        ) from None
    except RecursionError:
        raise DataError(f"{where}: the JSON is nested too deeply to be an example.") from None


def _without_repeats(pairs: list[tuple[str, Any]], where: str) -> dict[str, Any]:
    """The object of these pairs. Raises DataError for a key that occurs twice."""
    entries = dict(pairs)
    if len(entries) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{where}: the key '{twice}' stands twice in one object. Remove one.")
    return entries


def _missing(error: Exception) -> str:
    return f"no key {error}" if isinstance(error, KeyError) else "a part has another type"
