"""BERT's tokenizer from vocab.txt or tokenizer.json, with the settings that stand beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tfllm.errors import TokenizerError
from tfllm.tokenizers.classes import BERT_TOKENS
from tfllm.tokenizers.config_files import (
    ADDED,
    AS_IT_STANDS,
    CONFIG,
    DECODER,
    NAMED,
    AddedToken,
    Settings,
    content,
    text_file,
    token_of,
)
from tfllm.tokenizers.hf_tokenizers import parsed
from tfllm.tokenizers.wordpiece import MAX_WORD_CHARACTERS, PREFIX, Specials, WordPiece

# Hugging Face's name of a special token -> ours
SPECIALS = {
    "pad_token": "pad",
    "unk_token": "unknown",
    "cls_token": "start",
    "sep_token": "end",
    "mask_token": "mask",
}
# Key of tokenizer_config.json -> argument of WordPiece.from_vocabulary
NORMALIZATION = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "chinese_characters",
}
# Key of tokenizer.json's normalizer -> the same
NORMALIZER = {
    "lowercase": "lowercase",
    "strip_accents": "strip_accents",
    "handle_chinese_chars": "chinese_characters",
    "clean_text": "clean_text",
}
# Rows that show whether a file's own post-processor and pre-tokenizer are BERT's.
PROBES = (("1 2", None), ("1-2, 3", "4"), ("", ""))


def from_vocabulary_file(path: Path, settings: Settings) -> WordPiece:
    """From vocab.txt, uncased where no tokenizer_config.json says otherwise."""
    tokens = read_vocabulary(path)
    table = {token: number for number, token in enumerate(tokens)}
    return _built(path, table, settings, [], {**_arguments(settings), "model_size": len(tokens)})


def read_vocabulary(path: str | Path) -> list[str]:
    """The tokens of a vocab.txt, one a line. Raises TokenizerError naming the line."""
    path = Path(path)
    text = text_file(path).replace("\r\n", "\n")
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
                f"{path}:{number}: '{token}' stands in line {seen[token]} already. "
                "Rename one of them; ids may not change."
            )
        seen[token] = number
    return lines


def from_json(path: Path, data: Mapping[str, Any], settings: Settings) -> WordPiece:
    """From the contents of a tokenizer.json. Raises TokenizerError where it is not BERT's."""
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
        added.append(_added(entry, path))
        table[entry["content"]] = entry["id"]
    arguments = {name: normalizer[key] for key, name in NORMALIZER.items() if key in normalizer}
    if settings.tokenizer_class not in AS_IT_STANDS:
        arguments |= {"lowercase": True, "strip_accents": None, "chinese_characters": True}
        arguments |= _arguments(settings)
    else:
        named = {**settings.named, "unk_token": model.get("unk_token", "[UNK]")}
        settings = replace(settings, named=named)
    arguments["model_size"] = model_size
    arguments["max_word_characters"] = model.get("max_input_chars_per_word", MAX_WORD_CHARACTERS)
    tokenizer = _built(path, table, settings, added, arguments)
    _check_rows(tokenizer, data, path)
    return tokenizer


def _built(
    path: Path,
    table: dict[str, int],
    settings: Settings,
    added: list[AddedToken],
    arguments: dict[str, Any],
) -> WordPiece:
    """`added` are those of tokenizer.json; those of the other files come behind."""
    settings.check_truncation(path.parent / CONFIG)
    for number, token in settings.added_tokens.items():
        if table.setdefault(token.content, number) != number:
            raise TokenizerError(
                f"{path}: '{token.content}' has the id {table[token.content]}, and "
                f"{DECODER} or {ADDED} gives it {number}. Use the files that belong together."
            )
    vocabulary = _ordered(table, path)
    explicit = {content(settings.config[key]) for key in NAMED if settings.config.get(key)}
    for token in settings.special_tokens():
        defaults = BERT_TOKENS.values()
        if token.content not in table and (
            token.content in explicit or token.content not in defaults
        ):
            table[token.content] = len(vocabulary)
            vocabulary.append(token.content)
    named = {key: content(entry) for key in SPECIALS if (entry := settings.named.get(key))}
    specials = Specials(**{SPECIALS[key]: token for key, token in named.items()})
    special = {token.content for token in settings.special_tokens()}
    further = [*settings.special_tokens(), *added, *settings.added_tokens.values()]
    further = [
        replace(token, special=token.special or token.content in special)
        for token in further
        if token.content in table
    ]
    try:
        return WordPiece.from_vocabulary(
            vocabulary,
            specials=specials,
            added=further,
            splits_special_tokens=settings.splits_special_tokens,
            **arguments,
        )
    except TokenizerError as error:
        raise TokenizerError(f"{path}: {error}") from None


def _arguments(settings: Settings) -> dict[str, Any]:
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
    # Files of old versions leave the model's type out.
    found = part.get("type", kind if key == "model" and "merges" not in part else None)
    if found != kind:
        raise TokenizerError(
            f"{path}: '{key}' is a {found}; only {kind}, as BERT uses it, is known so far."
        )
    return part


def _added(entry: Any, path: Path) -> AddedToken:
    try:
        return token_of(entry)
    except (AttributeError, KeyError, TypeError):
        raise TokenizerError(f"{path}: 'added_tokens' has an entry without 'content'.") from None


def _ordered(table: Mapping[str, Any], path: Path) -> list[str]:
    by_id = {number: token for token, number in table.items()}
    for number in range(len(table)):
        if number not in by_id:
            raise TokenizerError(
                f"{path}: {len(table)} tokens, and none has the id {number}. "
                "The ids must run from 0 without a gap, each once."
            )
    return [by_id[number] for number in range(len(table))]


def _check_rows(tokenizer: WordPiece, data: Mapping[str, Any], path: Path) -> None:
    """The file, run by the `tokenizers` package itself, must give the rows that we give."""
    model = {**data["model"], "unk_token": tokenizer.specials.unknown}
    rust = parsed(json.dumps({**data, "model": model}), path)
    rust.no_truncation()
    rust.no_padding()
    for text, pair in PROBES:
        theirs, ours = rust.encode(text, pair), tokenizer.encode(text, pair)
        if (theirs.ids, theirs.type_ids) != (ours.ids, ours.type_ids):
            raise TokenizerError(
                f"{path}: gives {theirs.tokens} for {text!r} and {pair!r}, where BERT's rows are "
                "[CLS] a [SEP] b [SEP] with types 0 and 1. Such a post-processor is not known."
            )
