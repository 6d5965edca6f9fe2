"""Words of a text from its pieces, and entities from the words' tags.

A plain text has no words of its own. They are read off the pieces, by a rule that looks one piece
to each side so that the serving graph can do the same: white space separates words, every CJK
character is a word, and so is punctuation, except inside of a word (`AT&T`, `U.S`, `it's`).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tfllm.tokenizers.base import Tokenizer

# Kinds of pieces
LETTERS, PUNCTUATION, ALONE, CONTINUED = 0, 1, 2, 3

PREFIXED = re.compile(r"[BIESM]-(.+)", re.DOTALL)
INSIDE, CLOSING = "IEM", "ES"

CJK = (  # as BERT's BasicTokenizer
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F), (0x2B820, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
)  # fmt: skip
ASCII_PUNCTUATION = set("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")


def piece_kinds(tokenizer: Tokenizer) -> np.ndarray:
    """The kind of every token of the vocabulary: int32 [V]."""
    kinds = np.array([_kind(token) for token in tokenizer.vocabulary], np.int32)
    specials = (tokenizer.pad_id, tokenizer.start_id, tokenizer.end_id, tokenizer.mask_id)
    kinds[[special for special in specials if special is not None]] = ALONE
    return kinds


def word_starts(kinds: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Which pieces begin a word: bool [T], from their kinds [T] and offsets [T, 2].

    Only pieces of one text, without the special tokens around it.
    """
    adjacent = np.zeros(len(kinds) + 1, bool)  # [i]: piece i touches piece i - 1
    adjacent[1:-1] = offsets[1:, 0] == offsets[:-1, 1]
    solid = np.zeros(len(kinds) + 2, bool)  # shifted by one: [i + 1] belongs to piece i
    solid[1:-1] = (kinds == LETTERS) | (kinds == CONTINUED)
    inner = (kinds == PUNCTUATION) & adjacent[:-1] & adjacent[1:] & solid[:-2] & solid[2:]
    after_inner = np.concatenate([[False], inner[:-1]]) if len(kinds) else inner
    starts = (kinds != CONTINUED) & ~inner & ~after_inner
    starts[:1] = True
    return starts


def words_of(kinds: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First piece, start and end character of every word: int [W] each."""
    places = np.flatnonzero(word_starts(kinds, offsets))
    last = np.append(places[1:], len(kinds)) - 1
    return places, offsets[places, 0], offsets[last, 1] if len(places) else places


def entities(
    text: str,
    tags: Sequence[str],
    starts: Sequence[int] | np.ndarray,
    ends: Sequence[int] | np.ndarray,
    scores: Sequence[float] | np.ndarray,
) -> list[dict[str, Any]]:
    """Entities of a text from the tags of its words.

    `starts` and `ends` are characters of `text`, one pair per word; an entity's score is the mean
    of its words'. Padding (an empty tag) is skipped.
    """
    result = []
    for label, first, stop in spans(tags):
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
    """Return the BIO tags of the entities in tags of any scheme (see `spans`)."""
    result = ["O"] * len(tags)
    for label, first, stop in spans(tags):
        result[first:stop] = [f"B-{label}", *[f"I-{label}"] * (stop - first - 1)]
    return result


def spans(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """(label, first word, word after the last) of every entity in BIO or BIOES/BMES tags.

    Lenient as conlleval: an I after something else begins an entity. Tags without a prefix, as of
    parts of speech, are entities of one word.
    """
    result: list[tuple[str, int, int]] = []
    previous = ("", "")  # prefix and label of the word before, if its entity may go on
    for place, tag in enumerate(tags):
        match = PREFIXED.fullmatch(tag)
        if match is None:
            if tag not in ("O", ""):
                result.append((tag, place, place + 1))
            previous = ("", "")
            continue
        prefix, label = tag[0], match[1]
        if prefix in INSIDE and previous[1] == label and previous[0] not in CLOSING:
            result[-1] = (label, result[-1][1], place + 1)
        else:
            result.append((label, place, place + 1))
        previous = (prefix, label)
    return result


def _kind(token: str) -> int:
    if token.startswith("##") and len(token) > 2:
        return CONTINUED
    if len(token) != 1:
        return LETTERS
    if token in ASCII_PUNCTUATION or unicodedata.category(token).startswith("P"):
        return PUNCTUATION
    return ALONE if any(low <= ord(token) <= high for low, high in CJK) else LETTERS
