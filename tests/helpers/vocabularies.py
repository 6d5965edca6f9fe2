"""A small vocabulary with all that tests want of a large one."""

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = [
    chr(c)
    for c in (*range(33, 127), *range(0xDF, 0xFF), *range(0x3B1, 0x3CA), *range(0x430, 0x450))
]
CHINESE = list("的一是不了在人有我他这中大来上个国到说们")
WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "un",
    "want",
    "##want",
    "##ed",
    "##able",
    "run",
    "##ning",
    "mat",
    "a",
    "The",
    "Cat",
]

VOCABULARY = list(
    dict.fromkeys([*SPECIALS, *LETTERS, *(f"##{c}" for c in LETTERS), *CHINESE, *WORDS])
)  # fmt: skip

# Enough for real sentences, one letter at a time.
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,!?'"
SPELLING = [*SPECIALS, *CHARACTERS, *(f"##{letter}" for letter in CHARACTERS)]
