"""WordPiece as BERT uses it, over the Hugging Face `tokenizers` package.

Source: Schuster and Nakajima 2012, "Japanese and Korean voice search"; Devlin et al. 2019, "BERT".
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfllm.errors import TokenizerError
from tfllm.tokenizers.base import (
    PAIR_SPECIALS,
    SINGLE_SPECIALS,
    Encoding,
    check_max_length,
    check_stride,
    kept_lengths,
    window_ranges,
)

if TYPE_CHECKING:
    from tfllm.tokenizers.graph import GraphTokenizer

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
class WordPiece:
    """BERT's tokenizer. Make it with `from_vocabulary` or `tfllm.tokenizers.files.load`."""

    vocabulary: list[str]
    normalization: Normalization
    specials: Specials
    added: tuple[str, ...]
    """Further tokens that are recognised as they are written, before normalisation."""
    max_word_characters: int
    model_size: int
    """The first so many tokens are found inside words, later ones only as they are written."""
    _rust: Any = field(repr=False, compare=False)
    _ids: dict[str, int] = field(repr=False, compare=False)

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
        added: Sequence[str] = (),
        max_word_characters: int = MAX_WORD_CHARACTERS,
        model_size: int | None = None,
    ) -> WordPiece:
        """A tokenizer over `tokens` (id -> token). `model_size` is the number of tokens by default.

        Raises TokenizerError for repeated or empty tokens and for missing special tokens.
        """
        vocabulary = list(tokens)
        ids = _index(vocabulary)
        literal = [*asdict(specials).values(), *added]
        missing = [token for token in literal if token not in ids]
        if missing:
            raise TokenizerError(
                f"The vocabulary of {len(vocabulary)} tokens lacks {', '.join(missing)}. "
                "Add them, or name the special tokens it uses in special_tokens_map.json."
            )
        normalization = Normalization(lowercase, strip_accents, chinese_characters, clean_text)
        size = len(vocabulary) if model_size is None else model_size
        literal = sorted(set(literal), key=ids.__getitem__)  # the package numbers new ones in order
        rust = _rust_tokenizer(
            vocabulary[:size], normalization, specials, literal, max_word_characters
        )
        return cls(
            vocabulary, normalization, specials, tuple(added), max_word_characters, size, rust, ids
        )

    @property
    def vocabulary_size(self) -> int:
        return len(self.vocabulary)

    @property
    def lowercase(self) -> bool:
        return self.normalization.lowercase

    @property
    def pad_id(self) -> int:
        return self._ids[self.specials.pad]

    @property
    def unknown_id(self) -> int:
        return self._ids[self.specials.unknown]

    @property
    def start_id(self) -> int:
        return self._ids[self.specials.start]

    @property
    def end_id(self) -> int:
        return self._ids[self.specials.end]

    @property
    def mask_id(self) -> int:
        return self._ids[self.specials.mask]

    @property
    def literal_tokens(self) -> tuple[str, ...]:
        """Tokens that are recognised as written: the special ones and the added ones."""
        return tuple(dict.fromkeys((*asdict(self.specials).values(), *self.added)))

    def token_id(self, token: str) -> int | None:
        """The id of a token, None where the vocabulary lacks it."""
        return self._ids.get(token)

    def encode(
        self, text: str, pair: str | None = None, *, max_length: int | None = None
    ) -> Encoding:
        """One row; a pair is cut longest-first to `max_length` tokens, special tokens included."""
        pairs = None if pair is None else [pair]
        return self.encode_batch([text], pairs, max_length=max_length)[0]

    def encode_batch(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        *,
        max_length: int | None = None,
    ) -> list[Encoding]:
        """`encode` for many texts at once, in parallel."""
        first = self._split(texts)
        if pairs is None:
            check_max_length(max_length, SINGLE_SPECIALS)
            room = None if max_length is None else max_length - SINGLE_SPECIALS
            return [self._row([_cut(a, 0, room)]) for a in first]
        check_max_length(max_length, PAIR_SPECIALS)
        rows = []
        for a, b in zip(first, self._split(pairs), strict=True):
            lengths: tuple[int | None, int | None] = (None, None)
            if max_length is not None:
                lengths = kept_lengths(len(a), len(b), max_length - PAIR_SPECIALS)
            rows.append(self._row([_cut(a, 0, lengths[0]), _cut(b, 0, lengths[1])]))
        return rows

    def encode_words(self, words: Sequence[str], *, max_length: int | None = None) -> Encoding:
        """One row of words that are split already; `word_ids` index `words`.

        A word without any character that the normalisation keeps gives no token. Offsets count
        within each word.
        """
        check_max_length(max_length, SINGLE_SPECIALS)
        room = None if max_length is None else max_length - SINGLE_SPECIALS
        pieces = self._rust.encode(
            [_scalars(word) for word in words], is_pretokenized=True, add_special_tokens=False
        )
        return self._row([_cut(pieces, 0, room)])

    def encode_windows(
        self, question: str, context: str, *, max_length: int, stride: int
    ) -> list[Encoding]:
        """Rows `[CLS] question [SEP] window [SEP]` whose windows overlap by `stride` tokens.

        As Hugging Face's truncation "only_second" with overflowing tokens. A question so long that
        windows could not move is cut (Hugging Face refuses it) to max_length - stride - 4 tokens.
        """
        check_stride(max_length, stride)
        asked, text = self._split([question, context])
        room = max_length - PAIR_SPECIALS
        kept = len(asked)
        if kept + len(text) > room:
            kept = min(kept, room - stride - 1)
        head = _cut(asked, 0, kept)
        ranges = window_ranges(len(text), room - kept, stride)
        return [self._row([head, _cut(text, start, stop)]) for start, stop in ranges]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids. Raises TokenizerError for an id outside the vocabulary."""
        wrong = [i for i in ids if not 0 <= i < self.vocabulary_size]
        if wrong:
            raise TokenizerError(
                f"There is no token {wrong[0]}: the vocabulary has ids 0 to "
                f"{self.vocabulary_size - 1}."
            )
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
        extra = {"additional_special_tokens": list(self.added)} if self.added else {}
        _write_json(folder / "tokenizer_config.json", {**settings, **names, **extra})
        _write_json(folder / "special_tokens_map.json", {**names, **extra})

    def graph(self, profile: str = "reference") -> GraphTokenizer:
        """The same tokenizer as TensorFlow ops; profile "mediapipe" does what its C++ does."""
        from tfllm.tokenizers.graph import GraphTokenizer

        return GraphTokenizer(self, profile)

    def _split(self, texts: Sequence[str]) -> list[Any]:
        """Tokens of each text, without special tokens around them, uncut."""
        return self._rust.encode_batch([_scalars(text) for text in texts], add_special_tokens=False)

    def _row(self, pieces: Sequence[_Piece]) -> Encoding:
        """[CLS] and each piece followed by [SEP]."""
        row = Encoding([self.start_id], [0], [(0, 0)], [None], [None])
        for sequence, piece in enumerate(pieces):
            row.ids.extend(piece.ids)
            row.offsets.extend(piece.offsets)
            row.word_ids.extend(piece.word_ids)
            row.sequence_ids.extend([sequence] * len(piece.ids))
            row.type_ids.extend([sequence] * (len(piece.ids) + 1))
            row.ids.append(self.end_id)
            row.offsets.append((0, 0))
            row.word_ids.append(None)
            row.sequence_ids.append(None)
        return row


@dataclass(frozen=True)
class _Piece:
    """A range of one text's tokens."""

    ids: list[int]
    offsets: list[tuple[int, int]]
    word_ids: list[int | None]


def _cut(tokens: Any, start: int, stop: int | None) -> _Piece:
    return _Piece(tokens.ids[start:stop], tokens.offsets[start:stop], tokens.word_ids[start:stop])


def _scalars(text: str) -> str:
    """The text with lone surrogates, which UTF-8 cannot hold, replaced by U+FFFD."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text)
    return text


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
    literal: Sequence[str],
    max_word_characters: int,
) -> Any:
    from tokenizers import (
        AddedToken,
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
    rust.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in literal]
    )
    return rust


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
