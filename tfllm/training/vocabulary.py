"""The tokenizer that a recipe names, or that is trained on its training texts before the run."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tfllm.data.lines import read_all, resolve
from tfllm.errors import SettingError
from tfllm.tasks.causal_lm import lines_of, messages_of
from tfllm.tasks.features import Example
from tfllm.tasks.seq2seq import source_of, targets_of
from tfllm.tokenizers.base import Tokenizer
from tfllm.tokenizers.loading import load_tokenizer, read_vocabulary
from tfllm.tokenizers.train import TrainerOptions, append_eos, train_tokenizer
from tfllm.tokenizers.wordpiece import WordPiece
from tfllm.training.recipe import TokenizerSettings

# What padding and the decoder's first token are, and what ends sources and targets.
PAIR_TOKENS = ("<pad>", "</s>")


def is_trained(settings: TokenizerSettings | str | None) -> bool:
    """Return whether a recipe's tokenizer is trained on its training texts."""
    return isinstance(settings, TokenizerSettings) and settings.kind is not None


def read_tokenizer(
    settings: TokenizerSettings | str,
    examples: Sequence[Example] = (),
    trained: Path | None = None,
    *,
    pairs: bool = False,
) -> Tokenizer:
    """Load or train the tokenizer of a recipe's `tokenizer` key.

    Args:
        settings: The key's value.
        examples: The examples that one is trained on.
        trained: The directory of one that was trained before, which is loaded.
        pairs: Whether it is for sources and targets.

    Returns:
        The tokenizer.

    Raises:
        SettingError: The key's value cannot be used.
    """
    if isinstance(settings, str):
        settings = TokenizerSettings(path=settings)
    if settings.path is None:
        if trained is not None and trained.is_dir():
            return load_tokenizer(trained)
        return (train_for_pairs if pairs else train_on_texts)(settings, _Texts(examples))
    path = resolve(settings.path)
    if path.is_file() and path.suffix == ".txt":
        lowercase = True if settings.lowercase is None else settings.lowercase
        tokens = read_vocabulary(path)
        return with_template(
            WordPiece.from_vocabulary(tokens, lowercase=lowercase), settings.chat_template
        )
    if settings.lowercase is not None:
        raise SettingError(
            "tokenizer.lowercase goes with a vocab.txt; the directory's own files say it."
        )
    return with_template(load_tokenizer(path), settings.chat_template)


def train_on_examples(settings: TokenizerSettings, examples: Sequence[Example]) -> Tokenizer:
    """Train the tokenizer of `settings.kind` on the texts of all examples."""
    return train_on_texts(settings, _Texts(examples))


def train_for_pairs(settings: TokenizerSettings, texts: Iterable[str]) -> Tokenizer:
    """Train one vocabulary over sources and targets, whose rows end in `</s>`.

    It has PAIR_TOKENS first, where it is of a kind that has no special tokens of its own.

    Args:
        settings: `tokenizer` of the recipe.
        texts: Sources and targets, iterated more than once.
    """
    if settings.kind in ("bpe", "characters"):
        tokens = tuple(dict.fromkeys([*PAIR_TOKENS, *settings.special_tokens]))
        settings = settings.model_copy(update={"special_tokens": tokens})
    return append_eos(train_on_texts(settings, texts))


def train_on_texts(settings: TokenizerSettings, texts: Iterable[str]) -> Tokenizer:
    """Train the tokenizer of `settings.kind`.

    Args:
        settings: `tokenizer` of the recipe.
        texts: Iterated more than once.

    Raises:
        SettingError: A vocabulary of that size cannot be trained.
    """
    assert settings.kind is not None  # else there is a path
    options = TrainerOptions(
        vocabulary_size=settings.vocabulary_size or sys.maxsize,
        special_tokens=settings.special_tokens,
        lowercase=settings.lowercase,
        end_of_text=False,  # the recipe names all of its special tokens
    )
    try:
        tokenizer = train_tokenizer(texts, settings.kind, options, "data.train")
    except SettingError as error:
        raise SettingError(
            error.cli_message.replace("--vocabulary-size", "tokenizer.vocabulary_size is")
        ) from None
    return with_template(tokenizer, settings.chat_template)


def with_template(tokenizer: Tokenizer, chat_template: str | None) -> Tokenizer:
    """Return a tokenizer with the chat template of a file.

    Args:
        tokenizer: The tokenizer.
        chat_template: The file's path; None: the tokenizer stays as it is.

    Raises:
        SettingError: A tokenizer of its kind has no chat template.
    """
    if chat_template is None:
        return tokenizer
    if not hasattr(tokenizer, "config"):
        raise SettingError(f"tokenizer.chat_template: {tokenizer.kind} has no conversations.")
    tokenizer_data: Any = tokenizer  # each is a dataclass, which the protocol cannot say
    return dataclasses.replace(tokenizer_data, chat_template=read_all(chat_template))


class _Texts:
    """The texts of examples, from the beginning each time."""

    def __init__(self, examples: Sequence[Example]):
        self._examples = examples

    def __iter__(self) -> Iterator[str]:
        for example in self._examples:
            if "messages" in example:
                yield from (message["content"] for message in messages_of(example))
            elif "source" in example:
                yield source_of(example)
                yield from targets_of(example)
            else:
                yield lines_of(example)
