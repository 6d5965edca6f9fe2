"""The word that each token of a text belongs to: one rule for labels, predictions and the graph.

A token belongs to the word of the first character of its offsets that is not white space. Three
kinds of tokens change that, so that a word begins where Hugging Face's `word_ids` begin it:

- A single space mark (a token `▁` or `Ġ`) belongs to the word after it, unless the first token of
  that word has a space mark of its own: then the single one is another space, of no word.
- Any other token of white space only belongs to no word.
- WordPiece's `##piece` belongs to the word of the token before it.

`tfllm.tasks.entities_graph` computes the same in TensorFlow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tfllm.tokenizers.byte_level import token_bytes

if TYPE_CHECKING:
    from tfllm.tokenizers.base import Tokenizer

# How a token is written into a text: as it is, joined to the text before it, or after a space.
AS_IS, NO_SPACE, SPACE_BEFORE = range(3)
# Kinds of tokens. WHITE: white space only, except a single space mark.
PLAIN, LEADING_SPACE, SINGLE_SPACE, WHITE, CONTINUATION = range(5)
NO_WORD = -1
SUBWORD_PREFIX = "##"
SPACE_MARK = "\u2581"  # SentencePiece's mark of a space
# First and last code points of Unicode's White_Space.
WHITE_SPACE = (
    (0x09, 0x0D), (0x20, 0x20), (0x85, 0x85), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A),
    (0x2028, 0x2029), (0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000),
)  # fmt: skip


class WordSpans(NamedTuple):
    """The spans of the W words that have tokens, in the order of the words: int [W] each."""

    words: np.ndarray
    """The index of the word."""
    positions: np.ndarray
    """The index of its first token."""
    starts: np.ndarray
    """Its first character."""
    ends: np.ndarray
    """The end of its last character; of a truncated word, of its last token."""


def token_kinds(tokenizer: Tokenizer) -> np.ndarray:
    """Return the kind of every token of a vocabulary: int8 [V]."""
    return np.array([_token_kind(token, tokenizer.kind) for token in _texts(tokenizer)], np.int8)


def fill_mask_texts(tokenizer: Tokenizer) -> list[tuple[int, str]]:
    """Return how every token replaces a mask: AS_IS, NO_SPACE or SPACE_BEFORE; its text."""
    texts = _texts(tokenizer)
    if tokenizer.kind == "wordpiece":
        kinds = token_kinds(tokenizer)
        return [
            (NO_SPACE, text.removeprefix(SUBWORD_PREFIX)) if kind == CONTINUATION else (AS_IS, text)
            for text, kind in zip(texts, kinds, strict=True)
        ]
    if tokenizer.kind == "characters":
        return [(AS_IS, text) for text in texts]
    special = tokenizer.all_special_ids
    return [
        (AS_IS, tokenizer.vocabulary[token_id])
        if token_id in special
        else (SPACE_BEFORE, text[1:])
        if text.startswith(" ")
        else (NO_SPACE, text)
        for token_id, text in enumerate(texts)
    ]


def word_ids_of_tokens(words: np.ndarray, offsets: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """Return the word of each token of a text, NO_WORD where there is none: int64 [T].

    Args:
        words: The word of each character of the text, NO_WORD for white space: int [C].
        offsets: The first character of each token and the end of its last one: int [T, 2].
        kinds: The kind of each token: int [T].
    """
    if not len(kinds):
        return np.zeros(0, np.int64)
    starts = np.minimum(offsets[:, 0], len(words))
    first = _next_in_word(words)[starts]
    inside = first < np.maximum(offsets[:, 1], starts + 1)  # a byte may have empty offsets
    word_ids = np.where(inside & (kinds != WHITE), np.append(words, NO_WORD)[first], NO_WORD)
    following = np.append(word_ids[1:], NO_WORD)
    without_space = np.append(np.isin(kinds[1:], (PLAIN, CONTINUATION)), False)
    of_space = np.where(without_space, following, NO_WORD)
    word_ids = np.where(kinds == SINGLE_SPACE, of_space, word_ids)
    origin = np.where(kinds == CONTINUATION, 0, np.arange(len(kinds)))
    return word_ids[np.maximum.accumulate(origin)]


def word_spans(words: np.ndarray, offsets: np.ndarray, kinds: np.ndarray) -> WordSpans:
    """Return the spans of the words of a text that have tokens.

    Args:
        words: The word of each character of the text, NO_WORD for white space: int [C].
        offsets: The first character of each token and the end of its last one: int [T, 2].
        kinds: The kind of each token: int [T].
    """
    word_ids = word_ids_of_tokens(words, offsets, kinds)
    tokens = np.flatnonzero(word_ids >= 0)
    with_tokens, inverse = np.unique(word_ids[tokens], return_inverse=True)
    first_tokens = np.full(len(with_tokens), len(kinds))
    np.minimum.at(first_tokens, inverse, tokens)
    starts = np.full(len(with_tokens), len(words))
    ends = np.zeros(len(with_tokens), np.int64)
    ends_of_characters = np.where(words >= 0, np.arange(1, len(words) + 1), 0)
    # [c]: the end of the last character before c that is in a word.
    last = np.maximum.accumulate(np.append(0, ends_of_characters))
    has_text = kinds[tokens] != SINGLE_SPACE
    begin, stop = (np.minimum(offsets[tokens[has_text], n], len(words)) for n in (0, 1))
    np.minimum.at(starts, inverse[has_text], _next_in_word(words)[begin])
    np.maximum.at(ends, inverse[has_text], last[stop])
    return WordSpans(with_tokens, first_tokens, starts, np.maximum(ends, starts + 1))


def is_white(characters: Sequence[str]) -> np.ndarray:
    """Return whether each character is white space: bool [C]."""
    points = np.array([ord(character) for character in characters], np.int64)
    inside = np.zeros(len(points), np.bool_)
    for first, last in WHITE_SPACE:
        inside |= (points >= first) & (points <= last)
    return inside


def _next_in_word(words: np.ndarray) -> np.ndarray:
    """The first index from each one on that is in a word, C where there is none: int [C + 1]."""
    indices = np.where(words >= 0, np.arange(len(words)), len(words))
    return np.minimum.accumulate(np.append(indices, len(words))[::-1])[::-1]


def _texts(tokenizer: Tokenizer) -> list[str]:
    """The text of each token, with spaces instead of marks."""
    if tokenizer.kind == "bytepair":
        return [token.decode("utf-8", "replace") for token in token_bytes(tokenizer.vocabulary)]
    if tokenizer.kind == "sentencepiece":
        return [token.replace(SPACE_MARK, " ") for token in tokenizer.vocabulary]
    return tokenizer.vocabulary


def _token_kind(text: str, kind: str) -> int:
    if kind == "wordpiece":
        return CONTINUATION if text.startswith(SUBWORD_PREFIX) and text != SUBWORD_PREFIX else PLAIN
    if text == " ":  # in a vocabulary of characters it is no mark
        return WHITE if kind == "characters" else SINGLE_SPACE
    if text and is_white(text).all():
        return WHITE
    return LEADING_SPACE if text.startswith(" ") else PLAIN
