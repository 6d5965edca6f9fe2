"""Loading of a tokenizer from the files of a directory, in Hugging Face's form.

`tokenizer.json` is read where it exists, else the vocabulary files that a tokenizer's own package
writes. `tokenizer_config.json`, `special_tokens_map.json`, `added_tokens.json`,
`chat_template.jinja` and `additional_chat_templates/` may be beside it. A setting that would change
the ids and is not known here is refused, not ignored.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tfllm.errors import TokenizerError
from tfllm.tokenizers import (
    bytepair,
    hf_classes,
    marian,
    mbart,
    sentencepiece,
    tokenizer_config,
    wordpiece,
)
from tfllm.tokenizers import sentencepiece_proto as proto
from tfllm.tokenizers.base import Tokenizer
from tfllm.tokenizers.characters import Characters
from tfllm.tokenizers.hf_tokenizers import HFTokenizer
from tfllm.tokenizers.sentencepiece import SentencePieceJson
from tfllm.tokenizers.tokenizer_config import TokenizerConfig, read_json
from tfllm.tokenizers.wordpiece import read_vocabulary as read_vocabulary

# The files of a tokenizer that a directory may hold.
FILES = ("tokenizer.json", "vocab.txt", tokenizer_config.CONFIG, tokenizer_config.SPECIALS_MAP)
MODELS = sentencepiece.FILE_NAMES
BYTE_PAIR = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
LLAMA2C = "tokenizer.bin"


def load_tokenizer(source: str | Path) -> Tokenizer:
    """Load the tokenizer of a directory or of one vocabulary file.

    Args:
        source: A directory, or a `.json`, `.model`, `.txt`, `.bin` or `.spm` file.

    Raises:
        TokenizerError: Names the file and what is wrong with it.
    """
    path = Path(source)
    if path.is_file():
        return _file(path, TokenizerConfig())
    if not path.is_dir():
        raise TokenizerError(f"There is no directory '{path}' with tokenizer files.")
    settings = tokenizer_config.read_tokenizer_config(path)
    if file := find_vocabulary_file(path):
        return mbart.apply_language_config(_file(file, settings), settings, file)
    hf_classes.check_has_vocabulary(settings, path)
    raise TokenizerError(
        f"'{path}' has neither tokenizer.json nor vocab.txt, vocab.json with merges.txt, a .model "
        "file or a tokenizer.bin. Copy the tokenizer's files of the checkpoint into it."
    )


def find_vocabulary_file(folder: Path) -> Path | None:
    """Return the file that `load_tokenizer` reads in a directory, or None."""
    pairs = [first for first, second in BYTE_PAIR if (folder / second).is_file()]
    for name in (marian.SOURCE, "tokenizer.json", *pairs, *MODELS, "vocab.txt", LLAMA2C):
        if (folder / name).is_file():
            return folder / name
    return None


def check_vocabulary_size(tokenizer: Tokenizer, rows: int, source: str | Path) -> None:
    """Check that an embedding table has a row for each token.

    More rows than tokens are fine: tables are often padded to a round number.

    Args:
        tokenizer: The tokenizer.
        rows: Rows of the table.
        source: The checkpoint, for messages.

    Raises:
        TokenizerError: The table is too small.
    """
    if tokenizer.vocabulary_size > rows:
        raise TokenizerError(
            f"{source}: the vocabulary has {tokenizer.vocabulary_size} tokens and the model's "
            f"embedding table {rows} rows. Use the tokenizer files that belong to the weights."
        )


def _file(path: Path, settings: TokenizerConfig) -> Tokenizer:
    for vocabulary, merges in BYTE_PAIR:
        if path.name == vocabulary and (path.parent / merges).is_file():
            return bytepair.read(path, path.parent / merges, settings)
    reader = READERS.get(path.suffix)
    if reader is None:
        raise TokenizerError(
            f"{path}: not a vocabulary file; give a directory, or one of "
            f"{', '.join(f'*{suffix}' for suffix in READERS)}."
        )
    return reader(path, settings)


def _from_json(path: Path, settings: TokenizerConfig) -> Tokenizer:
    data = read_json(path)
    kind = json_kind(data)
    settings = hf_classes.with_class_defaults(settings, kind, path, True)
    if kind not in TOKENIZER_JSON_CLASSES:
        return wordpiece.from_json(path, data, settings)
    changed = hf_classes.apply_class_config(data, settings, kind, path)
    text = path.read_text("utf-8-sig") if changed is data else json.dumps(changed)
    return TOKENIZER_JSON_CLASSES[kind].from_definition(text, settings, path, of_class=True)


def _from_text(path: Path, settings: TokenizerConfig) -> Tokenizer:
    return wordpiece.from_vocabulary_file(
        path, hf_classes.with_class_defaults(settings, "wordpiece", path, False)
    )


def _from_llama2c(path: Path, settings: TokenizerConfig) -> Tokenizer:
    return sentencepiece.from_proto(proto.from_llama2c(path), settings, path)


READERS: dict[str, Callable[[Path, TokenizerConfig], Tokenizer]] = {
    ".json": _from_json,
    ".txt": _from_text,
    ".model": sentencepiece.load_sentencepiece,
    ".bin": _from_llama2c,
    ".spm": marian.load_marian,
}
TOKENIZER_JSON_CLASSES: dict[str, type[HFTokenizer]] = {
    "bytepair": bytepair.BytePair,
    "sentencepiece": SentencePieceJson,
    "characters": Characters,
}


def json_kind(data: Mapping[str, Any]) -> str:
    """Return the kind of vocabulary of a tokenizer.json; "wordpiece" for all other files."""
    model = data.get("model")
    if not isinstance(model, Mapping):
        return "wordpiece"
    kind = model.get("type") or ("BPE" if "merges" in model else "")
    parts = {name for key in ("pre_tokenizer", "decoder") for name in _types(data.get(key))}
    if kind == "Unigram":
        return "sentencepiece"
    if kind == "BPE" and "ByteLevel" in parts:
        return "bytepair"
    if kind == "BPE" and (model.get("byte_fallback") or "Metaspace" in parts):
        return "sentencepiece"
    if kind == "BPE" and parts <= {"Fuse"} and not model.get("merges") and model.get("vocab"):
        return "characters"
    return "wordpiece"


def _types(part: object) -> list[str]:
    """The types of a pre-tokenizer or decoder and of those inside a Sequence."""
    if not isinstance(part, Mapping):
        return []
    inner = part.get("pretokenizers") or part.get("decoders") or []
    return [str(part.get("type")), *(name for entry in inner for name in _types(entry))]
