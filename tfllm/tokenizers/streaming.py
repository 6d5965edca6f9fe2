"""Text of tokens that arrive one at a time, never with half a character."""

from __future__ import annotations

from tfllm.tokenizers.base import Tokenizer

BROKEN = "\ufffd"
BYTE_PIECE = "<0x"  # <0x00> to <0xFF>, SentencePiece's bytes


class TextStream:
    """Ids in, text out; what it gives, put together, is `tokenizer.decode` of all the ids.

    Text is held back while it ends in an unfinished character, and while bytes of a SentencePiece
    vocabulary still come: whether they are valid shows only at their end.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True):
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._special_ids = tokenizer.all_special_ids
        self._size = tokenizer.vocabulary_size
        self._pieces = tokenizer.vocabulary if tokenizer.kind == "sentencepiece" else None
        # Decoded again with the new ones: whether a text begins with a space depends on its start.
        self._context: list[int] = []
        self._context_text = ""
        self._new: list[int] = []

    def push(self, token_id: int) -> str:
        """The text that is certain now and was not before; often empty. Ids without a token have
        none."""
        if token_id >= self._size or self._skip and token_id in self._special_ids:
            return ""
        self._new.append(int(token_id))
        if self._pieces is not None and self._pieces[token_id].startswith(BYTE_PIECE):
            return ""
        text = self._decode([*self._context, *self._new])
        if text.endswith(BROKEN):
            return ""
        return self._given(text)

    def finish(self) -> str:
        """The text held back, at the end."""
        if not self._new:
            return ""
        return self._given(self._decode([*self._context, *self._new]))

    def _given(self, text: str) -> str:
        new = text[len(self._context_text) :]
        if new:
            alone = self._decode(self._new)
            # Spaces alone are dropped at the start of a text, so they need what stood before them.
            self._context = self._new if alone else [*self._context, *self._new]
            self._context_text, self._new = alone or text, []
            if not self._context_text:  # it shows only after what stood before
                self._context, self._context_text = [*self._context], ""
        return new

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=self._skip)
