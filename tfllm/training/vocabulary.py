"""A tokenizer that a recipe learns from its own training texts, before the run."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from tfllm.data.lines import read_all
from tfllm.errors import SettingError
from tfllm.tasks.causal_lm import lines_of, messages_of
from tfllm.tokenizers.base import Tokenizer
from tfllm.training.recipe import TokenizerSettings


def learn(settings: TokenizerSettings, examples: Sequence[dict[str, Any]]) -> Tokenizer:
    """The tokenizer of `settings.kind` over the texts of all examples."""
    make = _characters if settings.kind == "characters" else _byte_pairs
    return with_template(make(settings, examples), settings.chat_template)


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


def _byte_pairs(settings: TokenizerSettings, examples: Sequence[dict[str, Any]]) -> Tokenizer:
    """Byte-level BPE, GPT-2's kind of vocabulary: any text can be written with it."""
    from tokenizers import Tokenizer as Rust
    from tokenizers import decoders, models, pre_tokenizers, trainers

    from tfllm.tokenizers.bytepair import BytePair

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    smallest = len(alphabet) + len(settings.special_tokens)
    if (settings.vocabulary_size or 0) < smallest:
        raise SettingError(
            f"tokenizer.vocabulary_size is {settings.vocabulary_size}; bytes and special tokens "
            f"alone are {smallest}. Make it larger."
        )
    rust = Rust(models.BPE())
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocabulary_size or 0,
        special_tokens=list(settings.special_tokens),
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    rust.train_from_iterator(_texts(examples), trainer)
    return BytePair.from_definition(rust.to_str())


def _texts(examples: Sequence[dict[str, Any]]) -> Iterator[str]:
    for example in examples:
        if "messages" in example:
            yield from (message["content"] for message in messages_of(example))
        else:
            yield lines_of(example)
