"""Tokenizers that the Hugging Face `tokenizers` package runs, as their tokenizer.json says."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tfllm.errors import TokenizerError
from tfllm.tokenizers import hf_classes, tokenizer_config
from tfllm.tokenizers.base import InGraphTokenizer, RowTemplate, check_ids
from tfllm.tokenizers.hf_internals import translate_errors
from tfllm.tokenizers.rows import NamedTokenizer, TokenSequence, replace_surrogates
from tfllm.tokenizers.tokenizer_config import (
    ADDED_TOKENS_DECODER,
    ADDED_TOKENS_FILE,
    AddedToken,
    SpecialTokens,
    TokenizerConfig,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Texts whose tokens no post-processor adds; they show what is put around texts.
PROBE, PROBE_PAIR = "1 2", "3 4"


@dataclass(frozen=True)
class HFTokenizer(NamedTokenizer):
    """Byte-level BPE, SentencePiece or characters, as a tokenizer.json describes them.

    Created by `from_definition` of the class for its kind, or by `load_tokenizer`.
    """

    special_tokens: SpecialTokens
    definition: str = field(repr=False)
    """tokenizer.json, without truncation and padding."""
    chat_template: str | None = field(repr=False)
    row_template: RowTemplate
    config: Mapping[str, Any] = field(repr=False, compare=False)
    vocabulary: list[str] = field(repr=False, compare=False)
    all_special_ids: frozenset[int] = field(repr=False, compare=False)
    _backend: Tokenizer = field(repr=False, compare=False)
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
    ) -> Self:
        """Create a tokenizer from the text of a tokenizer.json.

        Args:
            definition: The text.
            settings: The files beside it.
            source: The file, for messages.
            of_class: Whether rows are those of the class in `settings`, whose special tokens
                `settings` holds.

        Raises:
            TokenizerError: The file is not usable, or contradicts the settings.
        """
        backend = parse_tokenizer_json(definition, source)
        backend.no_truncation()
        backend.no_padding()
        add_missing_tokens(backend, settings, source)
        if of_class:
            hf_classes.set_post_processor(backend, settings)
        added = backend.get_added_tokens_decoder()
        names = settings.role_tokens(token.content for token in added.values())
        ids = backend.get_vocab(with_added_tokens=True)
        vocabulary = [""] * (1 + max(ids.values(), default=-1))
        for token, token_id in ids.items():
            vocabulary[token_id] = token
        if not vocabulary:
            raise TokenizerError(f"{source}: the vocabulary is empty.")
        special = frozenset(token_id for token_id, token in added.items() if token.special)
        return cls(
            special_tokens=names,
            definition=backend.to_str(),
            chat_template=settings.chat_template,
            row_template=_row_template(backend, source),
            config=settings.own_config(),
            vocabulary=vocabulary,
            all_special_ids=special,
            _backend=backend,
            _ids=ids,
        )

    @property
    def splits_special_tokens(self) -> bool:
        """Whether special tokens written in a text are ordinary text."""
        return self._backend.encode_special_tokens

    def parse_definition(self) -> dict[str, Any]:
        """Return the contents of tokenizer.json, from which a graph is built."""
        return json.loads(self.definition)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Decode ids to text: see `base.Tokenizer`."""
        check_ids(ids)
        size = self.vocabulary_size
        known = [int(token_id) for token_id in ids if token_id < size]
        with translate_errors():
            return self._backend.decode(known, skip_special_tokens=skip_special_tokens)

    def save(self, directory: str | Path) -> None:
        """Write tokenizer.json, tokenizer_config.json, special_tokens_map.json, the template."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        self._backend.save(str(folder / "tokenizer.json"))
        added = [self.vocabulary[token_id] for token_id in sorted(self.all_special_ids)]
        tokenizer_config.write_tokenizer_config(
            folder, self.special_tokens, added, self.config, self.chat_template
        )

    def graph(self, profile: str = "reference") -> InGraphTokenizer:
        """Build the same tokenizer as TensorFlow ops: see `base.Tokenizer`."""
        raise NotImplementedError

    def _tokenize(self, texts: Sequence[str]) -> Sequence[TokenSequence]:
        valid = [replace_surrogates(text) for text in texts]
        with translate_errors(valid):
            return self._backend.encode_batch(valid, add_special_tokens=False)

    def _tokenize_ids(self, texts: Sequence[str]) -> list[list[int]]:
        valid = [replace_surrogates(text) for text in texts]
        with translate_errors(valid):
            rows = self._backend.encode_batch_fast(valid, add_special_tokens=False)
        return [row.ids for row in rows]


def parse_tokenizer_json(definition: str, source: str | Path) -> Tokenizer:
    """Parse the text of a tokenizer.json to a tokenizer of the package.

    Args:
        definition: The text.
        source: The file, for messages.

    Raises:
        TokenizerError: The package cannot read it.
    """
    from tokenizers import Tokenizer

    with translate_errors(source=source):
        return Tokenizer.from_str(definition)


def add_missing_tokens(backend: Tokenizer, settings: TokenizerConfig, source: str | Path) -> None:
    """Add the tokens that the settings have and the vocabulary lacks, as transformers 5 does.

    First those with an id, then the special ones, numbered after the vocabulary.

    Args:
        backend: The package's tokenizer, which is changed.
        settings: The files beside the vocabulary.
        source: The vocabulary file, for messages.

    Raises:
        TokenizerError: A token does not get the id that its file gives, or normalization leaves
            nothing of it.
    """
    present = [
        AddedToken.from_backend(token) for token in backend.get_added_tokens_decoder().values()
    ]
    special = settings.special_tokens()
    named = {token.content for token in special}
    missing = [
        replace(token, special=token.special or token.content in named)
        for token in settings.added_tokens.values()
        if token not in set(present)
    ]
    contents = {token.content for token in (*present, *missing)}
    missing += [token for token in special if token.content not in contents]
    if missing:
        backend.add_tokens([token.to_backend() for token in missing])
    _check_not_empty(backend, source)
    backend.encode_special_tokens = settings.splits_special_tokens
    for token_id, token in settings.added_tokens.items():
        if (actual := backend.token_to_id(token.content)) != token_id:
            raise TokenizerError(
                f"{source}: the added token '{token.content}' would have the id {actual}, and "
                f"{ADDED_TOKENS_DECODER} or {ADDED_TOKENS_FILE} gives it {token_id}. Ids must "
                "follow the vocabulary's without a gap; use the files that belong together."
            )


def _check_not_empty(backend: Tokenizer, source: str | Path) -> None:
    """Refuse an added token of which normalization leaves nothing: it would match everywhere."""
    normalizer = backend.normalizer
    for token in backend.get_added_tokens_decoder().values():
        if token.normalized and normalizer and not normalizer.normalize_str(token.content):
            raise TokenizerError(
                f"{source}: nothing is left of the added token {token.content!r} after the file's "
                'normalizer. Write "normalized": false for it, or remove it.'
            )


def _row_template(backend: Tokenizer, source: str | Path) -> RowTemplate:
    """The special tokens that the file's post-processor puts around texts, found by probing."""
    probes = _probes(backend)
    first, second = (backend.encode(text, add_special_tokens=False).ids for text in probes)
    single, pair = backend.encode(probes[0]), backend.encode(*probes)
    try:
        before, after = _partition(single.ids, first)
        start, remaining = _partition(pair.ids, first)
        between, end = _partition(list(remaining), second)
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
    begin = len(start) + len(first)
    types = pair.type_ids
    return RowTemplate(
        start,
        between,
        end,
        tuple(types[begin : begin + len(between)]),
        types[begin + len(between)] if second else 0,
    )


def _probes(backend: Tokenizer) -> tuple[str, str]:
    """Two texts that have tokens: the usual ones, or a token of a small vocabulary."""

    def length(text: str) -> int:
        return len(backend.encode(text, add_special_tokens=False).ids)

    if length(PROBE) and length(PROBE_PAIR):
        return PROBE, PROBE_PAIR
    special = {token.content for token in backend.get_added_tokens_decoder().values()}
    ordinary = (token for token in sorted(backend.get_vocab()) if token not in special)
    probe = next((token for token in ordinary if length(token)), None)
    return (PROBE, PROBE_PAIR) if probe is None else (probe, probe + probe)


def _partition(row: list[int], inner: list[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids before and after `inner` in `row`. Raises ValueError where it is not there."""
    for start in range(len(row) - len(inner) + 1):
        if row[start : start + len(inner)] == inner:
            return tuple(row[:start]), tuple(row[start + len(inner) :])
    raise ValueError
