"""The pre-tokenizers of byte-level BPE as TensorFlow ops, by the kinds of neighbouring code points.

The patterns of GPT-2 and Llama 3 (Qwen2) are alternatives tried from left to right, with a
look-ahead, which RE2 lacks. Where they split depends on the kinds of a few neighbours, which vector
operations compute at many times the speed of a regular expression. The kinds (letter, number, white
space) come from the reference itself, the `tokenizers` package, asked once about every code point.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np
import tensorflow as tf

from tfllm.errors import TokenizerError
from tfllm.tokenizers.graph.codepoint_tables import (
    CODE_POINTS,
    PAGE_BITS,
    PAGE_SIZE,
    SURROGATES,
    UNIFORM,
    representative_code_points,
)

if TYPE_CHECKING:
    from tokenizers.pre_tokenizers import PreTokenizer

# Kinds of a code point. EDGE is before, between and after texts.
EDGE, LETTER, NUMBER, SPACE, OTHER, LINE_END, DIGIT = range(7)
CLASSES = {LETTER: r"\p{L}+", NUMBER: r"\p{N}+", SPACE: r"\s+"}
BLANK, APOSTROPHE = ord(" "), ord("'")
LINE_ENDS = (ord("\n"), ord("\r"))
# 's 't 'm 'd, and 're 've 'll: what may follow an apostrophe.
SHORT_ENDINGS, LONG_ENDINGS = "stmd", (("r", "e"), ("v", "e"), ("l", "l"))

GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|NUMBERS| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Style:
    """How a pre-tokenizer splits."""

    llama3: bool = False
    """Whether the pattern is Llama 3's, else GPT-2's."""
    group: int = 0
    """Llama 3's pattern: the longest run of numbers in one word."""
    single_digits: bool = False
    """Whether every number is a text of its own (Digits before ByteLevel)."""
    prefix_space: bool = False
    """Whether a space is put before each text that has none."""
    nfc: bool = False
    """Whether texts are normalized to NFC first."""


PATTERNS = {
    GPT2_PATTERN: Style(),
    LLAMA3_PATTERN.replace("NUMBERS", r"\p{N}{1,3}"): Style(llama3=True, group=3),
    LLAMA3_PATTERN.replace("NUMBERS", r"\p{N}"): Style(llama3=True, group=1),
    LLAMA3_PATTERN.replace("NUMBERS", r"\p{N}{1,2}"): Style(llama3=True, group=2),
}


def parse_style(definition: Mapping[str, Any]) -> Style:
    """Read how a tokenizer.json splits texts.

    Args:
        definition: The parsed file.

    Raises:
        TokenizerError: The graph does not implement its normalizer or pre-tokenizer.
    """
    normalizer = definition.get("normalizer")
    if normalizer is not None and normalizer.get("type") == "Sequence":
        inner = normalizer["normalizers"]
        normalizer = inner[0] if len(inner) == 1 else normalizer if inner else None
    if normalizer is not None and normalizer.get("type") != "NFC":
        _refuse("normalizer", normalizer)
    part = definition["pre_tokenizer"]
    parts = part["pretokenizers"] if part["type"] == "Sequence" else [part]
    *before, last = parts
    if last["type"] != "ByteLevel" or len(before) > 1:
        _refuse("pre_tokenizer", part)
    settings = {"prefix_space": bool(last.get("add_prefix_space", True)), "nfc": bool(normalizer)}
    regex = bool(last.get("use_regex", True))
    if not before and regex:
        return Style(**settings)
    if before and before[0]["type"] == "Digits" and before[0].get("individual_digits") and regex:
        return Style(single_digits=True, **settings)
    if before and before[0]["type"] == "Split" and not regex:
        pattern = before[0]["pattern"].get("Regex")
        isolated = before[0].get("behavior") == "Isolated" and not before[0].get("invert")
        style = PATTERNS.get(pattern)
        if style and isolated and not settings["prefix_space"]:
            return Style(style.llama3, style.group, False, False, settings["nfc"])
    return _refuse("pre_tokenizer", part)


def _refuse(key: str, part: Mapping[str, Any]) -> NoReturn:
    raise TokenizerError(
        f"tokenizer.json: in the graph '{key}' {str(part)[:300]} is not known; those of GPT-2, "
        "GPT-NeoX, Llama 3, Qwen2 and SmolLM2 are. The tokenizer works in Python."
    )


class CodePointKinds(NamedTuple):
    """The kind of every code point; of code point c: pages[page_starts[c >> 8] + (c & 255)]."""

    page_starts: np.ndarray
    """int32 [4352]"""
    pages: np.ndarray
    """int32 [256 * distinct pages]"""


@functools.lru_cache(maxsize=4)
def code_point_kinds(style: Style) -> CodePointKinds:
    """Return the kind of every code point, by the reference's own regular expressions."""
    from tokenizers import Regex, pre_tokenizers

    points = representative_code_points()
    text = "".join(map(chr, points))

    def matches(splitter: PreTokenizer) -> np.ndarray:
        matched = np.ones(len(points), bool)
        for _, (start, stop) in splitter.pre_tokenize_str(text):
            matched[start:stop] = False
        return np.array(points)[matched]

    kinds = np.full(CODE_POINTS, OTHER, np.int32)
    for kind, pattern in CLASSES.items():
        kinds[matches(pre_tokenizers.Split(Regex(pattern), "removed"))] = kind
    if style.llama3:
        kinds[list(LINE_ENDS)] = LINE_END
    if style.single_digits:
        for _, (start, stop) in pre_tokenizers.Digits(individual_digits=True).pre_tokenize_str(
            "".join("a" + chr(point) for point in points)
        ):
            if stop - start == 1 and start % 2:
                kinds[points[start // 2]] = DIGIT
    for uniform in UNIFORM:
        kinds[uniform.start : uniform.stop] = kinds[uniform.start]
    pages, page_of = np.unique(kinds.reshape(-1, PAGE_SIZE), axis=0, return_inverse=True)
    return CodePointKinds((page_of.reshape(-1) * PAGE_SIZE).astype(np.int32), pages.reshape(-1))


@functools.cache
def _case_variants(letter: str) -> tuple[int, ...]:
    """The code points that the reference matches with a letter when case is ignored."""
    from tokenizers import Regex, pre_tokenizers

    text = "".join(map(chr, (p for p in range(0x10000) if p not in SURROGATES)))
    parts = pre_tokenizers.Split(Regex(f"(?i:{letter})"), "removed").pre_tokenize_str(text)
    unmatched = {character for part, _ in parts for character in part}
    return tuple(ord(character) for character in text if character not in unmatched)


class ByteLevelWordSplitter(tf.Module):
    """Finds the code points at which words begin."""

    def __init__(self, style: Style):
        super().__init__()
        self._style = style
        kinds = code_point_kinds(style)
        letters = {letter for ending in (*SHORT_ENDINGS, *LONG_ENDINGS) for letter in ending}
        self._letters = {
            letter: _case_variants(letter) if style.llama3 else (ord(letter),) for letter in letters
        }
        with tf.init_scope():
            self._page_starts = tf.constant(kinds.page_starts)
            self._pages = tf.constant(kinds.pages)

    def __call__(self, points: tf.Tensor, edges: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Find the beginnings of words.

        Args:
            points: Code points of all texts, with one more after each text: int32 [C].
            edges: The indices of those: int64 [P].

        Returns:
            The kinds of the code points, EDGE at the edges: int32 [C]; whether a word begins at
            each: bool [C].
        """
        start = tf.gather(self._page_starts, tf.bitwise.right_shift(points, PAGE_BITS))
        kinds = tf.gather(self._pages, start + tf.bitwise.bitwise_and(points, PAGE_SIZE - 1))
        kinds = tf.tensor_scatter_nd_update(kinds, edges[:, None], tf.fill(tf.shape(edges), EDGE))
        neighbours = _Neighbours(points, kinds)
        begins = self._llama3(neighbours) if self._style.llama3 else self._gpt2(neighbours)
        return kinds, begins

    def _gpt2(self, a: _Neighbours) -> tf.Tensor:
        space, before, after = a.kind == SPACE, a.before, a.after
        joins = a.after_blank  # the blank before begins the word
        changes = a.kind != before
        solid = (after != SPACE) & (after != EDGE) & (after != DIGIT)
        begins = tf.where(space, (before != SPACE) | solid, changes & ~joins)
        begins |= (a.kind == EDGE) | (a.kind == DIGIT)
        return self._with_contractions(a, begins, (before != OTHER) & ~joins)

    def _llama3(self, a: _Neighbours) -> tf.Tensor:
        kind, before, after = a.kind, a.before, a.after
        white = (kind == SPACE) | (kind == LINE_END)
        white_before = (before == SPACE) | (before == LINE_END)
        white_after = (after == SPACE) | (after == LINE_END)
        changes = ((kind != before) & ~(white & white_before)) | (kind == EDGE)
        run = tf.cumsum(tf.cast(changes, tf.int32)) - 1  # [C], runs of one kind
        index = tf.range(tf.size(kind))
        count = tf.reduce_sum(tf.cast(changes, tf.int32))
        firsts = tf.cast(tf.where(changes)[:, 0], tf.int32)  # [R]
        first = tf.gather(firsts, run)
        # Line ends right after other characters belong to them.
        inner = tf.where(white & (kind != LINE_END), index, tf.size(kind))
        solid_start = tf.gather(tf.math.unsorted_segment_min(inner, run, count), run)
        after_other = tf.gather(before, first) == OTHER
        taken = (kind == LINE_END) & after_other & (index < solid_start)
        free_end = (kind == LINE_END) & ~taken
        last_end = tf.math.unsorted_segment_max(tf.where(free_end, index, -1), run, count)
        last_end = tf.gather(last_end, run)
        was_taken = _predecessors(taken, False)
        begins_white = (index == first) | was_taken | (index == last_end + 1)
        solid = ~white_after & (after != EDGE)
        begins_white |= solid & (kind == SPACE)
        begins_white &= ~taken
        # A letter run takes one character before it that is no letter, number or line end,
        # unless that one belongs to the word before.
        alone = (before == OTHER) & (a.two_before != OTHER) & ~_predecessors(a.after_blank, False)
        takes = (before == SPACE) | alone
        begins_letter = changes & ~takes
        begins_other = changes & ~a.after_blank
        begins_number = (index - first) % max(self._style.group, 1) == 0
        begins = tf.where(white, begins_white, kind == EDGE)
        begins = tf.where(kind == LETTER, begins_letter, begins)
        begins = tf.where(kind == OTHER, begins_other, begins)
        begins = tf.where(kind == NUMBER, begins_number, begins)
        return self._with_contractions(a, begins, (before != OTHER) & ~a.after_blank)

    def _with_contractions(self, a: _Neighbours, begins: tf.Tensor, free: tf.Tensor) -> tf.Tensor:
        """Add the beginnings of contractions ('s, 're), where the apostrophe may begin a word."""
        apostrophe = (a.points == APOSTROPHE) & (a.kind == OTHER) & free & (a.after == LETTER)

        def split() -> tf.Tensor:
            first_letter = _predecessors(apostrophe, False)
            second_letter = _predecessors(first_letter, False)
            previous = _predecessors(a.points, 0)
            short = first_letter & self._any_of(a.points, SHORT_ENDINGS)
            long = tf.zeros_like(first_letter)
            for first, second in LONG_ENDINGS:
                long |= self._any_of(previous, first) & self._any_of(a.points, second)
            long &= second_letter & (a.kind == LETTER)
            ended = _predecessors(short | long, False)
            inside = short | long | _successors(long)
            return tf.where(inside, False, begins) | (ended & (a.kind == LETTER))

        return tf.cond(tf.reduce_any(apostrophe), split, lambda: begins)

    def _any_of(self, points: tf.Tensor, letters: str) -> tf.Tensor:
        variants = [point for letter in letters for point in self._letters[letter]]
        return functools.reduce(tf.logical_or, [points == point for point in variants])


class _Neighbours:
    """Each code point with its neighbours; EDGE before the first and after the last."""

    def __init__(self, points: tf.Tensor, kinds: tf.Tensor):
        self.points = points
        self.kind = kinds
        self.before = _predecessors(kinds, EDGE)
        self.two_before = _predecessors(self.before, EDGE)
        self.after = _successors(kinds, EDGE)
        blank = (points == BLANK) & (kinds == SPACE)
        self.after_blank = _predecessors(blank, False)


def _predecessors(values: tf.Tensor, first: int | bool) -> tf.Tensor:
    """Each value's predecessor."""
    return tf.concat([tf.constant([first], values.dtype), values[:-1]], 0)


def _successors(values: tf.Tensor, last: int | bool = False) -> tf.Tensor:
    """Each value's successor."""
    return tf.concat([values[1:], tf.constant([last], values.dtype)], 0)
