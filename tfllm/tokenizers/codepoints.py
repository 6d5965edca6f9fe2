"""What a normalisation does to each code point, as small tables that a graph can gather from.

BERT's normalisation and word splitting look at one code point at a time, but for the canonical
ordering of combining marks. So the tables are not written by hand: the reference itself, the Rust
package `tokenizers`, is run once over every code point, and a graph that gathers from its answers
agrees with it by construction, whatever Unicode version the package was built with.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from tfllm.tokenizers.wordpiece import Normalization

# Kinds of a code point after normalisation.
DROPPED = 0  # leaves nothing
BARRIER = 1  # leaves nothing, and combining marks are not ordered across it
SPACE = 2  # ends a word
ALONE = 3  # a word of its own: punctuation, a CJK ideograph
WORD = 4  # part of a word
MARK = 5  # part of a word, and a combining mark that canonical ordering may move
SEQUENCE = 6  # becomes several: `value` is a row of `sequences`
HANGUL = 7  # a syllable that becomes two or three letters, by arithmetic

KIND_SHIFT = 24  # an entry is kind << KIND_SHIFT | value
VALUE_MASK = (1 << KIND_SHIFT) - 1
DELTA_ZERO = 1 << 21  # value of a code point that stays itself: value = new - old + DELTA_ZERO
PAGE_BITS = 8
PAGE_SIZE = 1 << PAGE_BITS
CODE_POINTS = 0x110000
MAX_SEQUENCE = 3

SURROGATES = range(0xD800, 0xE000)
HANGUL_SYLLABLES = range(0xAC00, 0xD7A4)
# Planes of the same treatment all over: never assigned (4 to 13), private use (15 and 16).
UNIFORM = {0x40000: range(0x40000, 0xE0000), 0xF0000: range(0xF0000, CODE_POINTS)}
# Stands between the code points of a test string: a letter that no other becomes (but Q).
FENCE = "q"
HIGHEST_MARK = "\u0345"  # combining class 240, the highest


@dataclass(frozen=True)
class Table:
    """The answers for all code points. Entry of c: pages[page_starts[c >> 8] + (c & 255)]."""

    page_starts: np.ndarray
    """int32 [4352]: where each page of 256 code points begins in `pages`; equal pages are shared"""
    pages: np.ndarray
    """int32 [256 * distinct pages]: entries"""
    sequences: np.ndarray
    """int32 [rows, 3]: entries kind << 24 | code point, filled up with DROPPED"""
    marks: np.ndarray
    """int32 [M]: the MARK code points after normalisation, ascending"""
    mark_classes: np.ndarray
    """int32 [M]: their canonical combining classes, as ranks 1.."""

    def entry(self, code_point: int) -> tuple[int, int]:
        """(kind, value) of one code point."""
        start = self.page_starts[code_point >> PAGE_BITS]
        entry = int(self.pages[start + (code_point & (PAGE_SIZE - 1))])
        return entry >> KIND_SHIFT, entry & VALUE_MASK


@functools.lru_cache(maxsize=16)
def reference_table(normalization: Normalization) -> Table:
    """The table of BERT's reference normalisation followed by BERT's word splitting."""
    points = _examined()
    outputs = _mapped(points, _normalizer(normalization))
    # Without lower-casing, because ordering comes before it. Lower-casing changes no mark.
    cleaned = _mapped(
        points, _normalizer(replace(normalization, strip_accents=False, lowercase=False))
    )
    decomposes = normalization.strip_accents
    decomposes = normalization.lowercase if decomposes is None else decomposes
    classes = _combining_classes(points) if decomposes else {}
    kinds = _word_kinds({c for output in outputs for c in output})
    entries = np.full(CODE_POINTS, DELTA_ZERO, np.int64)
    sequences: list[list[int]] = []
    for point, output, before in zip(points, outputs, cleaned, strict=True):
        if not output:
            ordered = not before or not decomposes or point in classes
            entries[point] = (DROPPED if ordered else BARRIER) << KIND_SHIFT | DELTA_ZERO
            continue
        parts = [(_kind(c, kinds, classes), ord(c)) for c in output]
        parts = _without_spare_spaces(parts)
        if len(parts) == 1:
            kind, new = parts[0]
            entries[point] = kind << KIND_SHIFT | (new - point + DELTA_ZERO)
        elif point in HANGUL_SYLLABLES and [new for _, new in parts] == _hangul_letters(point):
            entries[point] = HANGUL << KIND_SHIFT
        else:
            entries[point] = SEQUENCE << KIND_SHIFT | len(sequences)
            sequences.append([kind << KIND_SHIFT | new for kind, new in parts])
    kept = {c: rank for c, rank in classes.items() if chr(c) in kinds}
    return _compact(entries, sequences, kept)


def identity_table(spaces: Iterable[int], alone: Iterable[int], lower_ascii: bool) -> Table:
    """Splits at the code points given and changes nothing but, if so wished, A to Z."""
    entries = np.full(CODE_POINTS, WORD << KIND_SHIFT | DELTA_ZERO, np.int64)
    entries[list(alone)] = ALONE << KIND_SHIFT | DELTA_ZERO
    entries[list(spaces)] = SPACE << KIND_SHIFT | DELTA_ZERO
    if lower_ascii:
        entries[ord("A") : ord("Z") + 1] += ord("a") - ord("A")
    return _compact(entries, [], {})


def _normalizer(normalization: Normalization):
    from tokenizers import normalizers

    return normalizers.BertNormalizer(
        clean_text=normalization.clean_text,
        handle_chinese_chars=normalization.chinese_characters,
        strip_accents=normalization.strip_accents,
        lowercase=normalization.lowercase,
    )


def _examined() -> list[int]:
    """Every code point that is looked at: all, but one for each uniform range of planes."""
    points: list[int] = []
    start = 0
    for example, uniform in UNIFORM.items():
        points.extend(range(start, uniform.start))
        points.append(example)
        start = uniform.stop
    return [point for point in points if point not in SURROGATES]


def _mapped(points: list[int], normalizer) -> list[str]:
    """What each code point becomes, in one call: FENCE stands before each."""
    text = "".join(FENCE + chr(point) for point in points)
    parts = normalizer.normalize_str(text).split(FENCE)[1:]
    outputs: list[str] = []
    following = iter(parts)
    for point in points:
        output = next(following)
        if chr(point).lower() == FENCE and not output:  # it fell apart at itself
            output = FENCE + next(following)
        outputs.append(output)
    return outputs


def _word_kinds(characters: set[str]) -> dict[str, int]:
    """SPACE, ALONE or WORD for each character, as BERT's pre-tokenizer has it."""
    from tokenizers import pre_tokenizers

    ordered = sorted(characters)
    text = "".join(FENCE + character for character in ordered)
    kinds = dict.fromkeys(ordered, SPACE)
    for _, (start, stop) in pre_tokenizers.BertPreTokenizer().pre_tokenize_str(text):
        if stop - start == 1 and start % 2:  # it stands between two splits
            kinds[text[start]] = ALONE
            continue
        first = start if start % 2 else start + 1
        kinds.update(dict.fromkeys(text[first:stop:2], WORD))
    return kinds


def _kind(character: str, kinds: dict[str, int], classes: dict[int, int]) -> int:
    return MARK if ord(character) in classes else kinds[character]


def _without_spare_spaces(parts: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """` x ` with x alone needs no spaces: x is a word of its own. Else a space stays a SPACE."""
    kinds = [kind for kind, _ in parts]
    if kinds == [SPACE, ALONE, SPACE] or kinds == [SPACE, WORD, SPACE]:
        return [(ALONE, parts[1][1])]
    return parts


def _hangul_letters(syllable: int) -> list[int]:
    """The canonical decomposition of a Hangul syllable (Unicode, section 3.12)."""
    index = syllable - HANGUL_SYLLABLES.start
    letters = [0x1100 + index // 588, 0x1161 + index % 588 // 28]
    return letters + ([0x11A7 + index % 28] if index % 28 else [])


def _combining_classes(points: list[int]) -> dict[int, int]:
    """Code point -> rank of its combining class (1..) in the reference, for classes above 0.

    Found from what the reference does: a mark moves before another exactly when its class is lower.
    """
    from tokenizers import normalizers

    normalize = normalizers.NFD().normalize_str

    def swapped(first: str, seconds: list[str]) -> list[bool]:
        text = "".join(FENCE + first + second for second in seconds)
        parts = normalize(text).split(FENCE)[1:]
        return [part[:1] != first for part in parts]

    others = [chr(point) for point in points if chr(point).lower() != FENCE and point >= 0x80]
    marks = [mark for mark, moved in zip(others, swapped(HIGHEST_MARK, others), strict=True)
             if moved and len(normalize(mark)) == 1]  # fmt: skip
    classes = {unicodedata.combining(mark): mark for mark in marks}
    references = [classes[number] for number in sorted(classes) if number] + [HIGHEST_MARK]
    ranks = np.ones(len(marks), np.int64)
    for reference in references:
        ranks += [not moved for moved in swapped(reference, marks)]
    ranked = {ord(mark): int(rank) for mark, rank in zip(marks, ranks, strict=True)}
    ranked[ord(HIGHEST_MARK)] = len(references) + 1
    composed = (c for c in others if len(normalize(c)) > 1)
    return ranked | {ord(c): 1 for c in composed if all(ord(d) in ranked for d in normalize(c))}


def _compact(entries: np.ndarray, sequences: list[list[int]], marks: dict[int, int]) -> Table:
    for example, uniform in UNIFORM.items():
        entries[uniform.start : uniform.stop] = entries[example]
    pages, page_of = np.unique(
        entries.reshape(-1, PAGE_SIZE).astype(np.int32), axis=0, return_inverse=True
    )
    rows = [row + [DROPPED] * (MAX_SEQUENCE - len(row)) for row in sequences]
    ordered = sorted(marks)
    return Table(
        page_starts=(page_of.reshape(-1) * PAGE_SIZE).astype(np.int32),
        pages=pages.reshape(-1),
        sequences=np.array(rows or [[DROPPED] * MAX_SEQUENCE], np.int32),
        marks=np.array(ordered, np.int32),
        mark_classes=np.array([marks[c] for c in ordered], np.int32),
    )
