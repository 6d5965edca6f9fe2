"""What stands beside a vocabulary: settings, special tokens, added tokens, chat template.

The rules are those of transformers 5 (`PreTrainedTokenizerBase._from_pretrained`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from tfllm.errors import TokenizerError

CONFIG, SPECIALS_MAP, ADDED_TOKENS_FILE, CHAT_TEMPLATE = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
CHAT_TEMPLATES = "additional_chat_templates"  # a folder of further templates, each with its name
ADDED_TOKENS_DECODER = "added_tokens_decoder"  # key of tokenizer_config.json: id -> added token
# Hugging Face's names of special tokens -> ours; a name further left wins.
SPECIAL_TOKEN_SOURCES = {
    "pad_token": ("pad_token",),
    "unk_token": ("unk_token",),
    "bos_token": ("cls_token", "bos_token"),
    "eos_token": ("sep_token", "eos_token"),
    "mask_token": ("mask_token",),
}
# Hugging Face's names in the order in which tokens that the vocabulary lacks are numbered.
SPECIAL_TOKEN_KEYS = (
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
)  # fmt: skip
# The class of a model's tokenizer where no file names it: first files of T5 lack the settings.
MODEL_CONFIG = "config.json"
CLASSES = {
    "t5": "T5Tokenizer", "mt5": "MT5Tokenizer", "mbart": "MBartTokenizer",
    "marian": "MarianTokenizer", "bert": "BertTokenizer", "distilbert": "BertTokenizer",
    "electra": "BertTokenizer", "roberta": "RobertaTokenizer", "bart": "RobertaTokenizer",
    "xlm-roberta": "XLMRobertaTokenizer", "gpt2": "GPT2Tokenizer", "qwen2": "Qwen2Tokenizer",
    "qwen3": "Qwen2Tokenizer",
}  # fmt: skip
# Spellings that are taken where no file names a special token.
COMMON_SPELLINGS = {
    "pad_token": ("<pad>", "[PAD]", "<|padding|>", "<|pad|>", "<|finetune_right_pad_id|>"),
    "unk_token": ("<unk>", "[UNK]"),
    "bos_token": ("<s>", "[CLS]", "<bos>", "<|begin_of_text|>", "<|endoftext|>"),
    "eos_token": ("</s>", "[SEP]", "<eos>", "<|end_of_text|>", "<|endoftext|>"),
    "mask_token": ("<mask>", "[MASK]"),
}


@dataclass(frozen=True)
class SpecialTokens:
    """The special tokens by role, None where a vocabulary has none."""

    pad_token: str | None = None
    unk_token: str | None = None
    bos_token: str | None = None
    """the token that begins a row: CLS where there is one"""
    eos_token: str | None = None
    """the token that ends a row: SEP where there is one"""
    mask_token: str | None = None

    def tokens(self) -> list[str]:
        """Return the tokens, each once."""
        tokens = (getattr(self, entry.name) for entry in fields(self))
        return list(dict.fromkeys(token for token in tokens if token))


@dataclass(frozen=True)
class AddedToken:
    """A token besides those of the vocabulary's own model, and how it is found in a text."""

    content: str
    special: bool = True
    """`decode` leaves it out"""
    normalized: bool = False
    """found after normalisation, not as it is written"""
    lstrip: bool = False
    """the white space before it belongs to it"""
    rstrip: bool = False
    single_word: bool = False
    """found only where no letter or digit stands beside it"""

    @property
    def plain(self) -> bool:
        """Whether it is found exactly where it is written."""
        return not (self.normalized or self.lstrip or self.rstrip or self.single_word)

    def rust(self) -> Any:
        """The same of the `tokenizers` package."""
        from tokenizers import AddedToken as Rust

        return Rust(**vars(self))


@dataclass(frozen=True)
class TokenizerConfig:
    """A directory's settings besides the vocabulary."""

    config: Mapping[str, Any] = field(default_factory=dict)
    """tokenizer_config.json as it stands"""
    named: Mapping[str, Any] = field(default_factory=dict)
    """both files' entries; special_tokens_map.json counts where no `added_tokens_decoder` is, and
    wins then"""
    chat_template: str | None = None
    added_tokens: Mapping[int, AddedToken] = field(default_factory=dict)
    """id -> token: of `added_tokens_decoder`, else of added_tokens.json"""
    model_type: str = ""
    """of the model's config.json"""
    class_by_model: bool = False
    """The class is the one that the model's type has, since no file names one."""

    @property
    def tokenizer_class(self) -> str:
        """Hugging Face's class name without `Fast`, "" where none is given."""
        name = str(self.named.get("tokenizer_class") or "")
        return name if name in GENERIC_CLASSES else name.removesuffix("Fast")

    def check_truncation(self, source: str | Path = CONFIG) -> None:
        """Raises TokenizerError where texts that are too long are to lose their beginning."""
        if self.config.get("truncation_side") == "left":
            raise TokenizerError(
                f"{source}: 'truncation_side' left is not known: rows that are too long lose their "
                "end here. Set it to right if the model was trained so."
            )

    @property
    def splits_special_tokens(self) -> bool:
        """Whether special tokens written in a text are ordinary text."""
        return bool(self.config.get("split_special_tokens"))

    def own_config(self) -> dict[str, Any]:
        """tokenizer_config.json with the special tokens that the other files and the class name."""
        named = {key: self.named[key] for key in SPECIAL_TOKEN_KEYS if key in self.named}
        return {**self.config, **named}

    def of_class(self, name: str) -> TokenizerConfig:
        """The settings with another class."""
        changed = {"tokenizer_class": name}
        return replace(self, config={**self.config, **changed}, named={**self.named, **changed})

    def with_defaults(self, defaults: Mapping[str, str | None]) -> TokenizerConfig:
        """The settings of a class whose special tokens are `defaults` where nothing is said."""
        return replace(self, named={**defaults, **self.named})

    def role_tokens(self, known: Iterable[str]) -> SpecialTokens:
        """The special tokens: as named, else by their usual spelling among the tokens `known`."""
        tokens = set(known)
        found = {}
        for role, keys in SPECIAL_TOKEN_SOURCES.items():
            given = (content(self.named[key]) for key in keys if self.named.get(key) is not None)
            usual = (
                name for name in COMMON_SPELLINGS[role] if name in tokens and not self._names_any()
            )
            found[role] = next((name for name in (*given, *usual)), None)
        return SpecialTokens(**found)

    def _names_any(self) -> bool:
        return any(self.named.get(key) for keys in SPECIAL_TOKEN_SOURCES.values() for key in keys)

    def special_tokens(self) -> list[AddedToken]:
        """All that the files name as special tokens, each once, in the order of new ids."""
        own = [
            key for key in self.named if key.endswith("_token") and key not in SPECIAL_TOKEN_KEYS
        ]
        entries = [self.named[key] for key in (*SPECIAL_TOKEN_KEYS, *own) if key in self.named]
        for key in ("extra_special_tokens", "additional_special_tokens"):
            extra = self.named.get(key) or []
            entries += extra.values() if isinstance(extra, Mapping) else extra
            if extra and not isinstance(extra, Mapping):
                break  # the older key counts only where the newer one names no list
        written = {token.content: token for token in self.added_tokens.values()}
        found = [parse_token(entry) for entry in entries if _is_token(entry)]
        return list({one.content: written.get(one.content, one) for one in found}.values())

    def added(self) -> list[str]:
        """Special tokens without a role, in order."""
        named = {
            content(self.named[key])
            for key in SPECIAL_TOKEN_KEYS
            if self.named.get(key) is not None
        }
        return [one.content for one in self.special_tokens() if one.content not in named]


# Classes that take tokenizer.json as it stands.
GENERIC_CLASSES = (
    "", "PreTrainedTokenizerFast", "PreTrainedTokenizer", "TokenizersBackend", "PythonBackend",
)  # fmt: skip


def read_tokenizer_config(folder: Path) -> TokenizerConfig:
    """The settings of a directory, each file optional. Raises TokenizerError."""
    if not folder.is_dir():
        return TokenizerConfig()
    config = _json_if_there(folder / CONFIG)
    if config.get("auto_map"):
        raise TokenizerError(
            f"{folder / CONFIG}: 'auto_map' names a tokenizer's own code, {config['auto_map']}, "
            "which is not run. Remove the key if one of the known classes gives the same tokens."
        )
    model_type = str(_json_if_there(folder / MODEL_CONFIG).get("model_type") or "")
    class_by_model = model_type in CLASSES and not config.get("tokenizer_class")
    if class_by_model:
        config = {**config, "tokenizer_class": CLASSES[model_type]}
    named = dict(config)
    if ADDED_TOKENS_DECODER not in config:
        named |= _json_if_there(folder / SPECIALS_MAP)
    for key in SPECIAL_TOKEN_KEYS:
        if named.get(key) is not None:
            named[key] = _checked(named[key], folder / CONFIG, key)
    template = _template(folder, config)
    settings = TokenizerConfig(config, named, template, {}, model_type, class_by_model)
    return replace(settings, added_tokens=_added_tokens(folder, config, settings))


def _added_tokens(
    folder: Path, config: Mapping[str, Any], settings: TokenizerConfig
) -> dict[int, AddedToken]:
    """id -> token, in the order of ids."""
    listed, path = config.get(ADDED_TOKENS_DECODER), folder / CONFIG
    if listed is None:
        path = folder / ADDED_TOKENS_FILE
        special = {one.content for one in settings.special_tokens()}
        listed = {
            number: {"content": text, "special": text in special, "normalized": text not in special}
            for text, number in _json_if_there(path).items()
        }
    try:
        found = {int(number): parse_token(entry) for number, entry in listed.items()}
    except (AttributeError, KeyError, TypeError, ValueError):
        raise TokenizerError(
            f"{path}: expected added tokens with their ids, found {str(listed)[:80]}."
        ) from None
    contents = [token.content for token in found.values()]
    if len(set(contents)) != len(listed) or not all(contents):
        raise TokenizerError(f"{path}: an added token or an id stands twice, or a token is empty.")
    return dict(sorted(found.items()))


def _template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The chat template. Raises TokenizerError for several of which none is the default."""
    template = config.get("chat_template")
    by_name: dict[Any, Any] = {}
    if isinstance(template, list):  # several, each with its name
        entries = [entry for entry in template if isinstance(entry, Mapping)]
        by_name = {entry.get("name"): entry.get("template") for entry in entries}
    elif isinstance(template, Mapping):
        by_name = dict(template)
    files = sorted((folder / CHAT_TEMPLATES).glob("*.jinja"))
    own = folder / CHAT_TEMPLATE
    if files or own.is_file():  # files win over the settings, all together
        by_name = {path.stem: read_text(path) for path in files}
        if own.is_file():
            by_name["default"] = read_text(own)
    elif template is None or isinstance(template, str):
        return template
    chosen = by_name.get("default")
    if not isinstance(chosen, str):
        raise TokenizerError(
            f"{folder}: chat templates {', '.join(map(str, by_name)) or 'without names'}, and none "
            f"is called 'default'. Name the one to use so, or write it to {CHAT_TEMPLATE}."
        )
    with_tools = by_name.get("tool_use")
    if isinstance(with_tools, str):  # transformers takes it where there are tools
        return f"{{% if tools %}}{with_tools}{{% else %}}{chosen}{{% endif %}}"
    return chosen


def parse_token(entry: Any) -> AddedToken:
    """A token from its text or from a table with its flags, as Hugging Face reads them."""
    if isinstance(entry, AddedToken):
        return entry
    if isinstance(entry, str):
        return AddedToken(entry)
    special = bool(entry.get("special", True))
    flags = {name: bool(entry.get(name)) for name in ("lstrip", "rstrip", "single_word")}
    normalized = bool(entry.get("normalized", not special))
    return AddedToken(_content_of(entry), special, normalized, **flags)


def _is_token(entry: Any) -> bool:
    return isinstance(entry, str) or isinstance(entry, Mapping) and "content" in entry


def _content_of(entry: Mapping[str, Any]) -> str:
    if not isinstance(entry["content"], str):
        raise TypeError
    return entry["content"]


def _checked(entry: Any, path: Path, key: str) -> Any:
    """A special token's entry. Raises TokenizerError where it is neither a text nor a table."""
    text = entry.get("content") if isinstance(entry, Mapping) else entry
    if not isinstance(text, str):
        raise TokenizerError(f"{path}: '{key}' is {entry!r}; write the token's text.")
    return entry


def write_tokenizer_config(
    folder: Path,
    special_tokens: SpecialTokens,
    added: Iterable[str],
    config: Mapping[str, Any],
    chat_template: str | None,
    added_tokens: Mapping[int, AddedToken] | None = None,
) -> None:
    """Writes the files; keys of `config` that are not about special tokens are kept.

    `added_tokens` are those that no vocabulary file holds, by id.
    """
    spelled = {
        key: content(config[key]) for key in SPECIAL_TOKEN_KEYS if config.get(key) is not None
    }
    for role, keys in SPECIAL_TOKEN_SOURCES.items():
        if (spelling := getattr(special_tokens, role)) and not any(key in spelled for key in keys):
            spelled[keys[-1]] = spelling
    known = {*special_tokens.tokens(), *spelled.values()}
    extra = [token for token in added if token not in known]
    beside = {"additional_special_tokens": extra} if extra else {}
    kept = {
        key: value
        for key, value in config.items()
        if key not in ("chat_template", ADDED_TOKENS_DECODER)
    }
    if added_tokens:
        kept[ADDED_TOKENS_DECODER] = {
            str(number): vars(token) for number, token in added_tokens.items()
        }
    kept.setdefault("tokenizer_class", "PreTrainedTokenizerFast")
    write_json(folder / CONFIG, {**kept, **spelled, **beside})
    write_json(folder / SPECIALS_MAP, {**spelled, **beside})
    if chat_template:
        (folder / CHAT_TEMPLATE).write_text(chat_template, encoding="utf-8", newline="\n")


def content(entry: Any) -> str:
    """A special token stands as its text or as a table with its text."""
    return str(entry["content"] if isinstance(entry, Mapping) else entry)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises TokenizerError naming the line."""
    try:
        data = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise TokenizerError(f"{path}:{error.lineno}: not JSON: {error.msg}.") from None
    except RecursionError:
        raise TokenizerError(f"{path}: nested too deeply to be a tokenizer's file.") from None
    if not isinstance(data, dict):
        raise TokenizerError(f"{path}: expected a JSON object, found {type(data).__name__}.")
    return data


def read_text(path: Path) -> str:
    """A UTF-8 file's text. Raises TokenizerError."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path}: not UTF-8 text (byte {error.start}).") from None
    except OSError as error:
        raise TokenizerError(f"{path}: cannot be read: {error.strerror}.") from None


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Indented, UTF-8, keys in the order given."""
    path.write_text(json.dumps(data, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _json_if_there(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
