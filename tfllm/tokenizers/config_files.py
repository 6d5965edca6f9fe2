"""What stands beside a vocabulary: settings, special tokens, chat template."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from tfllm.errors import TokenizerError

CONFIG, SPECIALS_MAP, CHAT_TEMPLATE = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
# Hugging Face's names of special tokens -> ours; a name further left wins.
ROLES = {
    "pad": ("pad_token",),
    "unknown": ("unk_token",),
    "start": ("cls_token", "bos_token"),
    "end": ("sep_token", "eos_token"),
    "mask": ("mask_token",),
}
# The class of a model's tokenizer where no file names it: first files of T5 lack the settings.
MODEL_CONFIG = "config.json"
CLASSES = {
    "t5": "T5Tokenizer", "mt5": "MT5Tokenizer", "mbart": "MBartTokenizer",
    "marian": "MarianTokenizer",
}  # fmt: skip
# Spellings that are taken where no file names a special token.
USUAL = {
    "pad": ("<pad>", "[PAD]", "<|padding|>", "<|pad|>", "<|finetune_right_pad_id|>"),
    "unknown": ("<unk>", "[UNK]"),
    "start": ("<s>", "[CLS]", "<bos>", "<|begin_of_text|>", "<|endoftext|>"),
    "end": ("</s>", "[SEP]", "<eos>", "<|end_of_text|>", "<|endoftext|>"),
    "mask": ("<mask>", "[MASK]"),
}


@dataclass(frozen=True)
class Names:
    """The spelling of special tokens, None where there is none."""

    pad: str | None = None
    unknown: str | None = None
    start: str | None = None
    end: str | None = None
    mask: str | None = None

    def present(self) -> list[str]:
        """The spellings, each once."""
        found = (getattr(self, entry.name) for entry in fields(self))
        return list(dict.fromkeys(name for name in found if name))


@dataclass(frozen=True)
class Settings:
    """A directory's settings besides the vocabulary."""

    config: Mapping[str, Any] = field(default_factory=dict)
    """tokenizer_config.json as it stands"""
    named: Mapping[str, Any] = field(default_factory=dict)
    """both files' entries; tokenizer_config.json wins"""
    chat_template: str | None = None

    @property
    def tokenizer_class(self) -> str:
        """Hugging Face's class name without `Fast`, "" where none is given."""
        return str(self.named.get("tokenizer_class") or "").removesuffix("Fast")

    def names(self, known: Iterable[str]) -> Names:
        """The special tokens: as named, else by their usual spelling among the tokens `known`."""
        tokens = set(known)
        found = {}
        for role, keys in ROLES.items():
            given = (content(self.named[key]) for key in keys if self.named.get(key) is not None)
            usual = (name for name in USUAL[role] if name in tokens and not self._names_any())
            found[role] = next((name for name in (*given, *usual)), None)
        return Names(**found)

    def _names_any(self) -> bool:
        return any(self.named.get(key) for keys in ROLES.values() for key in keys)

    def added(self) -> list[str]:
        """Further special tokens, in order."""
        extra = self.named.get("additional_special_tokens") or []
        extra = extra or self.named.get("extra_special_tokens") or []
        return [content(entry) for entry in (extra.values() if isinstance(extra, dict) else extra)]


def read(folder: Path) -> Settings:
    """The settings of a directory, each file optional. Raises TokenizerError."""
    if not folder.is_dir():
        return Settings()
    config = _json_if_there(folder / CONFIG)
    model_type = _json_if_there(folder / MODEL_CONFIG).get("model_type")
    if model_type in CLASSES and not config.get("tokenizer_class"):
        config = {**config, "tokenizer_class": CLASSES[model_type]}
    named = {**_json_if_there(folder / SPECIALS_MAP), **config}
    template = config.get("chat_template")
    if isinstance(template, list):  # several, each with its name
        by_name = {entry.get("name"): entry.get("template") for entry in template}
        template = by_name.get("default") or next(iter(by_name.values()), None)
    path = folder / CHAT_TEMPLATE
    return Settings(config, named, text_file(path) if path.is_file() else template)


def write(
    folder: Path,
    names: Names,
    added: Iterable[str],
    config: Mapping[str, Any],
    chat_template: str | None,
) -> None:
    """Writes the files; keys of `config` that are not about special tokens are kept."""
    spelled: dict[str, Any] = {}
    for role, keys in ROLES.items():
        if spelling := getattr(names, role):
            given = [key for key in keys if config.get(key) is not None]
            spelled |= dict.fromkeys(given or keys[-1:], spelling)
    extra = [token for token in added if token not in names.present()]
    if extra:
        spelled["additional_special_tokens"] = extra
    kept = {key: value for key, value in config.items() if key != "chat_template"}
    kept.setdefault("tokenizer_class", "PreTrainedTokenizerFast")
    write_json(folder / CONFIG, {**kept, **spelled})
    write_json(folder / SPECIALS_MAP, spelled)
    if chat_template:
        (folder / CHAT_TEMPLATE).write_text(chat_template, encoding="utf-8", newline="\n")


def content(entry: Any) -> str:
    """A special token stands as its text or as a table with its text."""
    return str(entry["content"] if isinstance(entry, Mapping) else entry)


def json_file(path: Path) -> dict[str, Any]:
    """A JSON object. Raises TokenizerError naming the line."""
    try:
        data = json.loads(text_file(path))
    except json.JSONDecodeError as error:
        raise TokenizerError(f"{path}:{error.lineno}: not JSON: {error.msg}.") from None
    except RecursionError:
        raise TokenizerError(f"{path}: nested too deeply to be a tokenizer's file.") from None
    if not isinstance(data, dict):
        raise TokenizerError(f"{path}: expected a JSON object, found {type(data).__name__}.")
    return data


def text_file(path: Path) -> str:
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
    return json_file(path) if path.is_file() else {}
