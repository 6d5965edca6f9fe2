"""The tokenizer that a recipe names, or learns from its own training texts before the run."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tfllm.data.lines import read_all, resolve
from tfllm.errors import SettingError
from tfllm.tasks.causal_lm import lines_of, messages_of
from tfllm.tasks.seq2seq import source_of, targets_of
from tfllm.tokenizers.base import Tokenizer
from tfllm.tokenizers.loading import load_tokenizer, read_vocabulary
from tfllm.tokenizers.train import TrainerOptions, append_eos, train_tokenizer
from tfllm.tokenizers.wordpiece import WordPiece
from tfllm.training.recipe import TokenizerSettings

# What padding and the decoder's first token are, and what ends sources and targets.
PAIR_TOKENS = ("<pad>", "</s>")


def is_learned(settings: TokenizerSettings | str | None) -> bool:
    """Whether a recipe's tokenizer is learned from its training texts."""
    return isinstance(settings, TokenizerSettings) and settings.kind is not None


def read_tokenizer(
    settings: TokenizerSettings | str,
    examples: Sequence[dict[str, Any]] = (),
    learned: Path | None = None,
    *,
    pairs: bool = False,
) -> Tokenizer:
    """The tokenizer of a recipe's `tokenizer` key.

    One that is to be learned comes from `examples`, or from the directory `learned` where it has
    been before; with `pairs` it is for sources and targets.
    """
    if isinstance(settings, str):
        settings = TokenizerSettings(path=settings)
    if settings.path is None:
        if learned is not None and learned.is_dir():
            return load_tokenizer(learned)
        return (learn_for_pairs if pairs else learn_from)(settings, _Texts(examples))
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


def learn(settings: TokenizerSettings, examples: Sequence[dict[str, Any]]) -> Tokenizer:
    """The tokenizer of `settings.kind` over the texts of all examples."""
    return learn_from(settings, _Texts(examples))


def learn_for_pairs(settings: TokenizerSettings, texts: Iterable[str]) -> Tokenizer:
    """One vocabulary over sources and targets, whose rows end in `</s>`.

    It has PAIR_TOKENS first, where it is of a kind that has no special tokens of its own. `texts`
    are gone through more than once.
    """
    if settings.kind in ("bpe", "characters"):
        tokens = tuple(dict.fromkeys([*PAIR_TOKENS, *settings.special_tokens]))
        settings = settings.model_copy(update={"special_tokens": tokens})
    return append_eos(learn_from(settings, texts))


def learn_from(settings: TokenizerSettings, texts: Iterable[str]) -> Tokenizer:
    """The tokenizer of `settings.kind` over texts, which are gone through more than once."""
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
            str(error).replace("--vocabulary-size", "tokenizer.vocabulary_size is")
        ) from None
    return with_template(tokenizer, settings.chat_template)


def with_template(tokenizer: Any, chat_template: str | None) -> Tokenizer:
    """The tokenizer with the chat template of a file."""
    if chat_template is None:
        return tokenizer
    if not hasattr(tokenizer, "config"):
        raise SettingError(f"tokenizer.chat_template: {tokenizer.kind} has no conversations.")
    return dataclasses.replace(tokenizer, chat_template=read_all(chat_template))


class _Texts:
    """The texts of examples, from the beginning each time."""

    def __init__(self, examples: Sequence[dict[str, Any]]):
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
