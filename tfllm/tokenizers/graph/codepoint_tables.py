"""What a normalizer does to each code point, as small tables that a graph can gather from.

BERT's normalization and word splitting look at one code point at a time, except for the canonical
ordering of combining marks. So the tables are not written by hand: the reference itself, the Rust
package `tokenizers`, is run once over every code point, and a graph that gathers from its outputs
agrees with it by construction, whatever Unicode version the package was built with.
"""

from __future__ import annotations

import functools
import itertools
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from tfllm.tokenizers.bert_normalization import BertNormalization

if TYPE_CHECKING:
    from tokenizers.normalizers import Normalizer

# Kinds of a code point after normalization.
DROPPED = 0  # removed
BARRIER = 1  # removed, and combining marks are not ordered across it
SPACE = 2  # ends a word
ALONE = 3  # a word of its own: punctuation, a CJK ideograph
WORD = 4  # part of a word
MARK = 5  # part of a word, and a combining mark that canonical ordering may move
SEQUENCE = 6  # becomes several: `value` is a row of `sequences`
HANGUL = 7  # a syllable that is decomposed into two or three letters, by arithmetic

KIND_SHIFT = 24  # an entry is kind << KIND_SHIFT | value
VALUE_MASK = (1 << KIND_SHIFT) - 1
DELTA_ZERO = 1 << 21  # value of a code point that is not changed: value = new - old + DELTA_ZERO
PAGE_BITS = 8
PAGE_SIZE = 1 << PAGE_BITS
CODE_POINTS = 0x110000
MAX_SEQUENCE = 3
MAX_PARTS = 4  # the longest canonical decomposition, e.g. of U+1F82

SURROGATES = range(0xD800, 0xE000)
HANGUL_SYLLABLES = range(0xAC00, 0xD7A4)
# Ranges of equal code points: unassigned, and private use. Only the first of each is tested.
UNIFORM = (
    range(0x33480, 0xE0000),
    range(0xE0200, 0xF0000),
    range(0xF0000, 0xFFFFE),
    range(0x100000, 0x10FFFE),
)
LAST_MARK = 0x20000  # no combining mark comes after it
# Separates the code points of a test string: a letter that no other becomes (except Q).
SEPARATOR = "q"
HIGHEST_MARK = "\u0345"  # combining class 240, the highest


@dataclass(frozen=True)
class Table:
    """What becomes of each code point; entry of c: pages[page_starts[c >> 8] + (c & 255)]."""

    page_starts: np.ndarray
    """int32 [4352]: where each page of 256 code points begins in `pages`; equal ones are shared."""
    pages: np.ndarray
    """int32 [256 * distinct pages]: entries."""
    sequences: np.ndarray
    """int32 [rows, 3]: entries kind << 24 | code point, padded with DROPPED."""
    marks: np.ndarray
    """int32 [M]: the code points that canonical ordering moves, those that are dropped after it
    too, ascending."""
    mark_classes: np.ndarray
    """int32 [M]: their canonical combining classes, as ranks 1.."""
    decomposed: np.ndarray
    """int32 [D]: the code points whose canonical decomposition has marks, ascending."""
    parts: np.ndarray
    """int32 [D, 4]: their decompositions before accents are stripped, padded with 0."""
    kept_parts: np.ndarray
    """int32 [D, 3]: which of the parts remain when accents are stripped, padded with 0."""

    def entry(self, code_point: int) -> tuple[int, int]:
        """Return the (kind, value) of one code point."""
        start = self.page_starts[code_point >> PAGE_BITS]
        entry = int(self.pages[start + (code_point & (PAGE_SIZE - 1))])
        return entry >> KIND_SHIFT, entry & VALUE_MASK


@functools.lru_cache(maxsize=16)
def reference_table(normalization: BertNormalization) -> Table:
    """Build the table of BERT's normalizer followed by BERT's word splitting."""
    points = representative_code_points()
    outputs = normalize_code_points(points, normalization.build())
    decomposes = normalization.strip_accents
    decomposes = normalization.lowercase if decomposes is None else decomposes
    classes = combining_classes() if decomposes else {}
    decompositions = _decompositions_with_marks() if decomposes else {}
    kinds = _word_kinds(outputs)
    kinds[list(classes)] = MARK
    entries = np.full(CODE_POINTS, DELTA_ZERO, np.int64)
    remaining = _enter_single(points, outputs, kinds, entries)
    # Only cleans: its output is what the ordering of marks is applied to.
    cleaner = replace(normalization, strip_accents=False, lowercase=False).build()
    sequences: list[list[int]] = []
    for point, output in remaining:
        if not output:
            marks = all(part in classes for part in decompositions.get(point, [point]))
            dropped = marks or not decomposes or not cleaner.normalize_str(chr(point))
            entries[point] = (DROPPED if dropped else BARRIER) << KIND_SHIFT | DELTA_ZERO
        elif point in HANGUL_SYLLABLES and [ord(c) for c in output] == _hangul_letters(point):
            entries[point] = HANGUL << KIND_SHIFT
        else:
            entries[point] = SEQUENCE << KIND_SHIFT | len(sequences)
            sequences.append([int(kinds[ord(c)]) << KIND_SHIFT | ord(c) for c in output])
    output_of = dict(zip(points, outputs, strict=True))
    kept = {
        point: [i for i, part in enumerate(parts) if output_of[part]]
        for point, parts in decompositions.items()
    }
    return _compact(entries, sequences, classes, decompositions, kept)


def identity_table(spaces: Iterable[int], alone: Iterable[int], lower_ascii: bool) -> Table:
    """Build a table that splits at some code points and changes none, except ASCII capitals.

    Args:
        spaces: Code points that end a word.
        alone: Code points that are words of their own.
        lower_ascii: Whether A to Z are lowercased.
    """
    entries = np.full(CODE_POINTS, WORD << KIND_SHIFT | DELTA_ZERO, np.int64)
    entries[list(alone)] = ALONE << KIND_SHIFT | DELTA_ZERO
    entries[list(spaces)] = SPACE << KIND_SHIFT | DELTA_ZERO
    if lower_ascii:
        entries[ord("A") : ord("Z") + 1] += ord("a") - ord("A")
    return _compact(entries, [], {}, {}, {})


def representative_code_points() -> list[int]:
    """Return the code points to test: all, but only the first of each uniform range."""
    points: list[int] = []
    start = 0
    for uniform in UNIFORM:
        points.extend(range(start, uniform.start + 1))
        start = uniform.stop
    points.extend(range(start, CODE_POINTS))
    return [point for point in points if point not in SURROGATES]


def normalize_code_points(points: Sequence[int], normalizer: Normalizer) -> list[str]:
    """Normalize each code point on its own, nearly all in one call, with SEPARATOR before each."""
    separators = {ord(SEPARATOR), ord(SEPARATOR.upper())}
    text = "".join(SEPARATOR + chr(point) for point in points if point not in separators)
    parts = iter(normalizer.normalize_str(text).split(SEPARATOR)[1:])
    return [
        normalizer.normalize_str(chr(point)) if point in separators else next(parts)
        for point in points
    ]


def _word_kinds(outputs: Iterable[str]) -> np.ndarray:
    """SPACE, ALONE or WORD for each code point that occurs, by BERT's pre-tokenizer."""
    from tokenizers import pre_tokenizers

    points = np.unique(_code_points("".join(outputs)))
    text = "".join(SEPARATOR + chr(point) for point in points)
    kinds_of_points = np.full(len(points), SPACE)
    for _, (start, stop) in pre_tokenizers.BertPreTokenizer().pre_tokenize_str(text):
        if stop - start == 1 and start % 2:  # it is a word of its own
            kinds_of_points[start // 2] = ALONE
        else:
            kinds_of_points[start // 2 : stop // 2] = WORD
    kinds = np.full(CODE_POINTS, SPACE)
    kinds[points] = kinds_of_points
    return kinds


def _enter_single(
    points: list[int], outputs: list[str], kinds: np.ndarray, entries: np.ndarray
) -> list[tuple[int, str]]:
    """Enter the code points that become a single one; return the others with their outputs."""
    sizes = np.fromiter(map(len, outputs), np.int64, len(outputs))
    olds = np.array(points)
    one = sizes == 1
    news = _code_points("".join(itertools.compress(outputs, one)))
    entries[olds[one]] = kinds[news] << KIND_SHIFT | (news - olds[one] + DELTA_ZERO)
    # ` x ` needs no spaces: x is a word of its own.
    three = sizes == 3
    news = _code_points("".join(itertools.compress(outputs, three))).reshape(-1, 3)
    spaced = (news[:, 0] == ord(" ")) & (news[:, 2] == ord(" "))
    three[three] = spaced
    news = news[spaced, 1]
    entries[olds[three]] = ALONE << KIND_SHIFT | (news - olds[three] + DELTA_ZERO)
    return [(points[i], outputs[i]) for i in np.flatnonzero(~one & ~three)]


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), "<u4").astype(np.int64)


def _hangul_letters(syllable: int) -> list[int]:
    """The canonical decomposition of a Hangul syllable (Unicode, section 3.12)."""
    index = syllable - HANGUL_SYLLABLES.start
    letters = [0x1100 + index // 588, 0x1161 + index % 588 // 28]
    return letters + ([0x11A7 + index % 28] if index % 28 else [])


@functools.cache
def _canonical_decompositions() -> dict[int, str]:
    """What the reference decomposes each code point to, where marks may be among the parts."""
    from tokenizers import normalizers

    points = [point for point in representative_code_points() if 0x80 <= point < LAST_MARK]
    return dict(zip(points, normalize_code_points(points, normalizers.NFD()), strict=True))


@functools.cache
def combining_classes() -> dict[int, int]:
    """Return the rank of the combining class (1..) in the reference, for classes above 0.

    Deduced from what the reference does: a mark moves before another exactly when its class is
    lower.

    Returns:
        Code point -> rank.
    """
    from tokenizers import normalizers

    decompose = normalizers.NFD()

    def swapped(first: str, seconds: list[str]) -> list[bool]:
        text = "".join(SEPARATOR + first + second for second in seconds)
        return [part[:1] != first for part in decompose.normalize_str(text).split(SEPARATOR)[1:]]

    decompositions = _canonical_decompositions().items()
    single = [parts for point, parts in decompositions if chr(point) == parts]
    marks = [c for c, moved in zip(single, swapped(HIGHEST_MARK, single), strict=True) if moved]
    of_class = {unicodedata.combining(mark): mark for mark in marks}
    references = [of_class[number] for number in sorted(of_class) if number] + [HIGHEST_MARK]
    ranks = np.ones(len(marks), np.int64)
    for reference in references:
        ranks += [not moved for moved in swapped(reference, marks)]
    ranked = dict(zip(marks, ranks.tolist(), strict=True)) | {HIGHEST_MARK: len(references) + 1}
    return {ord(mark): rank for mark, rank in ranked.items()}


def _decompositions_with_marks() -> dict[int, list[int]]:
    """Code point -> its canonical decomposition in the reference, for those that have marks."""
    classes = combining_classes()
    return {
        point: [ord(part) for part in parts]
        for point, parts in _canonical_decompositions().items()
        if parts != chr(point)
        and point not in HANGUL_SYLLABLES
        and any(ord(part) in classes for part in parts)
    }


def _compact(
    entries: np.ndarray,
    sequences: list[list[int]],
    marks: dict[int, int],
    decompositions: dict[int, list[int]],
    kept: dict[int, list[int]],
) -> Table:
    for uniform in UNIFORM:
        entries[uniform.start : uniform.stop] = entries[uniform.start]
    pages, page_of = np.unique(
        entries.reshape(-1, PAGE_SIZE).astype(np.int32), axis=0, return_inverse=True
    )
    ordered = sorted(marks)
    return Table(
        page_starts=(page_of.reshape(-1) * PAGE_SIZE).astype(np.int32),
        pages=pages.reshape(-1),
        sequences=_pad(sequences or [[]], MAX_SEQUENCE),
        marks=np.array(ordered, np.int32),
        mark_classes=np.array([marks[c] for c in ordered], np.int32),
        decomposed=np.array(list(decompositions), np.int32),
        parts=_pad(decompositions.values(), MAX_PARTS),
        kept_parts=_pad(kept.values(), MAX_SEQUENCE),
    )


def _pad(rows: Iterable[list[int]], size: int) -> np.ndarray:
    """int32 [rows, size], padded with 0 on the right."""
    return np.array([row + [0] * (size - len(row)) for row in rows], np.int32).reshape(-1, size)
