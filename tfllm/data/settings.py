"""The `data` part of a recipe: which files, how they are read, what is held out."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from tfllm.data.corpora.corpus import Corpus, is_corpus, open_corpus
from tfllm.data.corpora.settings import PrepareSettings
from tfllm.data.lines import resolve
from tfllm.data.read_settings import ReadSettings
from tfllm.data.sources import read
from tfllm.errors import DataError, SettingError

Paths = str | tuple[str, ...]

# Where `tfllm prepare` puts what is held out, inside the corpus.
VALIDATION = "validation"

HELD_OUT = ("validation", "validation_share", "validation_tail")


class MoreData(ReadSettings):
    """Further training files that are read in their own way."""

    train: Paths
    """The files."""
    prefix: str | None = None
    """What stands before the sources of these files, in the place of task.prefix: a language's
    tag, where one model learns several."""
    limit: int | None = Field(default=None, gt=0)
    """Read at most this many of their examples (the first ones)."""


class DataSettings(ReadSettings):
    """Files relative to the working directory, absolute, or under `${TFLLM_DATA}`."""

    train: Paths
    """Training files, read in this order; or one corpus that `tfllm prepare` has made."""
    validation: Paths | None = None
    """Files to measure on while training and after it, or a prepared corpus."""
    validation_share: float | None = Field(default=None, gt=0, lt=1)
    """The part of the training files to hold out, where there is no validation file: the examples
    whose text hashes below it, so that every reading and every machine holds out the same."""
    validation_tail: float | None = Field(default=None, gt=0, lt=1)
    """The part of the training files to hold out at their end: the last examples or, of a single
    text, its last characters. For texts that follow one another, as in one book."""
    limit: int | None = Field(default=None, gt=0)
    """Read at most this many training examples (the first ones)."""
    more: tuple[MoreData, ...] = ()
    """Further training files with other columns, formats or prefixes; nothing of them is held
    out."""
    both_orders: bool = False
    """Train on every pair in both orders: for questions where the order means nothing."""
    prepare: PrepareSettings | None = None
    """How `tfllm prepare` makes a corpus of the training files."""


class CorpusDocuments(Sequence[dict]):
    """The documents of a prepared corpus as examples that have a name only: tasks that learn from
    texts read the tokens of `corpus` (`Task.load_features`)."""

    def __init__(self, corpus: Corpus):
        self.corpus = corpus

    def __len__(self) -> int:
        return len(self.corpus.document_starts) - 1

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[each] for each in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        return {"_where": f"{self.corpus.directory}: document {number % len(self) + 1}"}


def find_corpus(paths: Paths) -> CorpusDocuments | None:
    """The prepared corpus that is named, or None for other files. Raises DataError."""
    named = [paths] if isinstance(paths, str) else list(paths)
    found = [path for path in named if is_corpus(resolve(path))]
    if not found:
        return None
    if len(named) > 1:
        raise SettingError(
            f"data: '{found[0]}' is a prepared corpus, which must be named alone. Prepare one of "
            "all texts."
        )
    return CorpusDocuments(open_corpus(resolve(found[0])))


def _check_for_corpus(settings: DataSettings, documents: CorpusDocuments) -> None:
    """Raises SettingError for keys that a corpus cannot follow."""
    for name in ("validation_tail", "both_orders", "label_separator", "more"):
        if getattr(settings, name):
            raise SettingError(f"data.{name} is not for a prepared corpus. Remove the key.")
    if settings.limit is not None and settings.limit < len(documents):
        raise SettingError(
            f"data.limit is {settings.limit}, and the corpus has {len(documents)} documents. "
            "Prepare a smaller one, or remove the key."
        )


def train_examples(settings: DataSettings) -> Sequence[dict]:
    """The training examples, without those held out."""
    documents = find_corpus(settings.train)
    if documents is not None:
        _check_for_corpus(settings, documents)
        return documents
    examples = _read_all(settings, settings.train)
    if settings.validation_share and not settings.validation:
        examples = (
            example for example in examples if not held_out(example, settings.validation_share)
        )
    if settings.validation_tail:
        examples = iter(_divided(list(examples), settings.validation_tail)[0])
    chosen: list[dict] = []
    for example in examples:
        if settings.limit is not None and len(chosen) == settings.limit:
            break
        chosen.append(example)
    if not chosen:
        raise DataError(
            f"{settings.train}: every example is held out. Lower data.validation_share."
        )
    if settings.both_orders:
        chosen += [swapped(example) for example in chosen]
    return chosen + [example for each in settings.more for example in _more_examples(each)]


def _more_examples(settings: MoreData) -> Iterator[dict]:
    prefix = {} if settings.prefix is None else {"prefix": settings.prefix}
    for example in itertools.islice(_read_all(settings, settings.train), settings.limit):
        yield {**example, **prefix}


def swapped(example: dict) -> dict:
    """The example with its two texts exchanged. Raises DataError where there are not two."""
    if "text" not in example or "text_pair" not in example:
        raise DataError(
            f"{example.get('_where', '')}: data.both_orders needs text and text_pair. "
            "Name both in data.columns, or remove the key."
        )
    return {**example, "text": example["text_pair"], "text_pair": example["text"]}


def validation_examples(settings: DataSettings) -> Sequence[dict]:
    """The examples to measure on; empty where the recipe names none.

    Of a prepared corpus, where no other is named, what was held out when it was made.
    """
    given = [name for name in HELD_OUT if getattr(settings, name) is not None]
    if len(given) > 1:
        raise SettingError(
            f"data: give either {given[0]} or {given[1]}. Remove one; "
            f"{given[-1]} holds out a part of the training files."
        )
    if settings.validation:
        found = find_corpus(settings.validation)
        return found if found is not None else list(_read_all(settings, settings.validation))
    if (documents := find_corpus(settings.train)) is not None:
        return _held_out_documents(settings, documents.corpus.directory / VALIDATION)
    if settings.validation_tail:
        tail = _divided(list(_read_all(settings, settings.train)), settings.validation_tail)[1]
        if not tail:
            raise DataError(f"{settings.train}: nothing is held out. Raise data.validation_tail.")
        return tail
    share = settings.validation_share
    if not share:
        return []
    chosen = [e for e in _read_all(settings, settings.train) if held_out(e, share)]
    if not chosen:
        raise DataError(f"{settings.train}: nothing is held out. Raise data.validation_share.")
    return chosen


def _held_out_documents(settings: DataSettings, directory: Path) -> Sequence[dict]:
    if is_corpus(directory):
        return CorpusDocuments(open_corpus(directory))
    if settings.validation_share:
        raise DataError(
            f"'{directory.parent}' was prepared without data.validation_share: nothing is held "
            "out. Prepare it again, name data.validation, or remove the key."
        )
    return []


def _divided(examples: list[dict], share: float) -> tuple[list[dict], list[dict]]:
    """All but the last examples, and these; a single text is cut after its (1 - share) part."""
    if len(examples) == 1 and isinstance(examples[0].get("text"), str):
        text = examples[0]["text"]
        cut = int(len(text) * (1 - share))
        return [{**examples[0], "text": text[:cut]}], [{**examples[0], "text": text[cut:]}]
    cut = int(len(examples) * (1 - share))
    return examples[:cut], examples[cut:]


def held_out(example: dict, share: float) -> bool:
    """Whether an example belongs to the held-out part: by a hash of its first text.

    Examples that share that text (questions about one paragraph, sentences in several pairs) fall
    on the same side.
    """
    for field in ("context", "text", "words", "messages", "source"):
        if field in example:
            key = str(example[field])
            break
    else:
        key = str(sorted((k, str(v)) for k, v in example.items() if k != "_where"))
    digest = hashlib.sha256(key.encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def _read_all(settings: ReadSettings, paths: Paths) -> Iterator[dict]:
    for path in [paths] if isinstance(paths, str) else paths:
        yield from read(path, settings)
