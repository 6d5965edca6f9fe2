"""Words of a text, and entities from the words' tags.

A plain text has no words of its own. They are read off its characters: white space separates words,
every CJK character is a word, and so is punctuation, except inside of a word (`AT&T`, `U.S`,
`it's`). Which piece stands for a word is `tokenizers.word_alignment`' rule, the same for words that
come with labels; a word without a first piece of its own is part of the one before.
"""

from __future__ import annotations

import functools
import re
import sys
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tfllm.tokenizers import word_alignment

if TYPE_CHECKING:
    from tfllm.tokenizers.base import Encoding, Tokenizer
    from tfllm.tokenizers.word_alignment import WordSpans

# Kinds of characters. ALONE: a word of its own.
LETTER, PUNCTUATION, ALONE, WHITE = range(4)

PREFIXED = re.compile(r"[BIESM]-(.+)", re.DOTALL)
INSIDE, CLOSING = "IEM", "ES"

CJK = (  # as BERT's BasicTokenizer
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F), (0x2B820, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
)  # fmt: skip
ASCII_PUNCTUATION = set("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")


@functools.cache
def character_kinds() -> np.ndarray:
    """Return the kind of every code point: int8 [0x110000]."""
    kinds = np.full(sys.maxunicode + 1, LETTER, np.int8)
    for point in range(len(kinds)):
        character = chr(point)
        if character in ASCII_PUNCTUATION or unicodedata.category(character)[0] == "P":
            kinds[point] = PUNCTUATION
    for kind, ranges in ((ALONE, CJK), (WHITE, word_alignment.WHITE_SPACE)):
        for first, last in ranges:
            kinds[first : last + 1] = kind
    return kinds


def word_numbers(text: str) -> np.ndarray:
    """Number the words of a text by character: int64 [C], NO_WORD for white space."""
    points = np.array([ord(character) for character in text], np.int64)
    padded = np.concatenate([[WHITE], character_kinds()[points], [WHITE]])
    before, kind, after = padded[:-2], padded[1:-1], padded[2:]
    inner = (kind == PUNCTUATION) & (before == LETTER) & (after == LETTER)
    after_inner = np.append(False, inner)[:-1]
    solid = kind != WHITE
    goes_on = inner | after_inner | (kind == LETTER) & (before == LETTER)
    return np.where(solid, np.cumsum(solid & ~goes_on) - 1, word_alignment.NO_WORD)


def align_pieces(text: str, encoding: Encoding, tokenizer: Tokenizer) -> WordSpans:
    """Return the words of a text that have a piece in its row.

    Args:
        text: The text.
        encoding: Its row, special tokens included.
        tokenizer: The tokenizer that encoded it.

    Returns:
        Spans of words, whose `positions` are indices of the row's tokens.
    """
    own = np.array([sequence is not None for sequence in encoding.sequence_ids], bool)
    marks = tokenizer.token_kinds[np.array(encoding.ids, np.int64)[own]]
    offsets = np.array(encoding.offsets, np.int64).reshape(-1, 2)[own]
    spans = word_alignment.word_spans(word_numbers(text), offsets, marks)
    return spans._replace(positions=np.flatnonzero(own)[spans.positions])


def join_entities(
    text: str,
    tags: Sequence[str],
    starts: Sequence[int] | np.ndarray,
    ends: Sequence[int] | np.ndarray,
    scores: Sequence[float] | np.ndarray,
) -> list[dict[str, Any]]:
    """Join the tags of a text's words to entities.

    Args:
        text: The text.
        tags: The tag of each word [W]; an empty one is padding and skipped.
        starts: The first character of each word [W].
        ends: The character after the last of each word [W].
        scores: The probability of each tag [W]; an entity's score is the mean of its words'.

    Returns:
        Dicts of `text`, `label`, `start`, `end` and `score`.
    """
    result = []
    for label, first, stop in tag_spans(tags):
        start, end = int(starts[first]), int(ends[stop - 1])
        result.append(
            {
                "text": text[start:end],
                "label": label,
                "start": start,
                "end": end,
                "score": float(np.mean(scores[first:stop])),
            }
        )
    return result


def entity_label(tag: str) -> str:
    """Return what a tag names: `PER` of `B-PER`, `NOUN` of `NOUN`."""
    match = PREFIXED.fullmatch(tag)
    return match[1] if match else tag


def bio_tags(tags: Sequence[str]) -> list[str]:
    """Return the BIO tags of the entities in tags of any scheme (see `tag_spans`)."""
    result = ["O"] * len(tags)
    for label, first, stop in tag_spans(tags):
        result[first:stop] = [f"B-{label}", *[f"I-{label}"] * (stop - first - 1)]
    return result


def tag_spans(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """Return (label, first word, word after the last) of every entity in BIO or BIOES/BMES tags.

    Lenient as conlleval: an I after something else begins an entity. Tags without a prefix, as of
    parts of speech, are entities of one word.
    """
    result: list[tuple[str, int, int]] = []
    previous = ("", "")  # prefix and label of the word before, if its entity may continue
    for position, tag in enumerate(tags):
        match = PREFIXED.fullmatch(tag)
        if match is None:
            if tag not in ("O", ""):
                result.append((tag, position, position + 1))
            previous = ("", "")
            continue
        prefix, label = tag[0], match[1]
        if prefix in INSIDE and previous[1] == label and previous[0] not in CLOSING:
            result[-1] = (label, result[-1][1], position + 1)
        else:
            result.append((label, position, position + 1))
        previous = (prefix, label)
    return result
