"""Repeated documents: the estimate against the true share, and what is left out."""

import random
import re

import numpy as np
import pytest

from tfllm.data.corpora import deduplication, minhash
from tfllm.data.corpora.minhash import (
    EXACT,
    NEAR,
    NUM_HASHES,
    SHINGLE_WORDS,
    UNIQUE,
    compute_signatures,
)

# The standard deviation of an estimate from 112 minima is at most 0.047; the mean of 200 is near.
LARGEST_BIAS, LARGEST_DEVIATION = 0.015, 0.055


def text(seed, words=200):
    generator = random.Random(seed)
    return " ".join("".join(generator.choices("abcdefgh", k=4)) for _ in range(words))


def changed(original, seed, changes):
    generator = random.Random(seed)
    words = original.split()
    for _ in range(changes):
        words[generator.randrange(len(words))] = f"new{generator.random()}"
    return " ".join(words)


def similarity(a, b):
    sets = []
    for words in (re.findall(r"[^\W_]+", a), re.findall(r"[^\W_]+", b)):
        count = len(words) - SHINGLE_WORDS + 1
        sets.append({tuple(words[place : place + SHINGLE_WORDS]) for place in range(count)})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def decided(texts, threshold=0.8, near=True, tmp_path=None):
    batches = [texts[start : start + 7] for start in range(0, len(texts), 7)]
    made = (
        deduplication.batch_signatures((range(len(batch)), batch), near, threshold)
        for batch in batches
    )
    deduplication.write_signatures(tmp_path, made)
    return deduplication.classify_documents(tmp_path, threshold).tolist()


def test_the_estimate_is_near_the_true_share():
    errors = []
    for seed in range(200):
        a = text(seed)
        b = changed(a, seed, seed % 25)
        first, second = compute_signatures([a, b], near=True).sketch
        errors.append(((first == second).mean() - 1 / 256) / (1 - 1 / 256) - similarity(a, b))
    assert abs(np.mean(errors)) < LARGEST_BIAS and np.std(errors) < LARGEST_DEVIATION


def test_signatures_do_not_depend_on_the_batch():
    texts = [
        text(1),
        "",
        "two words",
        "。！",
        "\0",
        text(2, 30),
        "这是一个中文句子，没有空格。",
        "İ",
    ]
    together = compute_signatures(texts, near=True)
    for place, one in enumerate(texts):
        alone = compute_signatures([one], near=True)
        assert alone.exact[0] == together.exact[place]
        assert (alone.bands[:, 0] == together.bands[:, place]).all()
        assert (alone.sketch[0] == together.sketch[place]).all()
    assert together.bands.shape == (minhash.BANDS, 8) and together.sketch.shape == (8, NUM_HASHES)


def test_what_repeats_goes_and_the_first_stays(tmp_path):
    a, b = text(1), text(2)
    chinese = "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。" * 3
    texts = [
        a, b, "  " + a.replace(" ", "\n "), changed(a, 1, 2), changed(a, 2, 60), b.upper(),
        chinese, chinese[:-1] + "！又", "short one", "short one", "short two",
    ]  # fmt: skip
    fates = decided(texts, tmp_path=tmp_path)
    assert fates == [UNIQUE, UNIQUE, EXACT, NEAR, UNIQUE, NEAR, UNIQUE, NEAR, UNIQUE, EXACT, UNIQUE]


def test_only_exact_repetitions(tmp_path):
    a = text(1)
    assert decided([a, a + "!", a], near=False, tmp_path=tmp_path) == [UNIQUE, UNIQUE, EXACT]


@pytest.mark.parametrize("threshold", [0.55, 0.9])
def test_the_threshold_decides(threshold, tmp_path):
    a = text(5, 400)
    b = changed(a, 1, 12)  # about three quarters in common
    assert 0.6 < similarity(a, b) < 0.85
    assert decided([a, b], threshold, tmp_path=tmp_path) == [
        UNIQUE,
        NEAR if threshold < 0.6 else UNIQUE,
    ]


def test_many_parts_are_one(tmp_path, monkeypatch):
    monkeypatch.setattr(deduplication, "PART_DOCUMENTS", 10)
    texts = [text(seed, 40) for seed in range(60)]
    texts += [changed(text(3, 40), 0, 1) + " end", texts[59]]
    fates = decided(texts, 0.5, tmp_path=tmp_path)
    assert fates[:60] == [UNIQUE] * 60 and fates[60:] == [NEAR, EXACT]
