"""BERT's tokenizer from vocab.txt or tokenizer.json, with the settings that stand beside them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfllm.errors import TokenizerError
from tfllm.tokenizers.config_files import CONFIG, SPECIALS_MAP, content, json_file, text_file
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


def from_vocabulary_file(path: Path) -> WordPiece:
    """From vocab.txt, uncased where no tokenizer_config.json says otherwise."""
    return _built(path, read_vocabulary(path), _settings(path.parent))


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


def from_json(path: Path, data: Mapping[str, Any]) -> WordPiece:
    """From the contents of a tokenizer.json. Raises TokenizerError where it is not BERT's."""
    settings = _settings(path.parent)
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
    added = data.get("added_tokens") or []
    for entry in added:
        _check_added(entry, path)
        table[entry["content"]] = entry["id"]
    arguments = {name: normalizer[key] for key, name in NORMALIZER.items() if key in normalizer}
    specials = {"unknown": model.get("unk_token", "[UNK]"), **settings.pop("specials")}
    tokenizer = _built(
        path,
        _ordered(table, path),
        {
            **arguments,
            **settings,
            "specials": specials,
            "added": [*(entry["content"] for entry in added), *settings.pop("added")],
            "model_size": model_size,
            "max_word_characters": model.get("max_input_chars_per_word", MAX_WORD_CHARACTERS),
        },
    )
    _check_rows(tokenizer, path)
    return tokenizer


def _built(path: Path, vocabulary: list[str], arguments: dict[str, Any]) -> WordPiece:
    specials = Specials(**arguments.pop("specials"))
    known = set(vars(specials).values())
    added = [token for token in dict.fromkeys(arguments.pop("added")) if token not in known]
    try:
        return WordPiece.from_vocabulary(vocabulary, specials=specials, added=added, **arguments)
    except TokenizerError as error:
        raise TokenizerError(f"{path}: {error}") from None


def _settings(folder: Path) -> dict[str, Any]:
    """Arguments of WordPiece.from_vocabulary that the two small files give."""
    path = folder / CONFIG
    config = json_file(path) if path.is_file() else {}
    beside = folder / SPECIALS_MAP
    special_map = json_file(beside) if beside.is_file() else {}
    arguments: dict[str, Any] = {}
    for key, name in NORMALIZATION.items():
        if key not in config:
            continue
        value = config[key]
        if not isinstance(value, bool) and not (key == "strip_accents" and value is None):
            raise TokenizerError(f"{path}: '{key}' is {value!r}; write true or false.")
        arguments[name] = value
    named = {**special_map, **config}
    arguments["specials"] = {
        ours: content(named[theirs])
        for theirs, ours in SPECIALS.items()
        if named.get(theirs) is not None
    }
    added = named.get("additional_special_tokens") or named.get("extra_special_tokens") or []
    arguments["added"] = [content(entry) for entry in added]
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


def _check_added(entry: Any, path: Path) -> None:
    """An added token must be one that is recognised exactly as it is written."""
    if not isinstance(entry, Mapping) or not isinstance(entry.get("content"), str):
        raise TokenizerError(f"{path}: 'added_tokens' has an entry without 'content'.")
    flags = [name for name in ("lstrip", "rstrip", "single_word", "normalized") if entry.get(name)]
    if flags:
        raise TokenizerError(
            f"{path}: the added token '{entry['content']}' has {', '.join(flags)} set, which would "
            "differ in the graph. Add it as a special token, which is matched as it is written."
        )


def _ordered(table: Mapping[str, Any], path: Path) -> list[str]:
    by_id = {number: token for token, number in table.items()}
    for number in range(len(table)):
        if number not in by_id:
            raise TokenizerError(
                f"{path}: {len(table)} tokens, and none has the id {number}. "
                "The ids must run from 0 without a gap, each once."
            )
    return [by_id[number] for number in range(len(table))]


def _check_rows(tokenizer: WordPiece, path: Path) -> None:
    """The file, run by the `tokenizers` package itself, must give the rows that we give."""
    from tokenizers import Tokenizer as Rust

    try:
        rust = Rust.from_file(str(path))
    except Exception as error:  # the package raises bare Exception
        raise TokenizerError(f"{path}: not a usable tokenizer file: {error}") from None
    rust.no_truncation()
    rust.no_padding()
    for text, pair in PROBES:
        theirs, ours = rust.encode(text, pair), tokenizer.encode(text, pair)
        if (theirs.ids, theirs.type_ids) != (ours.ids, ours.type_ids):
            raise TokenizerError(
                f"{path}: gives {theirs.tokens} for {text!r} and {pair!r}, where BERT's rows are "
                "[CLS] a [SEP] b [SEP] with types 0 and 1. Such a post-processor is not known."
            )
