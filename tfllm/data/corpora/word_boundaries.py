"""The tokens of a vocabulary that begin a word, by the vocabulary's own marks.

Source: BERT's create_pretraining_data.py (`##`), fairseq's get_whole_word_mask (a leading space).
"""

from __future__ import annotations

import numpy as np

from tfllm.tokenizers.base import Tokenizer
from tfllm.tokenizers.bytepair import BytePair
from tfllm.tokenizers.wordpiece import PREFIX

SPACE_MARK = "\u2581"  # SentencePiece's mark of a space
BLANKS = (" ", "\t", "\n", "\r")

# Han, with its extensions and compatibility forms, and kana: written without spaces.
IDEOGRAPHS = (
    (0x3040, 0x30FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x323AF),
)  # fmt: skip


def word_starts(tokenizer: Tokenizer) -> np.ndarray | None:
    """Return whether each token begins a word: bool [vocabulary]; None without marks of words.

    Special tokens begin words, and so do tokens that begin with an ideograph.
    """
    special = tokenizer.all_special_ids
    if tokenizer.kind == "wordpiece":
        starts = [not token.startswith(PREFIX) for token in tokenizer.vocabulary]
    elif tokenizer.kind == "sentencepiece":
        starts = [_begins(token, (SPACE_MARK,)) for token in tokenizer.vocabulary]
    elif isinstance(tokenizer, BytePair):
        texts = [token.decode(errors="replace") for token in tokenizer.token_bytes()]
        starts = [_begins(text, BLANKS) for text in texts]
    else:
        return None
    return np.array(starts) | np.isin(np.arange(len(starts)), list(special))


def ideographs(tokenizer: Tokenizer) -> np.ndarray:
    """Return whether each token has only ideographs besides its marks: bool [vocabulary]."""
    return np.array(
        [all(map(is_ideograph, bare)) and bare != "" for bare in _bare(tokenizer)], dtype=bool
    )


def _bare(tokenizer: Tokenizer) -> list[str]:
    """The tokens without the marks of words."""
    if isinstance(tokenizer, BytePair):
        return [token.decode(errors="replace").lstrip() for token in tokenizer.token_bytes()]
    mark = PREFIX if tokenizer.kind == "wordpiece" else SPACE_MARK
    return [token.removeprefix(mark) for token in tokenizer.vocabulary]


def _begins(token: str, marks: tuple[str, ...]) -> bool:
    return token.startswith(marks) or is_ideograph(token[:1])


def is_ideograph(character: str) -> bool:
    """Return whether a character belongs to a script without spaces: Han or kana."""
    return bool(character) and any(low <= ord(character) <= high for low, high in IDEOGRAPHS)
