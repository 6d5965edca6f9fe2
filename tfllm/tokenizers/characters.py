"""A vocabulary of characters: every code point of a text is one token.

In a tokenizer.json it is BPE without merges, so Hugging Face reads it. A character outside of the
vocabulary becomes the unknown token, or is left out where there is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from tfllm.tokenizers.hf_tokenizers import HFTokenizer
from tfllm.tokenizers.tokenizer_config import (
    COMMON_SPELLINGS,
    SPECIAL_TOKEN_SOURCES,
    TokenizerConfig,
)

UNKNOWN = "<unk>"
UNKNOWN_NAMES = (UNKNOWN, "[UNK]", "<|unk|>")


class Tokens(NamedTuple):
    """One text's tokens."""

    ids: list[int]
    offsets: list[tuple[int, int]]
    word_ids: list[int | None]

    def __len__(self) -> int:
        return len(self.ids)


class Characters(HFTokenizer):
    """One token for each Unicode code point."""

    kind = "characters"

    def _split(self, texts: Sequence[str]) -> list[Any]:
        """The package's tokens. Its offsets do not count the characters that it leaves out."""
        rows = super()._split(texts)
        if self.unk_token_id is not None:
            return rows
        return [self._placed(text, row) for text, row in zip(texts, rows, strict=True)]

    def _placed(self, text: str, row: Any) -> Tokens:
        """A text's tokens, each where it stands: characters left out are nobody's."""
        place, offsets = 0, []
        for number in row.ids:
            token = self.vocabulary[number]
            place = text.index(token, place)
            offsets.append((place, place + len(token)))
            place += len(token)
        return Tokens(row.ids, offsets, row.word_ids)

    def graph(self, profile: str = "reference") -> Any:
        """The same tokenizer as TensorFlow ops."""
        from tfllm.tokenizers.graph.characters import CharactersGraph

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
        keys[-1]: next((token for token in COMMON_SPELLINGS[role] if token in specials), None)
        for role, keys in SPECIAL_TOKEN_SOURCES.items()
    }
    named = {key: token for key, token in {**usual, "unk_token": unknown}.items() if token}
    return Characters.from_definition(rust.to_str(), TokenizerConfig(named, named))
