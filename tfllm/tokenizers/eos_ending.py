"""The same vocabulary with rows that end in `</s>`: for sources and targets, as Marian and T5."""

from __future__ import annotations

import json
from typing import Any

from tfllm.tokenizers import sentencepiece
from tfllm.tokenizers import sentencepiece_proto as proto
from tfllm.tokenizers.config_files import Settings
from tfllm.tokenizers.hf_tokenizers import RustTokenizer

T5 = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0}  # whose rows end so in Hugging Face, too


def ending(tokenizer: Any) -> Any:
    """A learned tokenizer that puts its end token, and nothing else, after every text.

    One whose rows end with special tokens already, as WordPiece's do, stays as it is.
    """
    if isinstance(tokenizer, RustTokenizer):
        described = {**tokenizer.described(), "post_processor": _template(tokenizer)}
        settings = Settings(tokenizer.config, tokenizer.config, tokenizer.chat_template)
        return type(tokenizer).from_definition(json.dumps(described), settings)
    if isinstance(tokenizer, sentencepiece.SentencePiece):
        model = proto.parse(tokenizer.source, tokenizer.file_name)
        return sentencepiece.from_proto(model, Settings(T5, T5))
    return tokenizer


def _template(tokenizer: RustTokenizer) -> dict[str, Any]:
    """A post-processor of the `tokenizers` package: `a </s>` and `a </s> b </s>`."""
    end = tokenizer.names.end
    assert end is not None  # learned with it
    after = {"SpecialToken": {"id": end, "type_id": 0}}
    texts = [{"Sequence": {"id": name, "type_id": 0}} for name in ("A", "B")]
    known = {end: {"id": end, "ids": [tokenizer.eos_token_id], "tokens": [end]}}
    return {
        "type": "TemplateProcessing",
        "single": [texts[0], after],
        "pair": [texts[0], after, texts[1], after],
        "special_tokens": known,
    }
