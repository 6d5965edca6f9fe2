"""WordPiece as BERT uses it, over the Hugging Face `tokenizers` package.

Source: Schuster and Nakajima 2012, "Japanese and Korean voice search"; Devlin et al. 2019, "BERT".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfllm.errors import TokenizerError
from tfllm.tokenizers.base import check_ids
from tfllm.tokenizers.config_files import AddedToken, token_of, write_json
from tfllm.tokenizers.hf_tokenizers import answered
from tfllm.tokenizers.special_tokens import Form, RowTokenizer, bert, scalars

if TYPE_CHECKING:
    from tfllm.tokenizers.graph.wordpiece import GraphTokenizer

PREFIX = "##"
MAX_WORD_CHARACTERS = 100  # a longer word becomes the unknown token


@dataclass(frozen=True)
class Specials:
    """The spelling of the special tokens."""

    pad: str = "[PAD]"
    unknown: str = "[UNK]"
    start: str = "[CLS]"
    end: str = "[SEP]"
    mask: str = "[MASK]"


@dataclass(frozen=True)
class Normalization:
    """What happens to a text before it is split into words; names as in BERT's reference."""

    lowercase: bool = True
    strip_accents: bool | None = None
    """None: as `lowercase`."""
    chinese_characters: bool = True
    """Every CJK ideograph is a word of its own."""
    clean_text: bool = True
    """Control characters are dropped, all white space becomes a space."""


@dataclass(frozen=True)
class WordPiece(RowTokenizer):
    """BERT's tokenizer. Make it with `from_vocabulary` or `tfllm.tokenizers.files.load`."""

    vocabulary: list[str]
    normalization: Normalization
    specials: Specials
    added: tuple[AddedToken, ...]
    """Tokens that are found before words are split, the special ones among them, by id."""
    max_word_characters: int
    model_size: int
    """The first so many tokens are found inside words, later ones only as they are written."""
    _rust: Any = field(repr=False, compare=False)
    _ids: dict[str, int] = field(repr=False, compare=False)
    splits_special_tokens: bool = False
    """Whether special tokens written in a text are ordinary text."""

    kind = "wordpiece"

    @classmethod
    def from_vocabulary(
        cls,
        tokens: Sequence[str],
        *,
        lowercase: bool = True,
        strip_accents: bool | None = None,
        chinese_characters: bool = True,
        clean_text: bool = True,
        specials: Specials = Specials(),
        added: Sequence[str | AddedToken] = (),
        max_word_characters: int = MAX_WORD_CHARACTERS,
        model_size: int | None = None,
        splits_special_tokens: bool = False,
    ) -> WordPiece:
        """A tokenizer over `tokens` (id -> token). `model_size` is the number of tokens by default;
        `added` are tokens besides `specials` that are found as special ones are.

        Raises TokenizerError for repeated or empty tokens and for missing special tokens.
        """
        vocabulary = list(tokens)
        ids = _index(vocabulary)
        found = {token: AddedToken(token) for token in asdict(specials).values()}
        found |= {one.content: one for one in map(token_of, added)}
        missing = [token for token in found if token not in ids]
        if missing:
            raise TokenizerError(
                f"The vocabulary of {len(vocabulary)} tokens lacks {', '.join(missing)}. "
                "Add them, or name the special tokens it uses in special_tokens_map.json."
            )
        normalization = Normalization(lowercase, strip_accents, chinese_characters, clean_text)
        size = len(vocabulary) if model_size is None else model_size
        # the package numbers new ones in order
        literal = sorted(found.values(), key=lambda token: ids[token.content])
        rust = _rust_tokenizer(
            vocabulary[:size], normalization, specials, literal, max_word_characters
        )
        rust.encode_special_tokens = splits_special_tokens
        return cls(
            vocabulary, normalization, specials, tuple(literal), max_word_characters, size, rust,
            ids, splits_special_tokens,
        )  # fmt: skip

    @property
    def vocabulary_size(self) -> int:
        return len(self.vocabulary)

    @property
    def lowercase(self) -> bool:
        return self.normalization.lowercase

    @property
    def pad_token_id(self) -> int:
        return self._ids[self.specials.pad]

    @property
    def unk_token_id(self) -> int:
        return self._ids[self.specials.unknown]

    @property
    def bos_token_id(self) -> int:
        return self._ids[self.specials.start]

    @property
    def eos_token_id(self) -> int:
        return self._ids[self.specials.end]

    @property
    def mask_token_id(self) -> int:
        return self._ids[self.specials.mask]

    @property
    def recognised(self) -> tuple[AddedToken, ...]:
        """Tokens at which a text is cut."""
        return self.added

    @property
    def literal_tokens(self) -> tuple[str, ...]:
        """Tokens that are found before words are split."""
        return tuple(token.content for token in self.added)

    def token_id(self, token: str) -> int | None:
        """The id of a token, None where the vocabulary lacks it."""
        return self._ids.get(token)

    @property
    def all_special_ids(self) -> frozenset[int]:
        return frozenset(self._ids[token.content] for token in self.added if token.special)

    @property
    def form(self) -> Form:
        return bert(self.bos_token_id, self.eos_token_id)

    @property
    def chat_template(self) -> None:
        """An encoder has no conversations."""
        return None

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids. Raises TokenizerError for a negative id."""
        check_ids(ids)
        with answered():
            return self._rust.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens)

    def save(self, directory: str | Path) -> None:
        """Writes tokenizer.json, vocab.txt, tokenizer_config.json and special_tokens_map.json."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        self._rust.save(str(folder / "tokenizer.json"))
        (folder / "vocab.txt").write_text(
            "".join(f"{token}\n" for token in self.vocabulary), encoding="utf-8", newline="\n"
        )
        names = {
            "pad_token": self.specials.pad,
            "unk_token": self.specials.unknown,
            "cls_token": self.specials.start,
            "sep_token": self.specials.end,
            "mask_token": self.specials.mask,
        }
        settings = {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": self.normalization.lowercase,
            "strip_accents": self.normalization.strip_accents,
            "tokenize_chinese_chars": self.normalization.chinese_characters,
        }
        if self.splits_special_tokens:
            settings["split_special_tokens"] = True
        further = [token.content for token in self.added if token.special]
        further = [token for token in further if token not in names.values()]
        extra = {"additional_special_tokens": further} if further else {}
        write_json(folder / "tokenizer_config.json", {**settings, **names, **extra})
        write_json(folder / "special_tokens_map.json", {**names, **extra})

    def graph(self, profile: str = "reference") -> GraphTokenizer:
        """The same tokenizer as TensorFlow ops; profile "mediapipe" does what its C++ does."""
        from tfllm.tokenizers.graph.wordpiece import GraphTokenizer

        return GraphTokenizer(self, profile)

    def _split(self, texts: Sequence[str]) -> list[Any]:
        """Tokens of each text, without special tokens around them, uncut."""
        given = [scalars(text) for text in texts]
        with answered(given):
            return self._rust.encode_batch(given, add_special_tokens=False)


def _index(vocabulary: list[str]) -> dict[str, int]:
    ids: dict[str, int] = {}
    for number, token in enumerate(vocabulary):
        if not token:
            raise TokenizerError(f"Token {number} of the vocabulary is empty. Remove or name it.")
        if token in ids:
            raise TokenizerError(
                f"Tokens {ids[token]} and {number} of the vocabulary are both '{token}'. "
                "Rename one of them; ids may not change."
            )
        ids[token] = number
    return ids


def _rust_tokenizer(
    vocabulary: list[str],
    normalization: Normalization,
    specials: Specials,
    literal: Sequence[AddedToken],
    max_word_characters: int,
) -> Any:
    from tokenizers import (
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
    )

    ids = {token: number for number, token in enumerate(vocabulary)}
    model = models.WordPiece(
        ids,
        unk_token=specials.unknown,
        max_input_chars_per_word=max_word_characters,
        continuing_subword_prefix=PREFIX,
    )
    rust = Tokenizer(model)
    rust.normalizer = normalizers.BertNormalizer(
        clean_text=normalization.clean_text,
        handle_chinese_chars=normalization.chinese_characters,
        strip_accents=normalization.strip_accents,
        lowercase=normalization.lowercase,
    )
    rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    start, end = specials.start, specials.end
    rust.post_processor = processors.TemplateProcessing(
        single=f"{start}:0 $A:0 {end}:0",
        pair=f"{start}:0 $A:0 {end}:0 $B:1 {end}:1",
        special_tokens=[(start, ids[start]), (end, ids[end])],
    )
    rust.decoder = decoders.WordPiece(prefix=PREFIX)
    rust.add_tokens([token.rust() for token in literal])
    return rust
