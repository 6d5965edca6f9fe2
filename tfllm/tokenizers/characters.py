"""A vocabulary of characters: every code point of a text is one token.

In a tokenizer.json it is BPE without merges, so Hugging Face reads it. A character outside of the
vocabulary becomes the unknown token, or is left out where there is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tfllm.tokenizers.config_files import ROLES, USUAL, Settings
from tfllm.tokenizers.rust import RustTokenizer

UNKNOWN = "<unk>"
UNKNOWN_NAMES = (UNKNOWN, "[UNK]", "<|unk|>")


class Characters(RustTokenizer):
    """One token for each Unicode code point."""

    kind = "characters"

    def graph(self, profile: str = "reference") -> Any:
        """The same tokenizer as TensorFlow ops."""
        from tfllm.tokenizers.graph_characters import CharactersGraph

        return CharactersGraph(self, profile)


def from_characters(characters: Sequence[str], specials: Sequence[str] = ()) -> Characters:
    """The special tokens first, then the characters in the order given; ids count from 0."""
    from tokenizers import AddedToken, Tokenizer, decoders, models

    tokens = list(dict.fromkeys([*specials, *characters]))
    unknown = next((token for token in UNKNOWN_NAMES if token in specials), None)
    table = {token: number for number, token in enumerate(tokens)}
    rust = Tokenizer(models.BPE(table, [], unk_token=unknown))
    rust.decoder = decoders.Fuse()
    rust.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in specials]
    )
    usual = {
        keys[-1]: next((token for token in USUAL[role] if token in specials), None)
        for role, keys in ROLES.items()
    }
    named = {key: token for key, token in {**usual, "unk_token": unknown}.items() if token}
    return Characters.from_definition(rust.to_str(), Settings(named, named))
