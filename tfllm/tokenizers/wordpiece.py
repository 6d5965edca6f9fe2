"""WordPiece as BERT uses it, over the Hugging Face `tokenizers` package.

Source: Schuster and Nakajima 2012, "Japanese and Korean voice search"; Devlin et al. 2019, "BERT".
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfllm.errors import TokenizerError
from tfllm.tokenizers.base import RowTemplate, bert_template, check_ids, roberta_template
from tfllm.tokenizers.bert_normalization import BertNormalization
from tfllm.tokenizers.hf_classes import BERT_TOKENS, MPNET
from tfllm.tokenizers.hf_internals import translate_errors
from tfllm.tokenizers.hf_tokenizers import parse_tokenizer_json
from tfllm.tokenizers.rows import RowTokenizer, TokenSequence, replace_surrogates
from tfllm.tokenizers.tokenizer_config import (
    ADDED_TOKENS_DECODER,
    ADDED_TOKENS_FILE,
    CONFIG,
    GENERIC_CLASSES,
    SPECIAL_TOKEN_KEYS,
    AddedToken,
    TokenizerConfig,
    content,
    parse_token,
    read_text,
    write_json,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.processors import PostProcessor

    from tfllm.tokenizers.graph.wordpiece import WordPieceGraph

PREFIX = "##"
MAX_WORD_CHARACTERS = 100  # a longer word becomes the unknown token


# Key of tokenizer_config.json -> argument of WordPiece.from_vocabulary
NORMALIZATION = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "chinese_characters",
}
# Key of tokenizer.json's normalizer -> argument of WordPiece.from_vocabulary
NORMALIZER = {
    "lowercase": "lowercase",
    "strip_accents": "strip_accents",
    "handle_chinese_chars": "chinese_characters",
    "clean_text": "clean_text",
}
# Rows that show whether a file's own post-processor and pre-tokenizer are BERT's.
PROBES = (("1 2", None), ("1-2, 3", "4"), ("", ""))


@dataclass(frozen=True)
class BertSpecialTokens:
    """The special tokens of a BERT vocabulary."""

    pad_token: str = "[PAD]"
    unk_token: str = "[UNK]"
    cls_token: str = "[CLS]"
    sep_token: str = "[SEP]"
    mask_token: str = "[MASK]"


@dataclass(frozen=True)
class WordPiece(RowTokenizer):
    """BERT's tokenizer, created by `from_vocabulary` or `load_tokenizer`."""

    vocabulary: list[str]
    normalization: BertNormalization
    special_tokens: BertSpecialTokens
    added: tuple[AddedToken, ...]
    """Tokens that are matched before words are split, special ones included, by id."""
    max_word_characters: int
    """Characters of a word at most; a longer one becomes the unknown token."""
    model_size: int
    """How many tokens, the first ones, are matched inside words; later ones only literally."""
    _backend: Tokenizer = field(repr=False, compare=False)
    _ids: dict[str, int] = field(repr=False, compare=False)
    row_template: RowTemplate
    splits_special_tokens: bool = False
    """Whether special tokens written in a text are ordinary text."""
    roberta_rows: bool = False
    """Whether rows are RoBERTa's (MPNet), not BERT's."""

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
        special_tokens: BertSpecialTokens = BertSpecialTokens(),
        added: Sequence[str | AddedToken] = (),
        max_word_characters: int = MAX_WORD_CHARACTERS,
        model_size: int | None = None,
        splits_special_tokens: bool = False,
        roberta_rows: bool = False,
    ) -> WordPiece:
        """Create a tokenizer from a vocabulary.

        Args:
            tokens: The tokens, in the order of ids.
            lowercase: Whether texts are lowercased.
            strip_accents: Whether accents are removed; None: as `lowercase`.
            chinese_characters: Whether every CJK ideograph is a word of its own.
            clean_text: Whether control characters are removed.
            special_tokens: The special tokens by role, which the vocabulary has.
            added: Further tokens of the vocabulary that are matched as special tokens are.
            max_word_characters: Characters of a word at most.
            model_size: How many tokens are matched inside words; None: all.
            splits_special_tokens: Whether special tokens in a text are ordinary text.
            roberta_rows: Whether rows are `<s> a </s></s> b </s>` (MPNet), not BERT's.

        Raises:
            TokenizerError: A token is repeated or empty, or a special token is missing.
        """
        vocabulary = list(tokens)
        ids = _ids_of(vocabulary)
        matched = {token: AddedToken(token) for token in asdict(special_tokens).values()}
        matched |= {token.content: token for token in map(parse_token, added)}
        missing = [token for token in matched if token not in ids]
        if missing:
            raise TokenizerError(
                f"The vocabulary of {len(vocabulary)} tokens lacks {', '.join(missing)}. "
                "Add them, or name the special tokens it uses in special_tokens_map.json."
            )
        normalization = BertNormalization(lowercase, strip_accents, chinese_characters, clean_text)
        size = len(vocabulary) if model_size is None else model_size
        # The package numbers new ones in order.
        by_id = sorted(matched.values(), key=lambda token: ids[token.content])
        backend = _create_backend(
            vocabulary[:size], normalization, special_tokens, by_id, max_word_characters
        )
        rows = (special_tokens.cls_token, special_tokens.sep_token)
        template = (roberta_template if roberta_rows else bert_template)(*(ids[t] for t in rows))
        backend.post_processor = _post_processor(template, *rows)
        backend.encode_special_tokens = splits_special_tokens
        return cls(
            vocabulary, normalization, special_tokens, tuple(by_id), max_word_characters, size,
            backend, ids, template, splits_special_tokens, roberta_rows,
        )  # fmt: skip

    @property
    def vocabulary_size(self) -> int:
        """The number of tokens."""
        return len(self.vocabulary)

    @property
    def lowercase(self) -> bool:
        """Whether texts are lowercased."""
        return self.normalization.lowercase

    @property
    def pad_token_id(self) -> int:
        """The id of the padding token."""
        return self._ids[self.special_tokens.pad_token]

    @property
    def unk_token_id(self) -> int:
        """The id of the unknown token."""
        return self._ids[self.special_tokens.unk_token]

    @property
    def bos_token_id(self) -> int:
        """The id of the token that begins a row."""
        return self._ids[self.special_tokens.cls_token]

    @property
    def eos_token_id(self) -> int:
        """The id of the token that ends a row."""
        return self._ids[self.special_tokens.sep_token]

    @property
    def mask_token_id(self) -> int:
        """The id of the mask token."""
        return self._ids[self.special_tokens.mask_token]

    @property
    def matched_tokens(self) -> tuple[AddedToken, ...]:
        """The tokens at which a text is split."""
        return self.added

    @property
    def matched_token_texts(self) -> tuple[str, ...]:
        """The texts of `matched_tokens`."""
        return tuple(token.content for token in self.added)

    def token_id(self, token: str) -> int | None:
        """Return the id of a token, or None where the vocabulary lacks it."""
        return self._ids.get(token)

    @property
    def all_special_ids(self) -> frozenset[int]:
        """The ids of all special tokens."""
        return frozenset(self._ids[token.content] for token in self.added if token.special)

    @property
    def chat_template(self) -> None:
        """None: an encoder has no conversations."""
        return None

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Decode ids to text: see `base.Tokenizer`."""
        check_ids(ids)
        with translate_errors():
            return self._backend.decode(
                [int(i) for i in ids], skip_special_tokens=skip_special_tokens
            )

    def save(self, directory: str | Path) -> None:
        """Write tokenizer.json, vocab.txt, tokenizer_config.json and special_tokens_map.json."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        self._backend.save(str(folder / "tokenizer.json"))
        (folder / "vocab.txt").write_text(
            "".join(f"{token}\n" for token in self.vocabulary), encoding="utf-8", newline="\n"
        )
        names = asdict(self.special_tokens)
        settings = {
            "tokenizer_class": MPNET if self.roberta_rows else "BertTokenizer",
            "do_lower_case": self.normalization.lowercase,
            "strip_accents": self.normalization.strip_accents,
            "tokenize_chinese_chars": self.normalization.chinese_characters,
        }
        if self.splits_special_tokens:
            settings["split_special_tokens"] = True
        others = [
            token.content
            for token in self.added
            if token.special and token.content not in names.values()
        ]
        extra = {"additional_special_tokens": others} if others else {}
        write_json(folder / "tokenizer_config.json", {**settings, **names, **extra})
        write_json(folder / "special_tokens_map.json", {**names, **extra})

    def graph(self, profile: str = "reference") -> WordPieceGraph:
        """Build the same tokenizer as TensorFlow ops: see `base.Tokenizer`."""
        from tfllm.tokenizers.graph.wordpiece import WordPieceGraph

        return WordPieceGraph(self, profile)

    def _tokenize(self, texts: Sequence[str]) -> Sequence[TokenSequence]:
        valid = [replace_surrogates(text) for text in texts]
        with translate_errors(valid):
            return self._backend.encode_batch(valid, add_special_tokens=False)


def _ids_of(vocabulary: list[str]) -> dict[str, int]:
    ids: dict[str, int] = {}
    for token_id, token in enumerate(vocabulary):
        if not token:
            raise TokenizerError(f"Token {token_id} of the vocabulary is empty. Remove or name it.")
        if token in ids:
            raise TokenizerError(
                f"Tokens {ids[token]} and {token_id} of the vocabulary are both '{token}'. "
                "Rename one of them; ids may not change."
            )
        ids[token] = token_id
    return ids


def _create_backend(
    vocabulary: list[str],
    normalization: BertNormalization,
    special_tokens: BertSpecialTokens,
    matched: Sequence[AddedToken],
    max_word_characters: int,
) -> Tokenizer:
    from tokenizers import (
        Tokenizer,
        decoders,
        models,
        pre_tokenizers,
    )

    ids = {token: token_id for token_id, token in enumerate(vocabulary)}
    model = models.WordPiece(
        ids,
        unk_token=special_tokens.unk_token,
        max_input_chars_per_word=max_word_characters,
        continuing_subword_prefix=PREFIX,
    )
    backend = Tokenizer(model)
    backend.normalizer = normalization.build()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix=PREFIX)
    backend.add_tokens([token.to_backend() for token in matched])
    return backend


def _post_processor(template: RowTemplate, start: str, end: str) -> PostProcessor:
    """The package's post-processor of rows that begin with the token `start` and end with `end`."""
    from tokenizers import processors

    between = " ".join(f"{end}:{kind}" for kind in template.separator_type_ids)
    last = template.pair_type_id
    return processors.TemplateProcessing(
        single=f"{start}:0 $A:0 {end}:0",
        pair=f"{start}:0 $A:0 {between} $B:{last} {end}:{last}",
        special_tokens=[(start, template.prefix[0]), (end, template.suffix[0])],
    )


def from_vocabulary_file(path: Path, settings: TokenizerConfig) -> WordPiece:
    """Load a vocab.txt; texts are lowercased where no tokenizer_config.json says otherwise.

    Args:
        path: The file.
        settings: The files beside it.

    Raises:
        TokenizerError: The file is not usable, or contradicts the settings.
    """
    tokens = read_vocabulary(path)
    table = {token: token_id for token_id, token in enumerate(tokens)}
    arguments = {**_arguments(settings), "model_size": len(tokens)}
    return _from_files(path, table, settings, [], arguments)


def read_vocabulary(path: str | Path) -> list[str]:
    """Read the tokens of a vocab.txt, one on each line.

    Raises:
        TokenizerError: Names the line of an empty or repeated token.
    """
    path = Path(path)
    text = read_text(path).replace("\r\n", "\n")
    lines = text.removesuffix("\n").split("\n")
    seen: dict[str, int] = {}
    for number, token in enumerate(lines, start=1):
        if not token:
            raise TokenizerError(
                f"{path}:{number}: {'the file' if len(lines) == 1 else 'the line'} is empty; "
                "a vocabulary has one token a line."
            )
        if token in seen:
            raise TokenizerError(
                f"{path}:{number}: '{token}' is in line {seen[token]} already. "
                "Rename one of them; ids may not change."
            )
        seen[token] = number
    return lines


def from_json(path: Path, data: Mapping[str, Any], settings: TokenizerConfig) -> WordPiece:
    """Create a tokenizer from the contents of a tokenizer.json.

    Args:
        path: The file, for messages.
        data: Its contents.
        settings: The files beside it.

    Raises:
        TokenizerError: It is not BERT's tokenizer, or contradicts the settings.
    """
    model = _part(data, "model", "WordPiece", path)
    normalizer = _part(data, "normalizer", "BertNormalizer", path)
    _part(data, "pre_tokenizer", "BertPreTokenizer", path)
    prefix = model.get("continuing_subword_prefix", PREFIX)
    if prefix != PREFIX:
        raise TokenizerError(f"{path}: subword prefix '{prefix}'; only '{PREFIX}' is known.")
    table = model.get("vocab")
    if not isinstance(table, Mapping) or not table:
        raise TokenizerError(f"{path}: 'model.vocab' is not a table of tokens.")
    model_size = 1 + max(table.values())
    table = dict(table)
    added = []
    for entry in data.get("added_tokens") or []:
        added.append(_parse_added(entry, path))
        table[entry["content"]] = entry["id"]
    arguments = {name: normalizer[key] for key, name in NORMALIZER.items() if key in normalizer}
    if settings.tokenizer_class not in GENERIC_CLASSES:
        arguments |= {"lowercase": True, "strip_accents": None, "chinese_characters": True}
        arguments |= _arguments(settings)
    else:
        named = {**settings.named, "unk_token": model.get("unk_token", "[UNK]")}
        settings = replace(settings, named=named)
    arguments["model_size"] = model_size
    arguments["max_word_characters"] = model.get("max_input_chars_per_word", MAX_WORD_CHARACTERS)
    tokenizer = _from_files(path, table, settings, added, arguments)
    _check_rows(tokenizer, data, path)
    return tokenizer


def _from_files(
    path: Path,
    table: dict[str, int],
    settings: TokenizerConfig,
    added: list[AddedToken],
    arguments: dict[str, Any],
) -> WordPiece:
    """A tokenizer with the tokens `added` of tokenizer.json and then those of the settings."""
    settings.check_truncation(path.parent / CONFIG)
    for token_id, token in settings.added_tokens.items():
        if table.setdefault(token.content, token_id) != token_id:
            raise TokenizerError(
                f"{path}: '{token.content}' has the id {table[token.content]}, and "
                f"{ADDED_TOKENS_DECODER} or {ADDED_TOKENS_FILE} gives it {token_id}. Use the "
                "files that belong together."
            )
    vocabulary = _by_id(table, path)
    explicit = {
        content(settings.config[key]) for key in SPECIAL_TOKEN_KEYS if settings.config.get(key)
    }
    for token in settings.special_tokens():
        defaults = BERT_TOKENS.values()
        if token.content not in table and (
            token.content in explicit or token.content not in defaults
        ):
            table[token.content] = len(vocabulary)
            vocabulary.append(token.content)
    keys = asdict(BertSpecialTokens())
    named = {key: content(entry) for key in keys if (entry := settings.named.get(key))}
    special = {token.content for token in settings.special_tokens()}
    matched = [
        replace(token, special=token.special or token.content in special)
        for token in (*settings.special_tokens(), *added, *settings.added_tokens.values())
        if token.content in table
    ]
    try:
        return WordPiece.from_vocabulary(
            vocabulary,
            special_tokens=BertSpecialTokens(**named),
            added=matched,
            splits_special_tokens=settings.splits_special_tokens,
            roberta_rows=settings.tokenizer_class == MPNET,
            **arguments,
        )
    except TokenizerError as error:
        raise TokenizerError(f"{path}: {error.cli_message}") from None


def _arguments(settings: TokenizerConfig) -> dict[str, Any]:
    """Arguments of WordPiece.from_vocabulary that tokenizer_config.json gives."""
    arguments: dict[str, Any] = {}
    for key, name in NORMALIZATION.items():
        if key not in settings.config:
            continue
        value = settings.config[key]
        if not isinstance(value, bool) and not (key == "strip_accents" and value is None):
            raise TokenizerError(f"{CONFIG}: '{key}' is {value!r}; write true or false.")
        arguments[name] = value
    return arguments


def _part(data: Mapping[str, Any], key: str, kind: str, path: Path) -> Mapping[str, Any]:
    part = data.get(key)
    if not isinstance(part, Mapping):
        raise TokenizerError(f"{path}: '{key}' is missing; a BERT tokenizer has a {kind} there.")
    # Files of old versions omit the model's type.
    actual = part.get("type", kind if key == "model" and "merges" not in part else None)
    if actual != kind:
        raise TokenizerError(
            f"{path}: '{key}' is a {actual}; only {kind}, as BERT uses it, is known so far."
        )
    return part


def _parse_added(entry: Mapping[str, Any], path: Path) -> AddedToken:
    try:
        return parse_token(entry)
    except (AttributeError, KeyError, TypeError):
        raise TokenizerError(f"{path}: 'added_tokens' has an entry without 'content'.") from None


def _by_id(table: Mapping[str, int], path: Path) -> list[str]:
    """The tokens in the order of ids. Raises TokenizerError for a gap."""
    by_id = {token_id: token for token, token_id in table.items()}
    for token_id in range(len(table)):
        if token_id not in by_id:
            raise TokenizerError(
                f"{path}: {len(table)} tokens, and none has the id {token_id}. "
                "The ids must run from 0 without a gap, each once."
            )
    return [by_id[token_id] for token_id in range(len(table))]


def _check_rows(tokenizer: WordPiece, data: Mapping[str, Any], path: Path) -> None:
    """Check that the file, run by the `tokenizers` package itself, gives the same rows."""
    model = {**data["model"], "unk_token": tokenizer.special_tokens.unk_token}
    backend = parse_tokenizer_json(json.dumps({**data, "model": model}), path)
    backend.no_truncation()
    backend.no_padding()
    own = not tokenizer.roberta_rows  # MPNet's class replaces the file's post-processor
    for text, pair in PROBES:
        theirs = backend.encode(text, pair, add_special_tokens=own)
        ours = tokenizer.encode(text, pair, add_special_tokens=own)
        if theirs.ids != ours.ids or own and theirs.type_ids != ours.type_ids:
            raise TokenizerError(
                f"{path}: gives {theirs.tokens} for {text!r} and {pair!r}, where BERT's rows are "
                "[CLS] a [SEP] b [SEP] with types 0 and 1. Such a post-processor is not known."
            )
