"""Which word each piece of a text belongs to: one rule for labels, predictions and the graph.

A piece belongs to the word of the first character of its offsets that is not white space. Three
marks of a vocabulary change that, so that a word begins where Hugging Face's `word_ids` begin it:

- A lone space mark (a token `▁` or `Ġ`) belongs to the word after it, unless the first piece of
  that word has a space mark of its own: then the lone one is a further space, of no word.
- Any other token of white space alone belongs to no word.
- WordPiece's `##piece` belongs to the word of the piece before it.

`tfllm.tasks.entities_graph` computes the same in TensorFlow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from tfllm.tokenizers.base import Tokenizer

# How a token is written into a text: as it is, joined to what stands before, or after a space.
AS_IS, NO_SPACE, SPACE_BEFORE = range(3)
# Marks of tokens. WHITE: white space alone, but for the lone mark of a space.
PLAIN, LEADING_SPACE, SINGLE_SPACE, WHITE, CONTINUATION = range(5)
NO_WORD = -1
SUBWORD_PREFIX = "##"
SPACE_MARK = "\u2581"  # SentencePiece's sign of a space
# First and last code points of Unicode's White_Space.
WHITE_SPACE = (
    (0x09, 0x0D), (0x20, 0x20), (0x85, 0x85), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A),
    (0x2028, 0x2029), (0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000),
)  # fmt: skip


class WordSpans(NamedTuple):
    """The pieces of W words that have one, in the order of the words. int [W] each."""

    words: np.ndarray
    """number of the word"""
    places: np.ndarray
    """its first piece"""
    starts: np.ndarray
    """its first character"""
    ends: np.ndarray
    """the place after its last character; of a word that was cut, after that of its last piece"""


def token_kinds(tokenizer: Tokenizer) -> np.ndarray:
    """The mark of every token of a vocabulary: int8 [V]."""
    return np.array([_mark(token, tokenizer.kind) for token in _texts(tokenizer)], np.int8)


def fill_mask_texts(tokenizer: Tokenizer) -> list[tuple[int, str]]:
    """How every token is written in the place of a mask, and its text without marks."""
    texts = _texts(tokenizer)
    if tokenizer.kind == "wordpiece":
        marks = token_kinds(tokenizer)
        return [
            (NO_SPACE, text.removeprefix(SUBWORD_PREFIX)) if mark == CONTINUATION else (AS_IS, text)
            for text, mark in zip(texts, marks, strict=True)
        ]
    if tokenizer.kind == "characters":
        return [(AS_IS, text) for text in texts]
    special = tokenizer.all_special_ids
    return [
        (AS_IS, tokenizer.vocabulary[number])
        if number in special
        else (SPACE_BEFORE, text[1:])
        if text.startswith(" ")
        else (NO_SPACE, text)
        for number, text in enumerate(texts)
    ]


def word_ids_of_tokens(words: np.ndarray, offsets: np.ndarray, marks: np.ndarray) -> np.ndarray:
    """The word of each piece of a text, NO_WORD where there is none: int64 [T].

    Args:
        words: The word of each character of the text, NO_WORD for white space: int [C].
        offsets: First character of each piece and the place after its last one: int [T, 2].
        marks: The mark of each piece: int [T].
    """
    if not len(marks):
        return np.zeros(0, np.int64)
    starts = np.minimum(offsets[:, 0], len(words))
    first = _solid_from(words)[starts]
    inside = first < np.maximum(offsets[:, 1], starts + 1)  # a byte may have empty offsets
    found = np.where(inside & (marks != WHITE), np.append(words, NO_WORD)[first], NO_WORD)
    following = np.append(found[1:], NO_WORD)
    alone = np.append(np.isin(marks[1:], (PLAIN, CONTINUATION)), False)
    found = np.where(marks == SINGLE_SPACE, np.where(alone, following, NO_WORD), found)
    origin = np.where(marks == CONTINUATION, 0, np.arange(len(marks)))
    return found[np.maximum.accumulate(origin)]


def word_spans(words: np.ndarray, offsets: np.ndarray, marks: np.ndarray) -> WordSpans:
    """The words of a text that have pieces, from what `word_ids_of_tokens` takes."""
    numbers = word_ids_of_tokens(words, offsets, marks)
    pieces = np.flatnonzero(numbers >= 0)
    found, inverse = np.unique(numbers[pieces], return_inverse=True)
    places = np.full(len(found), len(marks))
    np.minimum.at(places, inverse, pieces)
    starts = np.full(len(found), len(words))
    ends = np.zeros(len(found), np.int64)
    behind = np.where(words >= 0, np.arange(1, len(words) + 1), 0)
    last = np.maximum.accumulate(np.append(0, behind))  # [c]: behind the last solid one before c
    whole = marks[pieces] != SINGLE_SPACE
    begin, stop = (np.minimum(offsets[pieces[whole], n], len(words)) for n in (0, 1))
    np.minimum.at(starts, inverse[whole], _solid_from(words)[begin])
    np.maximum.at(ends, inverse[whole], last[stop])
    return WordSpans(found, places, starts, np.maximum(ends, starts + 1))


def is_white(characters: Sequence[str]) -> np.ndarray:
    """Whether each character is white space: bool [C]."""
    points = np.array([ord(character) for character in characters], np.int64)
    inside: Any = np.zeros(len(points), bool)
    for first, last in WHITE_SPACE:
        inside |= (points >= first) & (points <= last)
    return inside


def _solid_from(words: np.ndarray) -> np.ndarray:
    """The first place at or behind each one that has a word, C where there is none: int [C + 1]."""
    places = np.where(words >= 0, np.arange(len(words)), len(words))
    return np.minimum.accumulate(np.append(places, len(words))[::-1])[::-1]


def _texts(tokenizer: Any) -> list[str]:
    """The text that each token stands for, spaces as they are."""
    if tokenizer.kind == "bytepair":
        return [token.decode("utf-8", "replace") for token in tokenizer.token_bytes()]
    if tokenizer.kind == "sentencepiece":
        return [token.replace(SPACE_MARK, " ") for token in tokenizer.vocabulary]
    return tokenizer.vocabulary


def _mark(text: str, kind: str) -> int:
    if kind == "wordpiece":
        return CONTINUATION if text.startswith(SUBWORD_PREFIX) and text != SUBWORD_PREFIX else PLAIN
    if text == " ":  # in a vocabulary of characters it marks nothing
        return WHITE if kind == "characters" else SINGLE_SPACE
    if text and is_white(text).all():
        return WHITE
    return LEADING_SPACE if text.startswith(" ") else PLAIN
