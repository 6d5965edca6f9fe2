"""A recipe's texts to a prepared corpus: what `tfllm prepare` reads of the recipe."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tfllm.data.corpora.corpus import TOKENIZER, is_corpus
from tfllm.data.corpora.document_encoding import SentenceSplit
from tfllm.data.corpora.preparation import CorpusJob, ProgressCallback, build_corpus, validation_job
from tfllm.data.corpora.settings import PrepareSettings
from tfllm.data.lines import resolve
from tfllm.errors import SettingError
from tfllm.tasks import AnyTask
from tfllm.tokenizers.base import Tokenizer
from tfllm.tokenizers.loading import find_vocabulary_file, load_tokenizer
from tfllm.training import vocabulary
from tfllm.training.recipe import ModelSettings, Recipe, TokenizerSettings

NOT_FOR_CORPORA = ("validation_tail", "both_orders", "labels", "label_separator", "more")


class CorpusRecipe(Recipe):
    """A recipe, of which data and tokenizer are enough to prepare a corpus."""

    name: str = "corpus"
    model: ModelSettings | None = None  # type: ignore[assignment]
    task: AnyTask | None = None  # type: ignore[assignment]


def prepare_corpus(
    recipe: CorpusRecipe,
    output: Path,
    *,
    workers: int,
    progress: ProgressCallback = lambda *_: None,
    notice: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Prepare the training texts at `output`, and the validation texts in its validation/.

    Args:
        recipe: Its data, tokenizer, model and task.
        output: The corpus directory.
        workers: Processes that encode texts.
        progress: Called with what is done.
        notice: Called with lines for people.

    Returns:
        The manifest.

    Raises:
        SettingError, DataError, TokenizerError, StorageError: The recipe, its files or the disk.
    """
    data = recipe.data
    for name in NOT_FOR_CORPORA:
        if getattr(data, name):
            raise SettingError(f"data.{name} is not for corpora. Remove the key.")
    if data.validation and data.validation_share:
        raise SettingError("data: give either validation or validation_share. Remove one.")
    settings = data.prepare or PrepareSettings()
    split = _sentence_split(recipe, settings)
    train = CorpusJob(
        _paths(data.train), data, settings, split, data.limit, data.validation_share
    )  # fmt: skip
    validation = validation_job(train, _paths(data.validation) if data.validation else None)
    for path in (*train.paths, *(validation.paths if validation else ())):
        if is_corpus(resolve(path)):
            raise SettingError(
                f"data: '{path}' is a prepared corpus already. Name the text files it was made of, "
                "or train on it: tfllm train RECIPE"
            )
    build_tokenizer, identity = _tokenizer(recipe)
    return build_corpus(
        train,
        validation,
        output,
        build_tokenizer,
        identity,
        workers=workers,
        progress=progress,
        notice=notice,
    )


def _sentence_split(recipe: CorpusRecipe, settings: PrepareSettings) -> SentenceSplit:
    if settings.sentences is not None:
        return settings.sentences
    return (
        "none"
        if recipe.task is not None and recipe.task.generates == "continuation"
        else "punctuation"
    )


def _tokenizer(
    recipe: CorpusRecipe,
) -> tuple[Callable[[Iterable[str]], Tokenizer], dict[str, Any]]:
    """A function from texts to the tokenizer, and what identifies that tokenizer."""
    settings = recipe.tokenizer
    if settings is None:
        if recipe.model is None or recipe.model.source is None:
            raise SettingError(
                "tokenizer: a corpus needs one. Give one, tokenizer: {path: DIR}, or train one "
                "on the texts, tokenizer: {kind: wordpiece, vocabulary_size: 8000}"
            )
        loaded = load_tokenizer(_checkpoint(resolve(str(recipe.model.source))))
        return lambda _: loaded, _content(loaded)
    if isinstance(settings, TokenizerSettings) and settings.kind is not None:
        trained = settings
        pairs = recipe.task is not None and recipe.task.generates == "target"
        train = vocabulary.train_for_pairs if pairs else vocabulary.train_on_texts
        return (
            lambda texts: train(trained, texts),
            settings.model_dump(exclude_none=True),
        )
    tokenizer = vocabulary.read_tokenizer(settings)
    return lambda _: tokenizer, _content(tokenizer)


def _checkpoint(path: Path) -> Path:
    """The directory with the tokenizer's files: of a checkpoint, a run or a corpus."""
    for inner in ("checkpoint", TOKENIZER):
        if not find_vocabulary_file(path) and (path / inner).is_dir():
            return path / inner
    return path


def _content(tokenizer: Tokenizer) -> dict[str, Any]:
    """Kind, size and a digest of the vocabulary."""
    joined = "\n".join(tokenizer.vocabulary).encode("utf-8", "surrogatepass")
    return {
        "kind": tokenizer.kind,
        "vocabulary_size": tokenizer.vocabulary_size,
        "digest": hashlib.sha256(joined).hexdigest(),
    }


def _paths(paths: Any) -> tuple[str, ...]:
    return (paths,) if isinstance(paths, str) else tuple(paths)
