"""Decoding of tokens that arrive one at a time, without incomplete characters."""

from __future__ import annotations

from tfllm.tokenizers.base import Tokenizer

REPLACEMENT = "\ufffd"
BYTE_PIECE = "<0x"  # <0x00> to <0xFF>, SentencePiece's bytes


class TextStream:
    """Decodes ids one at a time; all its texts together are `tokenizer.decode` of all the ids.

    Text is held back while it ends in an incomplete character, and while bytes of a SentencePiece
    vocabulary continue: whether they are valid is known only at their end.

    Args:
        tokenizer: The tokenizer.
        skip_special_tokens: Whether special tokens have no text.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True):
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._special_ids = tokenizer.all_special_ids
        self._size = tokenizer.vocabulary_size
        self._pieces = tokenizer.vocabulary if tokenizer.kind == "sentencepiece" else None
        # Decoded again with the new ids: whether a text begins with a space depends on its start.
        self._context: list[int] = []
        self._context_text = ""
        self._new: list[int] = []

    def push(self, token_id: int) -> str:
        """Add an id, and return the text that is complete now; often empty.

        An id above the vocabulary has no text.
        """
        if token_id >= self._size or self._skip and token_id in self._special_ids:
            return ""
        self._new.append(int(token_id))
        if self._pieces is not None and self._pieces[token_id].startswith(BYTE_PIECE):
            return ""
        text = self._decode([*self._context, *self._new])
        if text.endswith(REPLACEMENT):
            return ""
        return self._advance(text)

    def finish(self) -> str:
        """Return the text that was held back."""
        if not self._new:
            return ""
        return self._advance(self._decode([*self._context, *self._new]))

    def _advance(self, text: str) -> str:
        """Return the new part of a text of context and new ids, and make the latter the context."""
        new = text[len(self._context_text) :]
        if new:
            alone = self._decode(self._new)
            # Spaces are dropped at the start of a text, so they need the ids before them.
            self._context = self._new if alone else [*self._context, *self._new]
            self._context_text, self._new = alone or text, []
        return new

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=self._skip)
