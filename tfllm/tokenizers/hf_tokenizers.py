"""A tokenizer.json run as it is by the Hugging Face `tokenizers` package."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tfllm.errors import TokenizerError
from tfllm.tokenizers import hf_classes, tokenizer_config
from tfllm.tokenizers.base import RowTemplate, check_ids
from tfllm.tokenizers.rows import NamedTokenizer, replace_surrogates
from tfllm.tokenizers.tokenizer_config import (
    ADDED_TOKENS_DECODER,
    ADDED_TOKENS_FILE,
    SpecialTokens,
    TokenizerConfig,
)

# A text whose tokens no post-processor adds; it shows what is put around them.
PROBE, PROBE_PAIR = "1 2", "3 4"


@dataclass(frozen=True)
class HFTokenizer(NamedTokenizer):
    """Byte-level BPE, SentencePiece or characters, as a tokenizer.json describes them.

    Make it with `from_definition` of the class for its kind, or with `load_tokenizer`.
    """

    special_tokens: SpecialTokens
    definition: str = field(repr=False)
    """tokenizer.json, without truncation and padding"""
    chat_template: str | None = field(repr=False)
    row_template: RowTemplate
    config: Mapping[str, Any] = field(repr=False, compare=False)
    vocabulary: list[str] = field(repr=False, compare=False)
    all_special_ids: frozenset[int] = field(repr=False, compare=False)
    _backend: Any = field(repr=False, compare=False)
    _ids: Mapping[str, int] = field(repr=False, compare=False)
    target_template: RowTemplate | None = None

    kind = ""

    @classmethod
    def from_definition(
        cls,
        definition: str,
        settings: TokenizerConfig = TokenizerConfig(),
        source: str | Path = "tokenizer.json",
        of_class: bool = False,
    ) -> Any:
        """From the text of a tokenizer.json. Raises TokenizerError naming `source`.

        `of_class`: rows are those of the settings' class, whose special tokens the settings hold.
        """
        rust = parse_tokenizer_json(definition, source)
        rust.no_truncation()
        rust.no_padding()
        add_missing_tokens(rust, settings, source)
        if of_class:
            hf_classes.set_post_processor(rust, settings)
        names = settings.role_tokens(
            one.content for one in rust.get_added_tokens_decoder().values()
        )
        table = rust.get_vocab(with_added_tokens=True)
        vocabulary = [""] * (1 + max(table.values(), default=-1))
        for token, number in table.items():
            vocabulary[number] = token
        if not vocabulary:
            raise TokenizerError(f"{source}: the vocabulary is empty.")
        special = frozenset(
            number for number, token in rust.get_added_tokens_decoder().items() if token.special
        )
        return cls(
            special_tokens=names,
            definition=rust.to_str(),
            chat_template=settings.chat_template,
            row_template=_row_template(rust, source),
            config=settings.own_config(),
            vocabulary=vocabulary,
            all_special_ids=special,
            _backend=rust,
            _ids=table,
        )

    @property
    def splits_special_tokens(self) -> bool:
        """Whether special tokens written in a text are ordinary text."""
        return self._backend.encode_special_tokens

    def parse_definition(self) -> dict[str, Any]:
        """The parts of tokenizer.json, as a graph is made from them."""
        return json.loads(self.definition)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids. Raises TokenizerError for a negative id."""
        check_ids(ids)
        size = self.vocabulary_size
        known = [int(i) for i in ids if i < size]
        with translate_errors():
            return self._backend.decode(known, skip_special_tokens=skip_special_tokens)

    def save(self, directory: str | Path) -> None:
        """Writes tokenizer.json, tokenizer_config.json, special_tokens_map.json, the template."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        self._backend.save(str(folder / "tokenizer.json"))
        added = [self.vocabulary[number] for number in sorted(self.all_special_ids)]
        tokenizer_config.write_tokenizer_config(
            folder, self.special_tokens, added, self.config, self.chat_template
        )

    def graph(self, profile: str = "reference") -> Any:
        """The same tokenizer as TensorFlow ops."""
        raise NotImplementedError

    def _split(self, texts: Sequence[str]) -> list[Any]:
        given = [replace_surrogates(text) for text in texts]
        with translate_errors(given):
            return self._backend.encode_batch(given, add_special_tokens=False)

    def _split_ids(self, texts: Sequence[str]) -> list[list[int]]:
        given = [replace_surrogates(text) for text in texts]
        with translate_errors(given):
            rows = self._backend.encode_batch_fast(given, add_special_tokens=False)
        return [row.ids for row in rows]


def parse_tokenizer_json(definition: str, source: str | Path) -> Any:
    """The package's tokenizer of a tokenizer.json's text. Raises TokenizerError."""
    from tokenizers import Tokenizer as Rust

    with translate_errors(source=source):
        return Rust.from_str(definition)


@contextmanager
def translate_errors(
    texts: Sequence[str] = (), source: str | Path = "the tokenizers package"
) -> Iterator[None]:
    """Around a call of the package: what it raises becomes a TokenizerError.

    The package raises bare Exception, and a panic of its Rust code comes as a BaseException that
    `except Exception` lets pass.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, TokenizerError):
        raise
    except BaseException as error:
        if texts:
            longest = max(map(len, texts))
            raise TokenizerError(
                f"{source}: it failed on a text of {longest:,} characters: {_first_line(error)}. "
                "Cut long texts, above all long runs of white space, into shorter ones."
            ) from None
        raise TokenizerError(
            f"{source}: not a usable tokenizer file: {_first_line(error)}"
        ) from None


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def add_missing_tokens(rust: Any, settings: TokenizerConfig, source: str | Path) -> None:
    """Adds the tokens that the settings have and the vocabulary lacks, as transformers 5 does.

    First those with an id, then the special ones, numbered from the vocabulary's end on. Raises
    TokenizerError where a token does not get the id that its file gives.
    """
    present = list(rust.get_added_tokens_decoder().values())
    same = {repr(token) for token in present}
    special = settings.special_tokens()
    named = {token.content for token in special}
    news = [
        replace(token, special=token.special or token.content in named)
        for token in settings.added_tokens.values()
        if repr(token.rust()) not in same
    ]
    found = {token.content for token in (*present, *news)}
    news += [token for token in special if token.content not in found]
    if news:
        rust.add_tokens([token.rust() for token in news])
    _refuse_empty(rust, source)
    rust.encode_special_tokens = settings.splits_special_tokens
    for number, token in settings.added_tokens.items():
        if (got := rust.token_to_id(token.content)) != number:
            raise TokenizerError(
                f"{source}: the added token '{token.content}' would have the id {got}, and "
                f"{ADDED_TOKENS_DECODER} or {ADDED_TOKENS_FILE} gives it {number}. Ids must "
                "follow the vocabulary's without a gap; use the files that belong together."
            )


def _refuse_empty(rust: Any, source: str | Path) -> None:
    """Raises TokenizerError for an added token of which normalisation leaves nothing.

    The package would find it at every place of a text, without an end.
    """
    for token in rust.get_added_tokens_decoder().values():
        if (
            token.normalized
            and rust.normalizer
            and not rust.normalizer.normalize_str(token.content)
        ):
            raise TokenizerError(
                f"{source}: nothing is left of the added token {token.content!r} after the file's "
                'normalizer. Write "normalized": false for it, or remove it.'
            )


def _row_template(rust: Any, source: str | Path) -> RowTemplate:
    """The special tokens that the file's post-processor puts around texts, seen from probes."""
    probes = _probes(rust)
    first, second = (rust.encode(text, add_special_tokens=False).ids for text in probes)
    single, pair = rust.encode(probes[0]), rust.encode(*probes)
    try:
        before, after = _around(single.ids, first)
        start, rest = _around(pair.ids, first)
        between, end = _around(list(rest), second)
    except ValueError:
        raise TokenizerError(
            f"{source}: its post-processor changes the tokens of a text; only special tokens "
            "before, between and after texts are known."
        ) from None
    if (before, after) != (start, end):
        raise TokenizerError(
            f"{source}: its post-processor puts {before} and {after} around one text but {start} "
            f"and {end} around two. Such a post-processor is not known."
        )
    place = len(start) + len(first)
    types = pair.type_ids
    return RowTemplate(
        start,
        between,
        end,
        tuple(types[place : place + len(between)]),
        types[place + len(between)] if second else 0,
    )


def _probes(rust: Any) -> tuple[str, str]:
    """Two texts that have tokens: the usual ones, or a small vocabulary's own letter."""

    def length(text: str) -> int:
        return len(rust.encode(text, add_special_tokens=False).ids)

    if length(PROBE) and length(PROBE_PAIR):
        return PROBE, PROBE_PAIR
    special = {token.content for token in rust.get_added_tokens_decoder().values()}
    letters = (token for token in sorted(rust.get_vocab()) if token not in special)
    letter = next((token for token in letters if length(token)), None)
    return (PROBE, PROBE_PAIR) if letter is None else (letter, letter + letter)


def _around(row: list[int], inner: list[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What stands before and after `inner` in `row`. Raises ValueError where it is not there."""
    for place in range(len(row) - len(inner) + 1):
        if row[place : place + len(inner)] == inner:
            return tuple(row[:place]), tuple(row[place + len(inner) :])
    raise ValueError
