"""GPT-2's alphabet of bytes: the printable character that stands for each byte in a vocabulary.

Source: Radford et al. 2019, "Language models are unsupervised multitask learners" (encoder.py,
`bytes_to_unicode`).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence


@functools.cache
def bytes_to_unicode() -> tuple[str, ...]:
    """Return the character of each byte, in the order of bytes."""
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return tuple(chr(byte if byte in printable else next(others)) for byte in range(256))


def token_bytes(vocabulary: Sequence[str]) -> list[bytes]:
    """Return the bytes that each token of a byte-level vocabulary stands for in decoded text."""
    byte_of = {character: byte for byte, character in enumerate(bytes_to_unicode())}
    return [
        bytes(byte_of[c] for c in token) if all(c in byte_of for c in token) else token.encode()
        for token in vocabulary
    ]
