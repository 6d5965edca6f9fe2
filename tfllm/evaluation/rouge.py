"""ROUGE-1, -2 and -L by rouge-score's formulas, on what counts as a word in the language.

Source: Lin 2004, "ROUGE"; Hu et al. 2015, "LCSTS" (on characters for Chinese).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

HAN = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"  # and kana
LETTER = re.compile(r"[^\W\d_]")
IDEOGRAPH = re.compile(f"[{HAN}]")
WORDS = re.compile(r"[^\W_]+")  # letters and digits of any language
# Every ideograph, and every run of other letters and digits.
CHARACTERS = re.compile(rf"[{HAN}]|[^\W_{HAN}]+")

CHINESE_SHARE = 0.3  # of the letters: more than loan words in other texts, less than any Chinese
ENGLISH_SHARE = 0.99  # of the letters are ASCII

KINDS = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}


def is_chinese(texts: Sequence[str]) -> bool:
    """Return whether at least 30 % of the letters are ideographs or kana."""
    letters = sum(len(LETTER.findall(text)) for text in texts)
    return letters > 0 and sum(map(len, map(IDEOGRAPH.findall, texts))) >= CHINESE_SHARE * letters


def is_english(texts: Sequence[str]) -> bool:
    """Return whether most letters are ASCII, so that rouge-score's division into words is right."""
    letters = [letter for text in texts for letter in LETTER.findall(text)]
    return sum(letter.isascii() for letter in letters) >= ENGLISH_SHARE * len(letters)


class _Tokenizer:
    """The interface of rouge-score's tokenizers over a pattern of words."""

    def __init__(self, pattern: re.Pattern[str]):
        self.pattern = pattern

    def tokenize(self, text: str) -> list[str]:
        """Split a text into words for rouge-score."""
        return self.pattern.findall(text.lower())


def rouge(
    texts: Sequence[str], references: Sequence[Sequence[str]], *, chinese: bool | None = None
) -> dict[str, Any]:
    """Return mean ROUGE F-measures, 0 to 1, of generated texts.

    Args:
        texts: One generated text per example.
        references: One or several references per example, the best of which counts.
        chinese: Whether characters are words; unset, found in the references.

    Returns:
        `rouge_1`, `rouge_2`, `rouge_l`, and `rouge_words`, what words are: "stemmed", rouge-score's
        own for English with its stemmer; "characters" for Chinese; "words" for other languages.
    """
    from rouge_score.rouge_scorer import RougeScorer

    known = [text for several in references for text in several]
    tokenizer: _Tokenizer | None
    if is_chinese(known) if chinese is None else chinese:
        words, tokenizer = "characters", _Tokenizer(CHARACTERS)
    elif is_english(known):
        words, tokenizer = "stemmed", None
    else:
        words, tokenizer = "words", _Tokenizer(WORDS)
    scorer = RougeScorer(list(KINDS.values()), use_stemmer=True, tokenizer=tokenizer)
    sums = dict.fromkeys(KINDS, 0.0)
    for text, several in zip(texts, references, strict=True):
        scores = scorer.score_multi(several, text)
        for name, kind in KINDS.items():
            sums[name] += scores[kind].fmeasure
    return {**{name: total / len(texts) for name, total in sums.items()}, "rouge_words": words}
