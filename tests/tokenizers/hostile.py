"""Texts that tokenizers get wrong: the same ones for the same seed."""

import random

SPACES = [
    " ", "  ", "   ", "\t", "\n", "\r", "\r\n", "\v", "\f", "\x1c", "\x85", "\u00a0", "\u1680",
    "\u2000", "\u2003", "\u2009", "\u2028", "\u2029", "\u202f", "\u205f", "\u3000", " \n ", " " * 9,
]  # fmt: skip
INVISIBLE = [
    "\x00", "\x01", "\x07", "\x1b", "\x7f", "\x9f", "\u00ad", "\u034f", "\u061c", "\u200b",
    "\u200c",
    "\u200d", "\u200e", "\u202e", "\u2060", "\u2066", "\ufe0f", "\ufeff", "\ufff9", "\U000e0041",
    "\U000e0100",
]  # fmt: skip
MARKS = [
    "\u0300", "\u0301", "\u0304", "\u0308", "\u0323", "\u0327", "\u0328", "\u0340", "\u0344",
    "\u0345",
    "\u0483", "\u05b0", "\u064b", "\u093c", "\u094d", "\u0e34", "\u1714", "\u20dd", "\u3099",
    "\u309a",
    "\uff9e", "\U0001d165", "\u0600", "\u0903",
]  # fmt: skip
LETTERS = [
    *"abcdefghijklmnopqrstuvwxyzABCDEFGMTXZ", *"éèñüßÅİıſÆœ", *"ΑΣσςΩ", *"ЖИйё", *"אבשל", *"مرحبا",
    *"नमस्ते", *"ไทย", "ǆ", "ﬁ", "Ⅳ", "½", "…", "™", "①", "²", "\u212b", "\u212a", "𝐀", "Ａ", "，",
    "ａ", "ﷺ",
]  # fmt: skip
EAST = [
    *"的一人之初你好世界東京タワーガかが", "\uff76", "가", "각", "\u1100", "\u1161", "\u11a8",
    "\uf900", "\u2f00", "\U00020000", "\U0002f800", "、", "。", "《", "》",
]  # fmt: skip
PICTURES = ["🦜", "👩\u200d👩\u200d👧", "🏳️\u200d🌈", "🇩🇪", "👍🏽", "1\ufe0f\u20e3", "©", "®"]
SIGNS = [
    *"!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~", "``", "''", "...", "--", "n't", "'s", "'ll", "'LL",
    "’s", "«",
    "—", "–", "_", "\u2581", "\u2581\u2581", "Ġ", "Ċ", "##", "</w>", "\ufffd", "\ufffe", "\uffff",
    "\ue000", "\U0010ffff", "$5.00", "a.b@c.de",
]  # fmt: skip
NUMBERS = ["0", "7", "12", "1974", "12345678", "3,14", "1.000", "٣٤", "४", "১", "𝟘"]
WORDS = [
    "the", "The", "cat", "sat", "it's", "don't", "mat", "unwanted", "unbelievable", "Freiheit",
    "Привет", "Once upon a time", "mmm", "aaaa", "bbb", "lily", "lily<x>", "Mat", "MAT",
    "x\u0302\u0301",
    "e\u0301", "u\u0308\u0304", "a\u0328\u0301", "か\u3099",
]  # fmt: skip
SPECIALS = [
    "[CLS]", "[SEP]", "[MASK]", "[UNK]", "[PAD]", "<s>", "</s>", "<unk>", "<pad>", "<mask>",
    "<|endoftext|>",
    "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<extra_id_0>", "<extra_id_99>", "<0x41>",
    "<0xE4>",
    "en_XX", "de_DE", "zh_CN", ">>deu<<", "[MASK", "MASK]", "<s", "/s>", "<|endof", "<mask",
    "[mask]",
]  # fmt: skip
KINDS = [SPACES, INVISIBLE, MARKS, LETTERS, EAST, PICTURES, SIGNS, NUMBERS, WORDS, SPECIALS]
WEIGHTS = [8, 2, 3, 6, 2, 1, 4, 2, 5, 3]
BYTES = [b"\xe4", b"\xbd", b"\xf0\x9f", b"\xed\xa0\x80", b"\xc0\x80", b"\xff", b"\xe2\x96", b"\x80"]


def texts(count=2000, seed=0):
    """`count` UTF-8 texts as bytes, one in fifty not valid UTF-8."""
    draw = random.Random(seed)
    alone = [text for kind in KINDS for text in kind]
    found = ["", *alone, *(f" {text}" for text in SPECIALS), *(f"x{text} y" for text in alone)]
    found += [
        "a" * 400, "ab" * 300, "mm" * 257, "é" * 101, "的" * 300, "a\u0301" * 101, " " * 300,
        "\u2581" * 50,
        "x" + "\u0301" * 40, "1" * 200, "<s>" * 50, "\n" * 60, "the " * 100, "'s" * 50,
        "the cat" * 60,
    ]  # fmt: skip
    encoded = [text.encode() for text in found]
    while len(encoded) < count:
        kinds = draw.choices(KINDS, WEIGHTS, k=draw.choice((1, 2, 4, 8, 16, 40)))
        parts = [draw.choice(kind).encode() for kind in kinds]
        if draw.random() < 0.02:
            parts.insert(draw.randrange(len(parts) + 1), draw.choice(BYTES))
        encoded.append(b"".join(parts))
    return encoded[:count]
