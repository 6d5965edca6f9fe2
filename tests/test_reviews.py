"""The reviews in models/bert/reviews: right form, balanced, and no text twice."""

import re
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "models" / "bert" / "reviews"
HEADER = ["text", "label", "language"]
LABELS = ("negative", "positive")
LANGUAGES = ("en", "zh")
FEWEST_ROWS = {"train": 1800, "validation": 300, "test": 300}
LENGTHS = {"en": (3, 60), "zh": (5, 100)}  # words, characters
MOST_SHARED = 0.5  # of the character 5-grams of two texts (Jaccard)
GRAM = 5


def rows(part: str) -> list[list[str]]:
    lines = (FOLDER / f"{part}.tsv").read_bytes().decode("utf-8").split("\n")
    assert lines[0].split("\t") == HEADER
    assert lines[-1] == ""  # the file ends with one line feed
    return [line.split("\t") for line in lines[1:-1]]


def everything() -> list[list[str]]:
    return [row for part in FEWEST_ROWS for row in rows(part)]


def grams(text: str) -> set[str]:
    plain = re.sub(r"\W+", " ", text.lower())
    return {plain[start : start + GRAM] for start in range(max(1, len(plain) - GRAM + 1))}


@pytest.mark.parametrize("part", FEWEST_ROWS)
def test_columns_and_values(part):
    found = rows(part)
    assert len(found) >= FEWEST_ROWS[part]
    for row in found:
        assert len(row) == len(HEADER), row
        text, label, language = row
        assert label in LABELS, row
        assert language in LANGUAGES, row
        assert text == text.strip(), row


@pytest.mark.parametrize("part", FEWEST_ROWS)
def test_plain_utf8_lines(part):
    content = (FOLDER / f"{part}.tsv").read_bytes()
    assert not content.startswith(b"\xef\xbb\xbf")
    text = content.decode("utf-8")
    # no carriage returns or other control characters, nothing a TSV reader takes for quoting
    assert set(re.findall(r"[\x00-\x1f\x7f\u2028\u2029\ufeff]", text)) <= {"\t", "\n"}
    assert '"' not in text
    assert "\\" not in text


@pytest.mark.parametrize("part", FEWEST_ROWS)
def test_balanced(part):
    counts = Counter((label, language) for _, label, language in rows(part))
    assert max(counts.values()) <= 1.06 * min(counts.values()), counts
    assert len(counts) == len(LABELS) * len(LANGUAGES)


def test_lengths():
    for text, _, language in everything():
        length = len(text.split()) if language == "en" else len(text)
        least, most = LENGTHS[language]
        assert least <= length <= most, text


def test_language_is_as_labelled():
    for text, _, language in everything():
        assert bool(re.search(r"[\u4e00-\u9fff]", text)) == (language == "zh"), text


def test_no_text_twice():
    texts = [re.sub(r"\W+", "", text.lower()) for text, _, _ in everything()]
    assert [text for text, count in Counter(texts).items() if count > 1] == []


def test_no_near_duplicates():
    texts = [text for text, _, _ in everything()]
    sets = [grams(text) for text in texts]
    holders: dict[str, list[int]] = {}
    for index, found in enumerate(sets):
        for gram in found:
            holders.setdefault(gram, []).append(index)
    shared = Counter(pair for held in holders.values() for pair in combinations(held, 2))
    near = [
        (texts[first], texts[second])
        for (first, second), count in shared.items()
        if count > MOST_SHARED * (len(sets[first]) + len(sets[second]) - count)
    ]
    assert near == []


def test_has_a_data_card():
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert "Apache-2.0" in card
    for part in FEWEST_ROWS:
        assert re.search(rf"\| {part} +\| +{len(rows(part))} ", card), part
