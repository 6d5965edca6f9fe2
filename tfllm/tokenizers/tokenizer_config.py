"""The files beside a vocabulary: settings, special tokens, added tokens, chat template.

Source: transformers 5 (`PreTrainedTokenizerBase._from_pretrained`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfllm.errors import TokenizerError

if TYPE_CHECKING:
    import tokenizers

# A token in a file: its text, or a table with its text and flags.
TokenEntry = str | Mapping[str, Any]

CONFIG, SPECIALS_MAP, ADDED_TOKENS_FILE, CHAT_TEMPLATE = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
CHAT_TEMPLATES = "additional_chat_templates"  # a folder of further templates, each with its name
ADDED_TOKENS_DECODER = "added_tokens_decoder"  # key of tokenizer_config.json: id -> added token
# Our name of a special token -> Hugging Face's names; the first one in a file counts.
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
# The class of a model's tokenizer where no file names it: early files of T5 lack the settings.
MODEL_CONFIG = "config.json"
CLASSES = {
    "t5": "T5Tokenizer", "mt5": "MT5Tokenizer", "mbart": "MBartTokenizer",
    "marian": "MarianTokenizer", "bert": "BertTokenizer", "distilbert": "BertTokenizer",
    "electra": "BertTokenizer", "roberta": "RobertaTokenizer", "bart": "RobertaTokenizer",
    "xlm-roberta": "XLMRobertaTokenizer", "camembert": "CamembertTokenizer",
    "mpnet": "MPNetTokenizer", "albert": "AlbertTokenizer",
    "gpt2": "GPT2Tokenizer", "opt": "GPT2Tokenizer", "gpt_neox": "GPTNeoXTokenizer",
    "qwen2": "Qwen2Tokenizer", "qwen3": "Qwen2Tokenizer",
}  # fmt: skip
# Spellings that are used where no file names a special token.
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
    """The token that begins a row: CLS where there is one."""
    eos_token: str | None = None
    """The token that ends a row: SEP where there is one."""
    mask_token: str | None = None

    def tokens(self) -> list[str]:
        """Return the tokens, each once."""
        tokens = (getattr(self, entry.name) for entry in fields(self))
        return list(dict.fromkeys(token for token in tokens if token))


@dataclass(frozen=True)
class AddedToken:
    """A token besides those of the vocabulary's own model, and how it is matched in a text."""

    content: str
    special: bool = True
    """Whether `decode` skips it."""
    normalized: bool = False
    """Whether it is matched after normalization, not literally."""
    lstrip: bool = False
    """Whether the white space before it belongs to it."""
    rstrip: bool = False
    """Whether the white space after it belongs to it."""
    single_word: bool = False
    """Whether it is matched only where no letter or digit is next to it."""

    @property
    def plain(self) -> bool:
        """Whether it is matched literally."""
        return not (self.normalized or self.lstrip or self.rstrip or self.single_word)

    @classmethod
    def from_backend(cls, token: tokenizers.AddedToken) -> AddedToken:
        """Convert a token of the `tokenizers` package."""
        return cls(**{entry.name: getattr(token, entry.name) for entry in fields(cls)})

    def to_backend(self) -> tokenizers.AddedToken:
        """Convert to a token of the `tokenizers` package."""
        import tokenizers

        return tokenizers.AddedToken(**vars(self))


@dataclass(frozen=True)
class TokenizerConfig:
    """The settings of a directory besides the vocabulary."""

    config: Mapping[str, Any] = field(default_factory=dict)
    """tokenizer_config.json, unchanged."""
    named: Mapping[str, Any] = field(default_factory=dict)
    """The entries of tokenizer_config.json and, without `added_tokens_decoder`, those of
    special_tokens_map.json, which override them."""
    chat_template: str | None = None
    added_tokens: Mapping[int, AddedToken] = field(default_factory=dict)
    """id -> token: of `added_tokens_decoder`, else of added_tokens.json."""
    model_type: str = ""
    """`model_type` of the model's config.json."""
    class_by_model: bool = False
    """Whether the class is the usual one of the model's type, since no file names one."""

    @property
    def tokenizer_class(self) -> str:
        """Hugging Face's class name without `Fast`, "" where none is given."""
        name = str(self.named.get("tokenizer_class") or "")
        return name if name in GENERIC_CLASSES else name.removesuffix("Fast")

    def check_truncation(self, source: str | Path = CONFIG) -> None:
        """Check that rows are truncated on the right.

        Args:
            source: The file, for messages.

        Raises:
            TokenizerError: They are truncated on the left.
        """
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
        """Return tokenizer_config.json with the special tokens of the other files and the class."""
        named = {key: self.named[key] for key in SPECIAL_TOKEN_KEYS if key in self.named}
        return {**self.config, **named}

    def of_class(self, name: str) -> TokenizerConfig:
        """Return the settings with another class."""
        changed = {"tokenizer_class": name}
        return replace(self, config={**self.config, **changed}, named={**self.named, **changed})

    def with_defaults(self, defaults: Mapping[str, str | None]) -> TokenizerConfig:
        """Return the settings with special tokens where the files name none."""
        return replace(self, named={**defaults, **self.named})

    def role_tokens(self, known: Iterable[str]) -> SpecialTokens:
        """Return the special tokens by role: as named, else by their spelling among `known`."""
        tokens = set(known)
        by_role = {}
        for role, keys in SPECIAL_TOKEN_SOURCES.items():
            named = (content(self.named[key]) for key in keys if self.named.get(key) is not None)
            spelled = (
                name for name in COMMON_SPELLINGS[role] if name in tokens and not self._names_any()
            )
            by_role[role] = next((name for name in (*named, *spelled)), None)
        return SpecialTokens(**by_role)

    def _names_any(self) -> bool:
        return any(self.named.get(key) for keys in SPECIAL_TOKEN_SOURCES.values() for key in keys)

    def special_tokens(self) -> list[AddedToken]:
        """Return all special tokens that the files name, each once, in the order of new ids."""
        own = [
            key for key in self.named if key.endswith("_token") and key not in SPECIAL_TOKEN_KEYS
        ]
        entries = [self.named[key] for key in (*SPECIAL_TOKEN_KEYS, *own) if key in self.named]
        for key in ("extra_special_tokens", "additional_special_tokens"):
            extra = self.named.get(key) or []
            entries += extra.values() if isinstance(extra, Mapping) else extra
            if extra and not isinstance(extra, Mapping):
                break  # the older key counts only where the newer one names no list
        added = {token.content: token for token in self.added_tokens.values()}
        tokens = [parse_token(entry) for entry in entries if _is_token(entry)]
        return list({each.content: added.get(each.content, each) for each in tokens}.values())


# Classes that use tokenizer.json unchanged.
GENERIC_CLASSES = (
    "", "PreTrainedTokenizerFast", "PreTrainedTokenizer", "TokenizersBackend", "PythonBackend",
)  # fmt: skip


def read_tokenizer_config(folder: Path) -> TokenizerConfig:
    """Read the settings of a directory; each file is optional.

    Raises:
        TokenizerError: A file is damaged, or asks for what is not supported.
    """
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
            _check_entry(named[key], folder / CONFIG, key)
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
        special = {token.content for token in settings.special_tokens()}
        listed = {
            token_id: {
                "content": text, "special": text in special, "normalized": text not in special,
            }
            for text, token_id in _json_if_there(path).items()
        }  # fmt: skip
    try:
        tokens = {int(token_id): parse_token(entry) for token_id, entry in listed.items()}
    except (AttributeError, KeyError, TypeError, ValueError):
        raise TokenizerError(
            f"{path}: expected added tokens with their ids, found {str(listed)[:80]}."
        ) from None
    contents = [token.content for token in tokens.values()]
    if len(set(contents)) != len(listed) or not all(contents):
        raise TokenizerError(f"{path}: an added token or an id stands twice, or a token is empty.")
    return dict(sorted(tokens.items()))


def _template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The chat template. Raises TokenizerError for several of which none is the default."""
    template = config.get("chat_template")
    by_name: dict[object, object] = {}
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


def parse_token(entry: AddedToken | TokenEntry) -> AddedToken:
    """Parse a token from its text or from a table with its flags, as Hugging Face does.

    Raises:
        KeyError: The table has no "content".
        TypeError: Its "content" is no text.
    """
    if isinstance(entry, AddedToken):
        return entry
    if isinstance(entry, str):
        return AddedToken(entry)
    special = bool(entry.get("special", True))
    flags = {name: bool(entry.get(name)) for name in ("lstrip", "rstrip", "single_word")}
    normalized = bool(entry.get("normalized", not special))
    return AddedToken(_content_of(entry), special, normalized, **flags)


def _is_token(entry: object) -> bool:
    return isinstance(entry, str) or isinstance(entry, Mapping) and "content" in entry


def _content_of(entry: Mapping[str, Any]) -> str:
    if not isinstance(entry["content"], str):
        raise TypeError
    return entry["content"]


def _check_entry(entry: object, path: Path, key: str) -> None:
    """Refuse an entry of a special token that is neither a text nor a table with one."""
    text = entry.get("content") if isinstance(entry, Mapping) else entry
    if not isinstance(text, str):
        raise TokenizerError(f"{path}: '{key}' is {entry!r}; write the token's text.")


def write_tokenizer_config(
    folder: Path,
    special_tokens: SpecialTokens,
    added: Iterable[str],
    config: Mapping[str, Any],
    chat_template: str | None,
    added_tokens: Mapping[int, AddedToken] | None = None,
) -> None:
    """Write the files beside a vocabulary.

    Args:
        folder: Where they go.
        special_tokens: By role.
        added: Special tokens without a role, in the order of ids.
        config: tokenizer_config.json; keys that are not about special tokens are kept.
        chat_template: The Jinja template of conversations.
        added_tokens: Tokens that no vocabulary file holds, by id.
    """
    spelled = {
        key: content(config[key]) for key in SPECIAL_TOKEN_KEYS if config.get(key) is not None
    }
    for role, keys in SPECIAL_TOKEN_SOURCES.items():
        if (spelling := getattr(special_tokens, role)) and not any(key in spelled for key in keys):
            spelled[keys[-1]] = spelling
    known = {*special_tokens.tokens(), *spelled.values()}
    others = [token for token in added if token not in known]
    extra = {"additional_special_tokens": others} if others else {}
    kept = {
        key: value
        for key, value in config.items()
        if key not in ("chat_template", ADDED_TOKENS_DECODER)
    }
    if added_tokens:
        kept[ADDED_TOKENS_DECODER] = {
            str(token_id): vars(token) for token_id, token in added_tokens.items()
        }
    kept.setdefault("tokenizer_class", "PreTrainedTokenizerFast")
    write_json(folder / CONFIG, {**kept, **spelled, **extra})
    write_json(folder / SPECIALS_MAP, {**spelled, **extra})
    if chat_template:
        (folder / CHAT_TEMPLATE).write_text(chat_template, encoding="utf-8", newline="\n")


def content(entry: TokenEntry) -> str:
    """Return the text of a special token, which a file has as such or in a table."""
    return str(entry["content"] if isinstance(entry, Mapping) else entry)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        TokenizerError: Names the file and line of what is wrong.
    """
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
    """Read the text of a UTF-8 file, without a byte order mark.

    Raises:
        TokenizerError: The file cannot be read, or is not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path}: not UTF-8 text (byte {error.start}).") from None
    except OSError as error:
        raise TokenizerError(f"{path}: cannot be read: {error.strerror}.") from None


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write an object as indented JSON in UTF-8."""
    path.write_text(json.dumps(data, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _json_if_there(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
