"""Hugging Face's tokenizer classes: which are known, and what a class changes in its files.

In transformers 5 a class builds its tokenizer from the vocabulary of a tokenizer.json and the
settings beside it. What a tokenizer.json says and no setting contradicts is kept.

Source: transformers 5 (models/*/tokenization_*.py).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfllm.errors import TokenizerError
from tfllm.tokenizers import sentencepiece_proto as proto
from tfllm.tokenizers.tokenizer_config import GENERIC_CLASSES, TokenizerConfig, content

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BERT_TOKENS = {
    "unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}  # fmt: skip
ROBERTA_TOKENS = {
    "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "sep_token": "</s>",
    "pad_token": "<pad>", "cls_token": "<s>", "mask_token": "<mask>",
}  # fmt: skip
MPNET = "MPNetTokenizer"
_MPNET = {
    **ROBERTA_TOKENS, "unk_token": "[UNK]", "mask_token": {"content": "<mask>", "lstrip": True},
}  # fmt: skip
_GPT2 = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
_LLAMA = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_CODE = {"prefix": "▁<PRE>", "middle": "▁<MID>", "suffix": "▁<SUF>", "eot": "▁<EOT>"}
_T5 = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
_CAMEMBERT = {
    **ROBERTA_TOKENS, "additional_special_tokens": ["<s>NOTUSED", "</s>NOTUSED", "<unk>NOTUSED"],
}  # fmt: skip
ROBERTA = ("RobertaTokenizer", "LongformerTokenizer", "BartTokenizer", "LEDTokenizer")
ALBERT = "AlbertTokenizer"
MBART = ("MBartTokenizer", "MBart50Tokenizer")
XLMR = ("XLMRobertaTokenizer", "CamembertTokenizer")
LLAMA = ("LlamaTokenizer", "CodeLlamaTokenizer")
BPE_CLASSES = (*LLAMA, "GemmaTokenizer")  # of SentencePiece; the others are unigram models
# Kind of vocabulary -> class -> its special tokens where its files name no others.
CLASSES: dict[str, dict[str, dict[str, Any]]] = {
    "wordpiece": {
        **dict.fromkeys(
            ("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "MobileBertTokenizer",
             "SqueezeBertTokenizer", "ConvBertTokenizer", "LayoutLMTokenizer", "LxmertTokenizer",
             "RetriBertTokenizer", "RealmTokenizer", "DPRContextEncoderTokenizer",
             "DPRQuestionEncoderTokenizer", "DPRReaderTokenizer"),
            BERT_TOKENS,
        ),
        MPNET: _MPNET,
    },
    "bytepair": {
        "GPT2Tokenizer": _GPT2,
        "CodeGenTokenizer": _GPT2,
        "GPTNeoXTokenizer": {**_GPT2, "pad_token": "<|padding|>"},
        "Qwen2Tokenizer": {**_GPT2, "bos_token": "", "pad_token": "<|endoftext|>"},
        **dict.fromkeys(ROBERTA, ROBERTA_TOKENS),
        # Byte-level files of this class are used unchanged.
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
        ALBERT: {},
        "XLMRobertaTokenizer": ROBERTA_TOKENS,
        "CamembertTokenizer": _CAMEMBERT,
        **dict.fromkeys(MBART, ROBERTA_TOKENS),
    },
    "characters": {},
}  # fmt: skip
KINDS = {
    "wordpiece": "WordPiece", "bytepair": "byte-level BPE", "sentencepiece": "SentencePiece",
    "characters": "characters",
}  # fmt: skip
# Classes without a vocabulary file, and why.
WITHOUT_VOCABULARY = {
    "ByT5Tokenizer": "its tokens are the bytes of UTF-8",
    "CanineTokenizer": "its tokens are code points",
    "PerceiverTokenizer": "its tokens are the bytes of UTF-8",
    "MyT5Tokenizer": "its tokens are bytes joined by an own table",
}
MODELS_WITHOUT_VOCABULARY = {
    "byt5": "ByT5Tokenizer", "canine": "CanineTokenizer", "perceiver": "PerceiverTokenizer",
}  # fmt: skip
# Model types whose tokenizer.json transformers uses unchanged, whatever class is named.
UNCHANGED_MODELS = ("mistral", "mixtral", "phi3")


def with_class_defaults(
    settings: TokenizerConfig, kind: str, path: Path, is_json: bool
) -> TokenizerConfig:
    """Return the settings with the special tokens of their class.

    Args:
        settings: The files beside the vocabulary.
        kind: The kind of vocabulary, a key of CLASSES.
        path: The vocabulary file, for messages.
        is_json: Whether it is a tokenizer.json.

    Raises:
        TokenizerError: The class is not known for this kind of vocabulary.
    """
    if is_json and settings.model_type in UNCHANGED_MODELS:
        settings = settings.of_class("PreTrainedTokenizerFast")
    name = settings.tokenizer_class
    if name in GENERIC_CLASSES:
        if name and not is_json:
            raise TokenizerError(
                f"{path}: the tokenizer's class {name} reads a tokenizer.json, and there is none. "
                "Copy it beside, or name the class that reads this file as 'tokenizer_class'."
            )
        return settings
    known = CLASSES[kind]
    if name in known:
        defaults = {key: token or None for key, token in known[name].items()}
        return settings.with_defaults(defaults)
    others = [other for other, classes in CLASSES.items() if name in classes]
    if settings.class_by_model:  # such as a Chinese GPT-2 with BERT's vocabulary
        return settings.of_class("")
    reason = (
        f"is for {KINDS[others[0]]}, and this file holds {KINDS[kind]}"
        if others
        else "is not known here, and its tokens may differ from what this file says"
    )
    raise TokenizerError(
        f"{path}: the tokenizer's class {name} {reason}. "
        + (
            'Where tokenizer.json alone decides, write "tokenizer_class": '
            '"PreTrainedTokenizerFast" into tokenizer_config.json.'
            if is_json
            else "Use a checkpoint whose tokenizer is of a known class: " + ", ".join(known) + "."
        )
    )


def check_has_vocabulary(settings: TokenizerConfig, folder: Path) -> None:
    """Check that the tokenizer's class has a vocabulary file.

    Args:
        settings: The files of the directory.
        folder: The directory, for messages.

    Raises:
        TokenizerError: It has none, and is not known here.
    """
    name = settings.tokenizer_class or MODELS_WITHOUT_VOCABULARY.get(settings.model_type, "")
    if name in WITHOUT_VOCABULARY:
        raise TokenizerError(
            f"'{folder}': the tokenizer's class {name} has no vocabulary file "
            f"({WITHOUT_VOCABULARY[name]}) and is not known here. Use a model with a vocabulary."
        )


def apply_class_config(
    data: dict[str, Any], settings: TokenizerConfig, kind: str, path: Path
) -> dict[str, Any]:
    """Return the contents of a tokenizer.json with the changes of its class and settings.

    Args:
        data: The contents.
        settings: The files beside it.
        kind: The kind of vocabulary, a key of CLASSES.
        path: The file, for messages.

    Raises:
        TokenizerError: The class is not one for the file's model.
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
    if kind == "sentencepiece" and name == ALBERT and {"do_lower_case", "keep_accents"} & {*config}:
        return _albert(data, config)
    if kind == "sentencepiece" and name in LLAMA:
        return _llama(data, prefix_space_scheme(settings))
    if kind == "sentencepiece" and name in XLMR and config.get("add_prefix_space") is False:
        return {
            key: _replace_in_part(part, "Metaspace", {"prepend_scheme": "never"})
            for key, part in data.items()
        }
    return data


def prefix_space_scheme(settings: TokenizerConfig) -> str:
    """Return when Llama's classes put a space before a text.

    Returns:
        "first": before the first of the parts into which special tokens split a text; "always":
        before every part ("legacy"); "never".
    """
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


def _albert(data: dict[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    quotes = [
        {"type": "Replace", "pattern": {"String": quote}, "content": '"'} for quote in ("``", "''")
    ]
    accents = [] if config.get("keep_accents") else [{"type": "NFKD"}, {"type": "StripAccents"}]
    case = [{"type": "Lowercase"}] if config.get("do_lower_case", True) else []
    normalizer = data.get("normalizer") or {}
    own = normalizer.get("normalizers") or [normalizer]
    charsmap = [part for part in own if part.get("type") == "Precompiled"]
    parts = [*quotes, *accents, *case, *charsmap]
    return {**data, "normalizer": {"type": "Sequence", "normalizers": parts}}


def _byte_level(data: dict[str, Any], prefix: bool) -> dict[str, Any]:
    changed = copy.copy(data)
    changed["pre_tokenizer"] = _replace_in_part(
        data.get("pre_tokenizer"), "ByteLevel", {"add_prefix_space": prefix}
    )
    changed["post_processor"] = _replace_in_part(
        data.get("post_processor"), "RobertaProcessing", {"add_prefix_space": prefix}
    )
    return changed


def _replace_in_part(part: object, kind: str, values: Mapping[str, object]) -> object:
    """A part of a tokenizer.json with other values in all parts of this type inside it."""
    if not isinstance(part, Mapping):
        return part
    changed = {**part, **values} if part.get("type") == kind else dict(part)
    for key in ("pretokenizers", "processors", "decoders"):
        if isinstance(changed.get(key), list):
            changed[key] = [_replace_in_part(entry, kind, values) for entry in changed[key]]
    return changed


def set_post_processor(backend: Tokenizer, settings: TokenizerConfig) -> None:
    """Set the special tokens that a class puts around a text, in the package's tokenizer.

    Args:
        backend: The tokenizer, which is changed.
        settings: Names the class and its special tokens.
    """
    from tokenizers import processors

    name, named = settings.tokenizer_class, settings.named
    roles = {key: content(named[key]) for key in ROBERTA_TOKENS if named.get(key) is not None}
    ids = {key: _require_id(backend, token) for key, token in roles.items()}
    if name in ROBERTA:
        end, start = ((roles[key], ids[key]) for key in ("sep_token", "cls_token"))
        trim, prefix = (
            bool(settings.config.get(key, default))
            for key, default in (("trim_offsets", True), ("add_prefix_space", False))
        )
        backend.post_processor = processors.RobertaProcessing(end, start, trim, prefix)
    elif name in XLMR:
        first, last = roles["bos_token"], roles["eos_token"]
        known = [(first, ids["bos_token"]), (last, ids["eos_token"])]
        backend.post_processor = processors.TemplateProcessing(
            single=[first, "$A", last],
            pair=[first, "$A", last, last, "$B", last],
            special_tokens=known,
        )
    elif name in ("T5Tokenizer", "MT5Tokenizer"):
        last = roles["eos_token"]
        backend.post_processor = processors.TemplateProcessing(
            single=["$A", last], pair=["$A", last, "$B", last],
            special_tokens=[(last, ids["eos_token"])],
        )  # fmt: skip


def _require_id(backend: Tokenizer, token: str) -> int:
    token_id = backend.token_to_id(token)
    assert token_id is not None, "missing special tokens were added before"
    return token_id


def set_bos_eos(backend: Tokenizer, settings: TokenizerConfig) -> None:
    """Set the special tokens that `add_bos_token` and `add_eos_token` put around a text.

    For vocabularies without a tokenizer.json, which would say what is put around a text.

    Args:
        backend: The package's tokenizer, which is changed.
        settings: The files beside the vocabulary.
    """
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
    backend.post_processor = processors.TemplateProcessing(
        single=rows[0],
        pair=" ".join(rows),
        special_tokens=[(token, _require_id(backend, token)) for token in {*around.values()}],
    )
