"""BERT's normalization of text before it is split into words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers.normalizers import BertNormalizer


@dataclass(frozen=True)
class BertNormalization:
    """Settings of BERT's normalizer.

    Source: Devlin et al. 2019, "BERT" (tokenization.py, `BasicTokenizer`).
    """

    lowercase: bool = True
    strip_accents: bool | None = None
    """Whether accents are removed; None: as `lowercase`."""
    chinese_characters: bool = True
    """Whether every CJK ideograph is a word of its own."""
    clean_text: bool = True
    """Whether control characters are removed and all white space becomes spaces."""

    def build(self) -> BertNormalizer:
        """Return the normalizer of the `tokenizers` package."""
        from tokenizers.normalizers import BertNormalizer

        return BertNormalizer(
            clean_text=self.clean_text,
            handle_chinese_chars=self.chinese_characters,
            strip_accents=self.strip_accents,
            lowercase=self.lowercase,
        )
