"""Exact match and F1 of answers cut from a text: SQuAD's for most languages, CMRC's for Chinese.

Sources: evaluate-v1.1.py and evaluate-v2.0.py of https://rajpurkar.github.io/SQuAD-explorer/ and
cmrc2018_evaluate.py of https://github.com/ymcui/cmrc2018. The one difference to CMRC's script:
runs of other letters inside a Chinese text are cut with a regular expression (words, and single
signs), where that script asks NLTK. Values are fractions; the scripts print them times 100.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal

from tfllm.tasks.base import Answer
from tfllm.tasks.features import Example

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = set(string.punctuation)

# CMRC's own list. It also names "……", which is two characters and so never met by its loop.
CHINESE_PUNCTUATION = set("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
CHINESE_CHARACTER = re.compile("[\u4e00-\u9fa5]")
LATIN_PIECE = re.compile(r"\w+|[^\w\s]")

# A text is Chinese when at least this share of its letters is.
CHINESE_SHARE = 0.3

Language = Literal["auto", "en", "zh"]


def span_answers(
    answers: Sequence[Answer],
    examples: Sequence[Example],
    language: Language = "auto",
) -> dict[str, Any]:
    """Return exact match and F1, the best over an example's gold answers, as official scripts do.

    When some question has no answer, the rules of SQuAD 2.0 hold, and metrics named `has_answer_*`
    and `no_answer_*` are added.

    Args:
        answers: {"answer": text}, "" for none.
        examples: {"answers": {"text": [...]}}, empty for a question without an answer.
        language: "en" (SQuAD), "zh" (CMRC), or "auto", found in each question and context.
    """
    golds = [gold_texts(example) for example in examples]
    version_2 = any(not gold for gold in golds)
    exact, f1 = [], []
    for answer, example, gold in zip(answers, examples, golds, strict=True):
        rules = _rules(example, language, version_2)
        exact.append(max(rules[0](text, answer["answer"]) for text in rules[2](gold)))
        f1.append(max(rules[1](text, answer["answer"]) for text in rules[2](gold)))
    result: dict[str, Any] = {"exact_match": _mean(exact), "f1": _mean(f1)}
    if version_2:
        for name, answerable in (("has_answer", True), ("no_answer", False)):
            rows = [row for row, gold in enumerate(golds) if bool(gold) == answerable]
            result[f"{name}_exact_match"] = _mean([exact[row] for row in rows])
            result[f"{name}_f1"] = _mean([f1[row] for row in rows])
            result[f"{name}_examples"] = len(rows)
    return result


def gold_texts(example: Example) -> list[str]:
    """Return the gold answers of an example; none when the question has no answer."""
    answers = example.get("answers") or {}
    texts = (answers.get("text") or []) if isinstance(answers, dict) else answers
    return [texts] if isinstance(texts, str) else [text for text in texts if text is not None]


def is_chinese(text: str) -> bool:
    """Return whether a large share of the letters are Chinese characters."""
    letters = sum(character.isalpha() for character in text)
    return letters > 0 and len(CHINESE_CHARACTER.findall(text)) >= CHINESE_SHARE * letters


def normalize(text: str) -> str:
    """Normalize as SQuAD's script: lower case, no ASCII punctuation, no articles, single spaces."""
    text = "".join(character for character in text.lower() if character not in PUNCTUATION)
    return " ".join(ARTICLES.sub(" ", text).split())


def squad_exact(gold: str, answer: str) -> float:
    """Return 1 where both texts are equal after `normalize`, else 0."""
    return float(normalize(gold) == normalize(answer))


def squad_f1(gold: str, answer: str, both_empty: float = 1.0) -> float:
    """Return the F1 of the words that both texts have.

    Args:
        gold: The gold answer.
        answer: The predicted one.
        both_empty: The result where both have no words: 1 in version 2.0, where "" can be right, 0
            in version 1.1.
    """
    gold_words, answer_words = normalize(gold).split(), normalize(answer).split()
    if not gold_words and not answer_words:
        return both_empty
    same = sum((Counter(gold_words) & Counter(answer_words)).values())
    return _f1(same, len(answer_words), len(gold_words))


def chinese_exact(gold: str, answer: str) -> float:
    """Return 1 where both texts are equal without punctuation and case, else 0."""
    return float(_without_punctuation(gold) == _without_punctuation(answer))


def chinese_f1(gold: str, answer: str) -> float:
    """Return the F1 of the longest common run of `segments`."""
    gold_segments, answer_segments = segments(gold), segments(answer)
    if not gold_segments and not answer_segments:
        return float(not gold and not answer)
    same = _longest_common_run(gold_segments, answer_segments)
    return _f1(same, len(answer_segments), len(gold_segments))


def segments(text: str) -> list[str]:
    """Divide into Chinese characters and other words, without punctuation, as CMRC's script.

    他用GPT写作 becomes 他 用 gpt 写 作.
    """
    result: list[str] = []
    other = ""
    for character in text.lower().strip():
        if character in CHINESE_PUNCTUATION:
            continue  # the letters around it stay one run, as in the script
        if CHINESE_CHARACTER.match(character):
            result += [*LATIN_PIECE.findall(other), character]
            other = ""
        else:
            other += character
    return result + LATIN_PIECE.findall(other)


def _rules(
    example: Example, language: Language, version_2: bool
) -> tuple[Callable[[str, str], float], Callable[[str, str], float], Callable]:
    """(exact, f1, the gold texts that count) for one example."""
    read = f"{example.get('question', '')} {example.get('context', '')}"
    if language == "zh" or (language == "auto" and is_chinese(read)):
        return chinese_exact, chinese_f1, lambda gold: gold or [""]
    if version_2:  # gold answers that normalise to nothing do not count
        return squad_exact, squad_f1, lambda gold: [t for t in gold if normalize(t)] or [""]
    return squad_exact, lambda gold, answer: squad_f1(gold, answer, 0.0), lambda gold: gold


def _f1(same: int, answered: int, expected: int) -> float:
    if same == 0:
        return 0.0
    precision, recall = same / answered, same / expected
    return 2 * precision * recall / (precision + recall)


def _without_punctuation(text: str) -> str:
    return "".join(c for c in text.lower().strip() if c not in CHINESE_PUNCTUATION)


def _longest_common_run(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest run of elements that is in both."""
    longest = 0
    row = [0] * (len(second) + 1)  # row[j]: length of the common run that ends at second[j - 1]
    for left in first:
        row = [0] + [row[j] + 1 if left == right else 0 for j, right in enumerate(second)]
        longest = max(longest, *row)
    return longest


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
