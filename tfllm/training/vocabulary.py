"""A tokenizer that a recipe learns from its own training texts, before the run."""

from __future__ import annotations

import dataclasses
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tfllm.data.lines import read_all
from tfllm.errors import SettingError
from tfllm.tasks.causal_lm import lines_of, messages_of
from tfllm.tokenizers.base import Tokenizer
from tfllm.training.recipe import TokenizerSettings


def learn(settings: TokenizerSettings, examples: Sequence[dict[str, Any]]) -> Tokenizer:
    """The tokenizer of `settings.kind` over the texts of all examples."""
    if settings.kind == "characters":
        return with_template(_characters(settings, examples), settings.chat_template)
    from tfllm.tokenizers import train

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "texts.txt"
        with path.open("w", encoding="utf-8") as file:
            for text in _texts(examples):
                file.write(text + "\n")
        made = train.train(
            [path],
            str(settings.kind),
            settings.vocabulary_size or 0,
            special_tokens=settings.special_tokens,
        )
    return with_template(made, settings.chat_template)


def with_template(tokenizer: Any, chat_template: str | None) -> Tokenizer:
    """The tokenizer with the chat template of a file."""
    if chat_template is None:
        return tokenizer
    if not hasattr(tokenizer, "config"):
        raise SettingError(f"tokenizer.chat_template: {tokenizer.kind} has no conversations.")
    return dataclasses.replace(tokenizer, chat_template=read_all(chat_template))


def _characters(settings: TokenizerSettings, examples: Sequence[dict[str, Any]]) -> Tokenizer:
    """The characters of the texts in the order of their code points, the most frequent ones."""
    from tfllm.tokenizers.characters import from_characters

    counts: Counter[str] = Counter()
    for text in _texts(examples):
        counts.update(text)
    room = None
    if settings.vocabulary_size is not None:
        room = settings.vocabulary_size - len(settings.special_tokens)
        if room < 1:
            raise SettingError(
                f"tokenizer.vocabulary_size is {settings.vocabulary_size}, and there are "
                f"{len(settings.special_tokens)} special tokens. Make it larger."
            )
    # Equally frequent characters in the order of their code points: the same on every machine.
    chosen = sorted(counts, key=lambda character: (-counts[character], character))[:room]
    return from_characters(sorted(chosen), settings.special_tokens)


def _texts(examples: Sequence[dict[str, Any]]) -> Iterator[str]:
    for example in examples:
        if "messages" in example:
            yield from (message["content"] for message in messages_of(example))
        else:
            yield lines_of(example)
