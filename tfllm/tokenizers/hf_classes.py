"""Hugging Face's tokenizer classes: which are known, and what a class changes of its files.

As in transformers 5, where a class builds its tokenizer anew from the vocabulary of a
tokenizer.json and the settings beside it (`models/*/tokenization_*.py`). What a tokenizer.json says
and no setting contradicts is kept.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfllm.errors import TokenizerError
from tfllm.tokenizers import sentencepiece_proto as proto
from tfllm.tokenizers.tokenizer_config import GENERIC_CLASSES, TokenizerConfig, content

BERT_TOKENS = {
    "unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}  # fmt: skip
ROBERTA_TOKENS = {
    "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "sep_token": "</s>",
    "pad_token": "<pad>", "cls_token": "<s>", "mask_token": "<mask>",
}  # fmt: skip
_GPT2 = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
_LLAMA = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_CODE = {"prefix": "▁<PRE>", "middle": "▁<MID>", "suffix": "▁<SUF>", "eot": "▁<EOT>"}
_T5 = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
ROBERTA = ("RobertaTokenizer", "LongformerTokenizer", "BartTokenizer", "LEDTokenizer")
MBART = ("MBartTokenizer", "MBart50Tokenizer")
LLAMA = ("LlamaTokenizer", "CodeLlamaTokenizer")
BPE_CLASSES = (*LLAMA, "GemmaTokenizer")  # of SentencePiece; the others are unigram models
# Class -> the special tokens that it has where its files name no others, by kind of vocabulary.
CLASSES: dict[str, dict[str, dict[str, str]]] = {
    "wordpiece": dict.fromkeys(
        ("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "MobileBertTokenizer",
         "SqueezeBertTokenizer", "ConvBertTokenizer", "LayoutLMTokenizer", "LxmertTokenizer",
         "RetriBertTokenizer", "RealmTokenizer", "DPRContextEncoderTokenizer",
         "DPRQuestionEncoderTokenizer", "DPRReaderTokenizer"),
        BERT_TOKENS,
    ),
    "bytepair": {
        "GPT2Tokenizer": _GPT2,
        "CodeGenTokenizer": _GPT2,
        "GPTNeoXTokenizer": {**_GPT2, "pad_token": "<|padding|>"},
        "Qwen2Tokenizer": {**_GPT2, "bos_token": "", "pad_token": "<|endoftext|>"},
        **dict.fromkeys(ROBERTA, ROBERTA_TOKENS),
        # Byte-level files of this class are taken as they stand.
        **dict.fromkeys((*LLAMA, "BloomTokenizer"), {}),
    },
    "sentencepiece": {
        "LlamaTokenizer": _LLAMA,
        "CodeLlamaTokenizer": {
            **_LLAMA, **{f"{role}_token": token for role, token in _CODE.items()},
            "fill_token": "<FILL_ME>",
        },
        "GemmaTokenizer": {},
        "T5Tokenizer": _T5,
        "MT5Tokenizer": _T5,
        "AlbertTokenizer": {},
        "XLMRobertaTokenizer": ROBERTA_TOKENS,
        **dict.fromkeys(MBART, ROBERTA_TOKENS),
    },
    "characters": {},
}  # fmt: skip
KINDS = {
    "wordpiece": "WordPiece", "bytepair": "byte-level BPE", "sentencepiece": "SentencePiece",
    "characters": "characters",
}  # fmt: skip
# Classes that know no vocabulary file, and why.
WITHOUT_VOCABULARY = {
    "ByT5Tokenizer": "its tokens are the bytes of UTF-8",
    "CanineTokenizer": "its tokens are code points",
    "PerceiverTokenizer": "its tokens are the bytes of UTF-8",
    "MyT5Tokenizer": "its tokens are bytes joined by an own table",
}
MODELS_WITHOUT_VOCABULARY = {
    "byt5": "ByT5Tokenizer", "canine": "CanineTokenizer", "perceiver": "PerceiverTokenizer",
}  # fmt: skip
# Whose tokenizer.json transformers takes as it stands, whatever class is named.
AS_IT_STANDS_MODELS = ("mistral", "mixtral")


def with_class_defaults(
    settings: TokenizerConfig, kind: str, path: Path, described: bool
) -> TokenizerConfig:
    """The settings with the special tokens of their class.

    `described`: the vocabulary file is a tokenizer.json. Raises TokenizerError for a class that is
    not known for this kind of vocabulary.
    """
    if described and settings.model_type in AS_IT_STANDS_MODELS:
        settings = settings.of_class("PreTrainedTokenizerFast")
    name = settings.tokenizer_class
    if name in GENERIC_CLASSES:
        if name and not described:
            raise TokenizerError(
                f"{path}: the tokenizer's class {name} reads a tokenizer.json, and there is none. "
                "Copy it beside, or name the class that reads this file as 'tokenizer_class'."
            )
        return settings
    known = CLASSES[kind]
    if name in known:
        defaults = {key: token or None for key, token in known[name].items()}
        return settings.with_defaults(defaults)
    others = [one for one, classes in CLASSES.items() if name in classes]
    if settings.class_by_model:  # as a Chinese GPT-2 with BERT's vocabulary
        return settings.of_class("")
    why = (
        f"is for {KINDS[others[0]]}, and this file holds {KINDS[kind]}"
        if others
        else "is not known here, and its tokens may differ from what this file says"
    )
    raise TokenizerError(
        f"{path}: the tokenizer's class {name} {why}. "
        + (
            'Where tokenizer.json alone decides, write "tokenizer_class": '
            '"PreTrainedTokenizerFast" into tokenizer_config.json.'
            if described
            else "Use a checkpoint whose tokenizer is of a known class: " + ", ".join(known) + "."
        )
    )


def check_has_vocabulary(settings: TokenizerConfig, folder: Path) -> None:
    """Raises TokenizerError for a class that needs no vocabulary file and is not known here."""
    name = settings.tokenizer_class or MODELS_WITHOUT_VOCABULARY.get(settings.model_type, "")
    if name in WITHOUT_VOCABULARY:
        raise TokenizerError(
            f"'{folder}': the tokenizer's class {name} has no vocabulary file "
            f"({WITHOUT_VOCABULARY[name]}) and is not known here. Use a model with a vocabulary."
        )


def apply_class_config(
    data: dict[str, Any], settings: TokenizerConfig, kind: str, path: Path
) -> dict[str, Any]:
    """A tokenizer.json with what its class takes from the settings beside it.

    Raises TokenizerError where the class is not one for the file's model.
    """
    name, config = settings.tokenizer_class, settings.config
    unigram = (data.get("model") or {}).get("type") == "Unigram"
    if kind == "sentencepiece" and name in CLASSES[kind] and unigram == (name in BPE_CLASSES):
        raise TokenizerError(
            f"{path}: the tokenizer's class {name} reads {'BPE' if unigram else 'unigram'} models, "
            f"and this is a {'unigram' if unigram else 'BPE'} model. Use the files that belong "
            "together."
        )
    if kind == "bytepair" and name in CLASSES[kind] and CLASSES[kind][name]:
        return _byte_level(data, bool(config.get("add_prefix_space")))
    if kind == "sentencepiece" and name in LLAMA:
        return _llama(data, prefix_space_scheme(settings))
    if (
        kind == "sentencepiece"
        and name == "XLMRobertaTokenizer"
        and config.get("add_prefix_space") is False
    ):
        return {key: _never_prefixed(part) for key, part in data.items()}
    return data


def prefix_space_scheme(settings: TokenizerConfig) -> str:
    """When Llama's classes put a space before a text: "first" before the first part alone, as
    special tokens cut it, "always" before every part ("legacy"), "never"."""
    if settings.config.get("add_prefix_space") is False:
        return "never"
    legacy = settings.config.get("legacy") and settings.tokenizer_class == "LlamaTokenizer"
    return "always" if legacy else "first"


def _llama(data: dict[str, Any], prefix: str) -> dict[str, Any]:
    space = {"String": proto.SPACE}
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": space, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix != "never":
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        **data,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Metaspace", "replacement": proto.SPACE, "prepend_scheme": prefix,
            "split": False,
        },
        "decoder": {"type": "Sequence", "decoders": decoders},
    }  # fmt: skip


def _byte_level(data: dict[str, Any], prefix: bool) -> dict[str, Any]:
    changed = copy.copy(data)
    changed["pre_tokenizer"] = _changed(
        data.get("pre_tokenizer"), "ByteLevel", {"add_prefix_space": prefix}
    )
    changed["post_processor"] = _changed(
        data.get("post_processor"), "RobertaProcessing", {"add_prefix_space": prefix}
    )
    return changed


def _never_prefixed(part: Any) -> Any:
    return _changed(part, "Metaspace", {"prepend_scheme": "never"})


def _changed(part: Any, kind: str, values: Mapping[str, Any]) -> Any:
    """A part of a tokenizer.json with other values in it and in those inside a Sequence."""
    if not isinstance(part, Mapping):
        return part
    found = {**part, **values} if part.get("type") == kind else dict(part)
    for key in ("pretokenizers", "processors", "decoders"):
        if isinstance(found.get(key), list):
            found[key] = [_changed(entry, kind, values) for entry in found[key]]
    return found


def set_post_processor(rust: Any, settings: TokenizerConfig) -> None:
    """Gives the package's tokenizer the special tokens around a text that its class puts there."""
    from tokenizers import processors

    name, named = settings.tokenizer_class, settings.named
    roles = {key: content(named[key]) for key in ROBERTA_TOKENS if named.get(key) is not None}
    ids = {key: rust.token_to_id(token) for key, token in roles.items()}
    if name in ROBERTA:
        end, start = ((roles[key], ids[key]) for key in ("sep_token", "cls_token"))
        trim, prefix = (
            bool(settings.config.get(key, default))
            for key, default in (("trim_offsets", True), ("add_prefix_space", False))
        )
        rust.post_processor = processors.RobertaProcessing(end, start, trim, prefix)
    elif name == "XLMRobertaTokenizer":
        first, last = roles["bos_token"], roles["eos_token"]
        known = [(first, ids["bos_token"]), (last, ids["eos_token"])]
        rust.post_processor = processors.TemplateProcessing(
            single=[first, "$A", last],
            pair=[first, "$A", last, last, "$B", last],
            special_tokens=known,
        )
    elif name in ("T5Tokenizer", "MT5Tokenizer"):
        last = roles["eos_token"]
        rust.post_processor = processors.TemplateProcessing(
            single=["$A", last], pair=["$A", last, "$B", last],
            special_tokens=[(last, ids["eos_token"])],
        )  # fmt: skip


def set_bos_eos(rust: Any, settings: TokenizerConfig) -> None:
    """The special tokens that `add_bos_token` and `add_eos_token` ask for, where no tokenizer.json
    says what stands around a text."""
    from tokenizers import processors

    around: dict[str, str] = {}
    for key in ("bos_token", "eos_token"):
        if settings.config.get(f"add_{key}") and settings.named.get(key) is not None:
            around[key] = content(settings.named[key])
    if not around:
        return
    rows = [
        " ".join(
            f"{part}:{kind}"
            for part in (around.get("bos_token"), text, around.get("eos_token"))
            if part
        )
        for kind, text in enumerate(("$A", "$B"))
    ]
    rust.post_processor = processors.TemplateProcessing(
        single=rows[0],
        pair=" ".join(rows),
        special_tokens=[(token, rust.token_to_id(token)) for token in {*around.values()}],
    )
