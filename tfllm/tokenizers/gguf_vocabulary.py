"""Conversion of the vocabulary in a GGUF file from and to tokenizer files in Hugging Face's form.

GGUF has tokens, scores or merges, and types under `tokenizer.ggml.*`. Two kinds are converted:

    model "llama"   SentencePiece's BPE: pieces with scores      <->  tokenizer.model
    model "gpt2"    byte-level BPE: tokens, merges, and the NAME  <->  tokenizer.json
                    of the pattern that splits a text into words

The pattern itself is not in the file: PRE_TOKENIZERS has the patterns of the known names, and any
other name is refused, because another pattern gives other ids.

Source: github.com/ggml-org/ggml, docs/gguf.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfllm.errors import TokenizerError
from tfllm.tokenizers import sentencepiece_proto as proto
from tfllm.tokenizers.sentencepiece import BY_MODEL, OWN_PREFIX

PREFIX = "tokenizer.ggml."
CHAT_TEMPLATE = "tokenizer.chat_template"
# llama.cpp's LLAMA_TOKEN_TYPE has the numbers of SentencePiece's types.
NORMAL, UNKNOWN, CONTROL = proto.NORMAL, proto.UNKNOWN, proto.CONTROL
USER_DEFINED, UNUSED, BYTE = proto.USER_DEFINED, proto.UNUSED, proto.BYTE
# Role in Hugging Face's files -> GGUF's key.
ROLES = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
    "sep_token": "seperator_token_id",  # spelled so in the format
    "mask_token": "mask_token_id",
}
# Keys of tokens that end a text besides eos_token_id: the ends of a turn and of a message.
OTHER_END_KEYS = ("eot_token_id", "eom_token_id")
USER_DEFINED_SCORE = -1000.0  # what llama.cpp's own converter writes


@dataclass(frozen=True)
class PreTokenizer:
    """How byte-level BPE splits a text into words, in the form of tokenizer.json."""

    pre_tokenizer: Mapping[str, Any]
    normalizer: Mapping[str, Any] | None = None
    ignore_merges: bool = False
    """Whether a word that is a token becomes that token, whatever the merges give."""
    add_bos: bool = False
    """Whether llama.cpp puts the first token before a text where the file does not say."""


def _byte_level(use_regex: bool) -> dict[str, Any]:
    return {
        "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
        "use_regex": use_regex,
    }  # fmt: skip


def _split(digits: str) -> dict[str, Any]:
    """The pattern of cl100k and its descendants, with a pattern of the digits of one word."""
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits +
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )  # fmt: skip
    split = {
        "type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False,
    }  # fmt: skip
    return {"type": "Sequence", "pretokenizers": [split, _byte_level(False)]}


_DIGITS = {"type": "Digits", "individual_digits": True}
# By the first of the names that llama.cpp's src/llama-vocab.cpp knows each by.
PRE_TOKENIZERS = {
    "gpt-2": PreTokenizer(_byte_level(True)),
    "llama-bpe": PreTokenizer(_split(r"\p{N}{1,3}"), ignore_merges=True, add_bos=True),
    "dbrx": PreTokenizer(_split(r"\p{N}{1,3}")),
    "qwen2": PreTokenizer(_split(r"\p{N}"), normalizer={"type": "NFC"}),
    "smollm": PreTokenizer(
        {"type": "Sequence", "pretokenizers": [_DIGITS, _byte_level(True)]},
    ),
}
ALIASES = {
    "llama3": "llama-bpe", "llama-v3": "llama-bpe", "falcon3": "llama-bpe",
    "phi-2": "gpt-2", "deepseek-r1-qwen": "qwen2", "smaug-bpe": "dbrx", "refact": "smollm",
    "starcoder": "smollm",
}  # fmt: skip


def write_files(metadata: Mapping[str, Any], folder: Path, source: str | Path) -> None:
    """Write the tokenizer's files in Hugging Face's form.

    Args:
        metadata: All keys of a GGUF file.
        folder: Where the files go.
        source: The GGUF file, for messages.

    Raises:
        TokenizerError: The file has no vocabulary, or one of a kind that is not known.
    """
    kind = metadata.get(f"{PREFIX}model")
    writers = {"llama": _write_sentencepiece, "gpt2": _write_bytepair}
    if kind not in writers:
        raise TokenizerError(
            f"{source}: the vocabulary is of the kind {kind!r}, and {' and '.join(writers)} are "
            "read. Use the checkpoint that the file was made from."
        )
    tokens = list(metadata.get(f"{PREFIX}tokens") or ())
    kinds = list(metadata.get(f"{PREFIX}token_type") or [NORMAL] * len(tokens))
    if not tokens or len(kinds) != len(tokens):
        raise TokenizerError(
            f"{source}: {PREFIX}tokens has {len(tokens)} entries and {PREFIX}token_type "
            f"{len(kinds)}. The file is damaged; copy it again."
        )
    for key in ROLES.values():
        token_id = metadata.get(PREFIX + key)
        if token_id is not None and int(token_id) >= len(tokens):
            raise TokenizerError(
                f"{source}: {PREFIX}{key} is {token_id}, and there are {len(tokens)} tokens. The "
                "file is damaged; copy it again."
            )
    writers[kind](metadata, tokens, kinds, folder, source)


def end_ids(metadata: Mapping[str, Any]) -> list[int]:
    """Return the ids that end a text, the file's `eos_token_id` first."""
    ids = [metadata.get(PREFIX + key) for key in ("eos_token_id", *OTHER_END_KEYS)]
    return list(dict.fromkeys(token_id for token_id in ids if token_id is not None))


def _write_sentencepiece(
    metadata: Mapping[str, Any],
    tokens: list[str],
    kinds: list[int],
    folder: Path,
    source: str | Path,
) -> None:
    scores = metadata.get(f"{PREFIX}scores")
    if scores is None or len(scores) != len(tokens):
        raise TokenizerError(
            f"{source}: {PREFIX}scores has {0 if scores is None else len(scores)} entries and "
            f"there are {len(tokens)} tokens. The file is damaged; copy it again."
        )
    unknown = metadata.get(f"{PREFIX}unknown_token_id", 0)
    pieces = []
    for token_id, (token, score, kind) in enumerate(zip(tokens, scores, kinds, strict=True)):
        # The file has runs of spaces without marks, and <unk> as a control token.
        piece = proto.SPACE * len(token) if kind == USER_DEFINED and not token.strip(" ") else token
        pieces.append((piece, float(score), UNKNOWN if token_id == unknown else int(kind)))
    prefix = bool(metadata.get(f"{PREFIX}add_space_prefix", True))
    model = proto.build(
        pieces,
        proto.BPE,
        byte_fallback=BYTE in kinds,
        dummy_prefix=prefix,
        remove_extra_spaces=bool(metadata.get(f"{PREFIX}remove_extra_whitespaces", False)),
    )
    trainer = model.trainer_spec
    for role in ("bos", "eos", "pad"):
        role_id = metadata.get(PREFIX + ROLES[f"{role}_token"])
        if role_id is not None:
            setattr(trainer, f"{role}_id", role_id)
            setattr(trainer, f"{role}_piece", pieces[role_id][0])
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    # transformers goes by the class and its settings alone, not by those inside the model.
    gemma = str(metadata.get("general.architecture")).startswith("gemma") and not prefix
    config = {
        "tokenizer_class": "GemmaTokenizer" if gemma else "LlamaTokenizer",
        **({} if prefix or gemma else {"add_prefix_space": False}),
        # A space is put before a text that begins with one, too: so do SentencePiece and llama.cpp.
        OWN_PREFIX: BY_MODEL,
        "add_bos_token": bool(metadata.get(f"{PREFIX}add_bos_token", True)),
        "add_eos_token": bool(metadata.get(f"{PREFIX}add_eos_token", False)),
    }
    _write_config(metadata, tokens, folder, config)


def _write_bytepair(
    metadata: Mapping[str, Any],
    tokens: list[str],
    kinds: list[int],
    folder: Path,
    source: str | Path,
) -> None:
    name = metadata.get(f"{PREFIX}pre")
    rule = PRE_TOKENIZERS.get(ALIASES.get(str(name), str(name)))
    if rule is None:
        known = ", ".join((*PRE_TOKENIZERS, *ALIASES))
        raise TokenizerError(
            f"{source}: the vocabulary splits texts by the rule named {name!r} ({PREFIX}pre), and "
            f"the file does not hold the rule itself. Known: {known}. Use the checkpoint that the "
            "file was made from."
        )
    merges = [merge.split(" ") for merge in metadata.get(f"{PREFIX}merges") or ()]
    if any(len(pair) != 2 for pair in merges):
        raise TokenizerError(
            f"{source}: {PREFIX}merges has an entry that is no pair. The file is damaged; copy it "
            "again."
        )
    added = [
        {
            "id": token_id, "content": token, "single_word": False, "lstrip": False,
            "rstrip": False, "normalized": False, "special": kind == CONTROL,
        }
        for token_id, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind in (CONTROL, USER_DEFINED)
    ]  # fmt: skip
    bos = metadata.get(f"{PREFIX}bos_token_id")
    add_bos = bool(metadata.get(f"{PREFIX}add_bos_token", rule.add_bos))
    ordinary = {
        token: token_id
        for token_id, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind not in (CONTROL, USER_DEFINED, UNUSED)
    }
    post_processor = _byte_level(True)
    if add_bos and bos is not None:
        post_processor = _bos_post_processor(tokens[bos], bos)
    definition = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": rule.normalizer, "pre_tokenizer": rule.pre_tokenizer,
        "post_processor": post_processor,
        "decoder": {**_byte_level(True), "add_prefix_space": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
            "ignore_merges": rule.ignore_merges, "vocab": ordinary, "merges": merges,
        },
    }  # fmt: skip
    text = json.dumps(definition, ensure_ascii=False)
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    _write_config(metadata, tokens, folder, {"tokenizer_class": "PreTrainedTokenizerFast"})


def _bos_post_processor(token: str, token_id: int) -> dict[str, Any]:
    """A post-processor that puts one token before every text."""
    special = {"SpecialToken": {"id": token, "type_id": 0}}
    first = {"Sequence": {"id": "A", "type_id": 0}}
    second = {"Sequence": {"id": "B", "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [special, first],
        "pair": [special, first, special, second],
        "special_tokens": {token: {"id": token, "ids": [token_id], "tokens": [token]}},
    }


def _write_config(
    metadata: Mapping[str, Any], tokens: Sequence[str], folder: Path, config: dict[str, Any]
) -> None:
    for role, key in ROLES.items():
        if (token_id := metadata.get(PREFIX + key)) is not None:
            config[role] = tokens[token_id]
    if template := metadata.get(CHAT_TEMPLATE):
        config["chat_template"] = template
    text = json.dumps(config, ensure_ascii=False, indent=2)
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


def read_files(folder: Path, vocabulary_size: int) -> dict[str, Any]:
    """Convert the tokenizer's files in a folder to the keys of a GGUF file.

    Args:
        folder: Files in Hugging Face's form, as a tokenizer's `save` writes them.
        vocabulary_size: Rows of the embedding table; those without a token are marked unused.

    Raises:
        TokenizerError: llama.cpp does not implement what this tokenizer does.
    """
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    models = sorted(folder.glob("*.model"))
    if models:
        metadata = _read_sentencepiece(models[0], config)
    elif (folder / "tokenizer.json").is_file():
        metadata = _read_bytepair(folder / "tokenizer.json", config)
    else:
        raise TokenizerError(
            f"{folder}: neither tokenizer.json nor a .model file; llama.cpp reads no other kind of "
            "vocabulary."
        )
    tokens, kinds = metadata[f"{PREFIX}tokens"], metadata[f"{PREFIX}token_type"]
    for token_id in range(len(tokens), vocabulary_size):
        tokens.append(f"[PAD{token_id}]")
        kinds.append(UNUSED)
        if f"{PREFIX}scores" in metadata:
            metadata[f"{PREFIX}scores"].append(USER_DEFINED_SCORE)
    ids = {token: token_id for token_id, token in enumerate(tokens)}
    for role, key in ROLES.items():
        named = config.get(role)
        token = named.get("content") if isinstance(named, Mapping) else named
        if token in ids:
            metadata[PREFIX + key] = ids[token]
    template = folder / "chat_template.jinja"
    if template.is_file():
        metadata[CHAT_TEMPLATE] = template.read_text(encoding="utf-8")
    elif isinstance(config.get("chat_template"), str):
        metadata[CHAT_TEMPLATE] = config["chat_template"]
    return metadata


def _read_sentencepiece(path: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    model = proto.parse(path.read_bytes(), path)
    if model.trainer_spec.model_type != proto.BPE:
        raise TokenizerError(
            f"{path}: a unigram model of SentencePiece, and llama.cpp reads BPE models for "
            "decoders. Keep the checkpoint in another form."
        )
    if model.normalizer_spec.precompiled_charsmap:
        raise TokenizerError(
            f"{path}: the model normalizes texts ({model.normalizer_spec.name}), which llama.cpp "
            "does not for BPE models: ids would differ. Keep the checkpoint in another form."
        )
    tokens = [entry.piece for entry in model.pieces]
    scores = [float(entry.score) for entry in model.pieces]
    kinds = [int(entry.type) for entry in model.pieces]
    added = {int(key): entry for key, entry in config.get("added_tokens_decoder", {}).items()}
    for token_id, entry in sorted(added.items()):
        if token_id < len(tokens):
            continue
        tokens.append(entry["content"])
        scores.append(USER_DEFINED_SCORE)
        kinds.append(CONTROL if entry.get("special") else USER_DEFINED)
    return {
        f"{PREFIX}model": "llama",
        f"{PREFIX}pre": "default",
        f"{PREFIX}tokens": tokens,
        f"{PREFIX}scores": scores,
        f"{PREFIX}token_type": kinds,
        f"{PREFIX}add_space_prefix": bool(
            model.normalizer_spec.add_dummy_prefix and config.get("add_prefix_space") is not False
        ),
        f"{PREFIX}add_bos_token": bool(config.get("add_bos_token", True)),
        f"{PREFIX}add_eos_token": bool(config.get("add_eos_token", False)),
    }


def _read_bytepair(path: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    definition = json.loads(path.read_text(encoding="utf-8"))
    model = definition["model"]
    name = _pre_tokenizer_name(definition)
    if model.get("type", "BPE") != "BPE" or name is None:
        known = ", ".join(PRE_TOKENIZERS)
        raise TokenizerError(
            f"{path}: llama.cpp knows a byte-level BPE by the name of its splitting rule, and this "
            f"one is none of {known}: its ids would differ. Keep the checkpoint in another form."
        )
    vocabulary = dict(model["vocab"])
    added = {entry["id"]: entry for entry in definition.get("added_tokens", ())}
    vocabulary |= {entry["content"]: token_id for token_id, entry in added.items()}
    tokens, kinds = [], []
    by_id = {token_id: token for token, token_id in vocabulary.items()}
    for token_id in range(max(by_id) + 1):
        token = by_id.get(token_id)
        tokens.append(f"[PAD{token_id}]" if token is None else token)
        if token is None:
            kinds.append(UNUSED)
        elif token_id in added:
            kinds.append(CONTROL if added[token_id].get("special") else USER_DEFINED)
        else:
            kinds.append(NORMAL)
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    post_processor = definition.get("post_processor") or {}
    return {
        f"{PREFIX}model": "gpt2",
        f"{PREFIX}pre": name,
        f"{PREFIX}tokens": tokens,
        f"{PREFIX}token_type": kinds,
        f"{PREFIX}merges": merges,
        f"{PREFIX}add_bos_token": _adds_first_token(post_processor),
    }


def _pre_tokenizer_name(definition: Mapping[str, Any]) -> str | None:
    """The name of the splitting rule, None for one that is not known."""
    for name, rule in PRE_TOKENIZERS.items():
        same = _without_offsets(definition.get("pre_tokenizer")) == _without_offsets(
            rule.pre_tokenizer
        )
        same_merges = bool(definition["model"].get("ignore_merges")) == rule.ignore_merges
        if same and same_merges and definition.get("normalizer") == rule.normalizer:
            return name
    return None


def _without_offsets(part: object) -> object:
    """A part of tokenizer.json without the settings of offsets, which change no id."""
    if isinstance(part, Mapping):
        return {
            key: _without_offsets(value) for key, value in part.items() if key != "trim_offsets"
        }
    return [_without_offsets(entry) for entry in part] if isinstance(part, list) else part


def _adds_first_token(post_processor: Mapping[str, Any]) -> bool:
    """Whether a post-processor puts a token before a text."""
    parts = post_processor.get("processors") or [post_processor]
    singles = [part.get("single") for part in parts if part.get("type") == "TemplateProcessing"]
    return any(single and "SpecialToken" in single[0] for single in singles)
