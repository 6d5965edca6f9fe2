"""A vocabulary of characters: every code point of a text is one token.

In a tokenizer.json it is BPE without merges, so Hugging Face reads it. A character outside of the
vocabulary becomes the unknown token, or is dropped where there is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tfllm.tokenizers.hf_tokenizers import HFTokenizer
from tfllm.tokenizers.rows import TextTokens, TokenSequence
from tfllm.tokenizers.tokenizer_config import (
    COMMON_SPELLINGS,
    SPECIAL_TOKEN_SOURCES,
    TokenizerConfig,
)

if TYPE_CHECKING:
    from tfllm.tokenizers.graph.characters import CharactersGraph

UNKNOWN = "<unk>"
UNKNOWN_NAMES = (UNKNOWN, "[UNK]", "<|unk|>")


class Characters(HFTokenizer):
    """One token for each Unicode code point."""

    kind = "characters"

    def _tokenize(self, texts: Sequence[str]) -> Sequence[TokenSequence]:
        """The package's tokens. Its offsets do not count the characters that it drops."""
        rows = super()._tokenize(texts)
        if self.unk_token_id is not None:
            return rows
        return [self._with_offsets(text, row) for text, row in zip(texts, rows, strict=True)]

    def _with_offsets(self, text: str, row: TokenSequence) -> TextTokens:
        """Tokens with their offsets in a text of which some characters have no token."""
        start, offsets = 0, []
        for token_id in row.ids:
            token = self.vocabulary[token_id]
            start = text.index(token, start)
            offsets.append((start, start + len(token)))
            start += len(token)
        return TextTokens(row.ids, offsets, row.word_ids)

    def graph(self, profile: str = "reference") -> CharactersGraph:
        """Build the same tokenizer as TensorFlow ops: see `base.Tokenizer`."""
        from tfllm.tokenizers.graph.characters import CharactersGraph

        return CharactersGraph(self, profile)


def from_characters(characters: Sequence[str], specials: Sequence[str] = ()) -> Characters:
    """Create a tokenizer of characters.

    Args:
        characters: The characters, in the order of ids after the special tokens.
        specials: The special tokens, in the order of ids from 0.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models

    tokens = list(dict.fromkeys([*specials, *characters]))
    unknown = next((token for token in UNKNOWN_NAMES if token in specials), None)
    ids = {token: token_id for token_id, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(ids, [], unk_token=unknown))
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in specials]
    )
    by_spelling = {
        keys[-1]: next((token for token in COMMON_SPELLINGS[role] if token in specials), None)
        for role, keys in SPECIAL_TOKEN_SOURCES.items()
    }
    named = {key: token for key, token in {**by_spelling, "unk_token": unknown}.items() if token}
    return Characters.from_definition(backend.to_str(), TokenizerConfig(named, named))
