"""The `data` part of a recipe: files, how they are read, and what is held out."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

from pydantic import Field

from tfllm.data.corpora.corpus import Corpus, is_corpus, open_corpus
from tfllm.data.corpora.settings import PrepareSettings
from tfllm.data.lines import resolve
from tfllm.data.read_settings import ReadSettings
from tfllm.data.sources import read
from tfllm.errors import DataError, SettingError

Paths = str | tuple[str, ...]

# The directory of held-out documents that `tfllm prepare` writes inside a corpus.
VALIDATION = "validation"

HELD_OUT = ("validation", "validation_share", "validation_tail")


class MoreData(ReadSettings):
    """Further training files with read settings of their own."""

    train: Paths
    """The files."""
    prefix: str | None = None
    """Prefix of the sources of these files, instead of task.prefix: for example a language tag of a
    multilingual model."""
    limit: int | None = Field(default=None, gt=0)
    """Read only this many examples, from the start."""


class DataSettings(ReadSettings):
    """Files; paths are relative to the working directory, absolute, or under `${TFLLM_DATA}`."""

    train: Paths
    """Training files, read in this order; or one prepared corpus (`tfllm prepare`)."""
    validation: Paths | None = None
    """Validation files, or a prepared corpus."""
    validation_share: float | None = Field(default=None, gt=0, lt=1)
    """Share of the training examples to hold out where there are no validation files. Chosen by a
    hash of the text, so that every run and every machine holds out the same ones."""
    validation_tail: float | None = Field(default=None, gt=0, lt=1)
    """Share of the training examples to hold out at the end of the files; for a single text, of its
    characters. For consecutive texts, such as a book."""
    limit: int | None = Field(default=None, gt=0)
    """Read only this many training examples, from the start."""
    more: tuple[MoreData, ...] = ()
    """Further training files with other columns, formats or prefixes; nothing is held out of
    them."""
    both_orders: bool = False
    """Train on every pair in both orders: for symmetric tasks."""
    prepare: PrepareSettings | None = None
    """Settings of `tfllm prepare`."""


class CorpusDocuments(Sequence[dict]):
    """The documents of a prepared corpus as examples that have only a name.

    Tasks that learn from texts read the tokens of `corpus` (`Task.load_features`).
    """

    def __init__(self, corpus: Corpus):
        self.corpus = corpus

    def __len__(self) -> int:
        return len(self.corpus.document_starts) - 1

    @overload
    def __getitem__(self, index: int) -> dict: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict]: ...
    def __getitem__(self, index: int | slice) -> dict | list[dict]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return {"_where": f"{self.corpus.directory}: document {index % len(self) + 1}"}


def find_corpus(paths: Paths) -> CorpusDocuments | None:
    """Open the prepared corpus at `paths`; return None where they are other files.

    Raises:
        DataError: The corpus is damaged.
        SettingError: A corpus is named among other files.
    """
    names = [paths] if isinstance(paths, str) else list(paths)
    corpora = [path for path in names if is_corpus(resolve(path))]
    if not corpora:
        return None
    if len(names) > 1:
        raise SettingError(
            f"data: '{corpora[0]}' is a prepared corpus, which must be named alone. Prepare one of "
            "all texts."
        )
    return CorpusDocuments(open_corpus(resolve(corpora[0])))


def _check_for_corpus(settings: DataSettings, documents: CorpusDocuments) -> None:
    """Refuse keys that do not apply to a prepared corpus."""
    for name in ("validation_tail", "both_orders", "label_separator", "more"):
        if getattr(settings, name):
            raise SettingError(f"data.{name} is not for a prepared corpus. Remove the key.")
    if settings.limit is not None and settings.limit < len(documents):
        raise SettingError(
            f"data.limit is {settings.limit}, and the corpus has {len(documents)} documents. "
            "Prepare a smaller one, or remove the key."
        )


def train_examples(settings: DataSettings) -> Sequence[dict]:
    """Read the training examples, without those held out.

    Raises:
        DataError: A file cannot be read, or no example is left.
        SettingError: The settings do not go together.
    """
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
        examples = iter(_split_tail(list(examples), settings.validation_tail)[0])
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
        chosen += [swap_pair(example) for example in chosen]
    return chosen + [example for each in settings.more for example in _more_examples(each)]


def _more_examples(settings: MoreData) -> Iterator[dict]:
    prefix = {} if settings.prefix is None else {"prefix": settings.prefix}
    for example in itertools.islice(_read_all(settings, settings.train), settings.limit):
        yield {**example, **prefix}


def swap_pair(example: dict) -> dict:
    """Return the example with its two texts swapped.

    Raises:
        DataError: It has no two texts.
    """
    if "text" not in example or "text_pair" not in example:
        raise DataError(
            f"{example.get('_where', '')}: data.both_orders needs text and text_pair. "
            "Name both in data.columns, or remove the key."
        )
    return {**example, "text": example["text_pair"], "text_pair": example["text"]}


def validation_examples(settings: DataSettings) -> Sequence[dict]:
    """Read the validation examples; empty where the recipe has none.

    Of a prepared corpus they are what was held out when it was prepared.

    Raises:
        DataError: A file cannot be read, or nothing is held out.
        SettingError: The settings do not go together.
    """
    keys = [name for name in HELD_OUT if getattr(settings, name) is not None]
    if len(keys) > 1:
        raise SettingError(
            f"data: give either {keys[0]} or {keys[1]}. Remove one; "
            f"{keys[-1]} holds out a part of the training files."
        )
    if settings.validation:
        corpus = find_corpus(settings.validation)
        return corpus if corpus is not None else list(_read_all(settings, settings.validation))
    if (documents := find_corpus(settings.train)) is not None:
        return _held_out_documents(settings, documents.corpus.directory / VALIDATION)
    if settings.validation_tail:
        tail = _split_tail(list(_read_all(settings, settings.train)), settings.validation_tail)[1]
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


def _split_tail(examples: list[dict], share: float) -> tuple[list[dict], list[dict]]:
    """All but the last examples, and these; a single text is split by its characters."""
    if len(examples) == 1 and isinstance(examples[0].get("text"), str):
        text = examples[0]["text"]
        cut = int(len(text) * (1 - share))
        return [{**examples[0], "text": text[:cut]}], [{**examples[0], "text": text[cut:]}]
    cut = int(len(examples) * (1 - share))
    return examples[:cut], examples[cut:]


def held_out(example: dict, share: float) -> bool:
    """Return whether an example is held out, by a hash of its first text.

    Examples that share that text (questions about one paragraph, sentences in several pairs) are
    held out together.

    Args:
        example: With canonical fields.
        share: Of examples to hold out, 0 to 1.
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
