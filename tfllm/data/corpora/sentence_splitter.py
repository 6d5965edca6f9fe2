"""Splitting of texts into sentences by punctuation: Latin, Chinese, Arabic, Indic and others.

A full stop ends a sentence where white space and no lowercase letter follow it, and no abbreviation
or initial precedes it; 。！？ always end one. Closing quotes and brackets belong to the sentence
before them.
"""

from __future__ import annotations

import re

CLOSERS = "\"'”’»)\\]}」』）】》〉"
# Ends without a space after them (ideographic scripts), and those that need one.
WIDE_ENDS, SPACED_ENDS = "。！？｡", ".!?…؟۔।॥።។။"
CANDIDATE = re.compile(
    rf"(?:[{WIDE_ENDS}][{WIDE_ENDS}…]*[{CLOSERS}]*|[{SPACED_ENDS}]+(?: ?[{CLOSERS}]+)?(?=\s))"
)
LAST_WORD = re.compile(r"([^\W\d_]+(?:\.[^\W\d_]+)*)\.$")
NEXT = re.compile(r"[^\S\n]*[\"'“‘«(\[{「『（]*\s*(\S)?")

# Lowercased and without the last full stop.
ABBREVIATIONS = frozenset(
    """mr mrs ms mx dr prof st ste sr jr rev hon gen col lt capt cpt sgt maj cmdr adm gov
    sen rep pres vs etc cf al ca approx dept univ inc ltd corp co bros est fig figs eq eqs
    sec ch chap no vol vols nos pp ed eds trans repr jan feb mar apr jun jul aug sep sept
    oct nov dec mon tue tues wed thu thur thurs fri sat sun e.g i.e a.m p.m u.s u.k u.n ph.d
    m.d b.a m.a d.c a.k.a mt ft ave blvd rd bzw usw z.b d.h u.a nr str bd hrsg m mm mme mlle
    ex av p.ex""".split()
)
# These often end a sentence as well: one does end where a capital letter follows.
AMBIGUOUS = frozenset("etc inc ltd corp co a.m p.m".split())
LINE_ENDS = re.compile("[\n\r\x0b\x0c\x85\u2028\u2029]")


def split_sentences(text: str, *, join_lines: bool = False, keep_spaces: bool = False) -> list[str]:
    """Split a text into sentences.

    Args:
        text: The text.
        join_lines: Whether a line end is a space; else it ends a sentence.
        keep_spaces: Whether white space is kept, before the sentence that follows it, so that the
            joined sentences are the text; else sentences are stripped and blank ones dropped.
    """
    ends = _ends(text)
    if not join_lines:
        ends = sorted({*ends, *(match.start() for match in LINE_ENDS.finditer(text))})
    borders = [0, *ends, len(text)]
    parts = [text[a:b] for a, b in zip(borders, borders[1:], strict=False)]
    if not keep_spaces:
        return [stripped for part in parts if (stripped := part.strip())]
    sentences, pending = list[str](), ""
    for part in parts:
        pending += part
        if pending and not pending.isspace():
            sentences.append(pending)
            pending = ""
    if pending and sentences:
        sentences[-1] += pending
    return sentences


def _ends(text: str) -> list[int]:
    """The indices where sentences end inside a text."""
    return [
        match.end() for match in CANDIDATE.finditer(text) if _is_end(text, match.start(), match)
    ]


def _is_end(text: str, start: int, match: re.Match[str]) -> bool:
    if text[start] in WIDE_ENDS:
        return True
    after = NEXT.match(text, match.end())
    following = after[1] if after and after[1] else ""
    if following.islower():
        return False
    if text[start] != "." or match[0].startswith(".."):
        return True
    before = LAST_WORD.search(text, max(0, start - 24), start + 1)
    if before is None:
        return True
    word = before[1].lower()
    if word in ABBREVIATIONS:
        return word in AMBIGUOUS and following.isupper()
    # Initials: J. K. Rowling, U.S.S.R.; but "I." and "A." of a list end nothing either.
    return not (len(before[1].rpartition(".")[2]) == 1 and before[1][-1].isupper())
