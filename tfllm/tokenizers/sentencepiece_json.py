"""SentencePiece vocabularies written as a tokenizer.json: Llama, T5, ALBERT, XLM-R in Hugging Face.

In Python the file is followed as the `tokenizers` package reads it, which differs from the
`sentencepiece` package in a few places (docs/tokenizers.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tfllm.tokenizers.hf_tokenizers import RustTokenizer


class SentencePieceJson(RustTokenizer):
    """BPE with byte fallback or a unigram model over text whose spaces are U+2581."""

    kind = "sentencepiece"

    def _split_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """By the same road as `encode`: the package's faster one gives other ids here and there."""
        return [list(tokens.ids) for tokens in self._split(texts)]

    def graph(self, profile: str = "reference") -> Any:
        """The same tokenizer as TensorFlow ops."""
        from tfllm.tokenizers.graph.sentencepiece_json import SentencePieceJsonGraph

        return SentencePieceJsonGraph(self, profile)
