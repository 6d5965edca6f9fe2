"""A tokenizer that a recipe learns from its own training texts, before the run."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from tfllm.data.lines import read_all
from tfllm.errors import SettingError
from tfllm.tasks.causal_lm import lines_of, messages_of
from tfllm.tokenizers.base import Tokenizer
from tfllm.tokenizers.train import Options, learned
from tfllm.training.recipe import TokenizerSettings


def learn(settings: TokenizerSettings, examples: Sequence[dict[str, Any]]) -> Tokenizer:
    """The tokenizer of `settings.kind` over the texts of all examples."""
    return learn_from(settings, _Texts(examples))


def learn_from(settings: TokenizerSettings, texts: Iterable[str]) -> Tokenizer:
    """The tokenizer of `settings.kind` over texts, which are gone through more than once."""
    assert settings.kind is not None  # else there is a path
    options = Options(
        vocabulary_size=settings.vocabulary_size or sys.maxsize,
        special_tokens=settings.special_tokens,
        lowercase=settings.lowercase,
        end_of_text=False,  # the recipe names all of its special tokens
    )
    try:
        tokenizer = learned(texts, settings.kind, options, "data.train")
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
            else:
                yield lines_of(example)
