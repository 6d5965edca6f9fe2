"""mBART's tokenizers: every row says its language, sources and targets each their own."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from tfllm.errors import TokenizerError, did_you_mean
from tfllm.tokenizers.base import RowTemplate
from tfllm.tokenizers.tokenizer_config import TokenizerConfig

MBART_CODES = tuple(
    "ar_AR cs_CZ de_DE en_XX es_XX et_EE fi_FI fr_XX gu_IN hi_IN it_IT ja_XX kk_KZ ko_KR lt_LT "
    "lv_LV my_MM ne_NP nl_XX ro_RO ru_RU si_LK tr_TR vi_VN zh_CN".split()
)
MBART50_ADDED_CODES = tuple(
    "af_ZA az_AZ bn_IN fa_IR he_IL hr_HR id_ID ka_GE km_KH mk_MK ml_IN mn_MN mr_IN pl_PL ps_AF "
    "pt_XX sv_SE sw_KE ta_IN te_IN th_TH tl_XX uk_UA ur_PK xh_ZA gl_ES sl_SI".split()
)
# Hugging Face's class -> the languages that it adds to a SentencePiece model.
LANGUAGE_CODES = {
    "MBartTokenizer": MBART_CODES,
    "MBart50Tokenizer": (*MBART_CODES, *MBART50_ADDED_CODES),
}
DEFAULT_LANGUAGE = "en_XX"


def apply_language_config(tokenizer: Any, settings: TokenizerConfig, path: Path) -> Any:
    """The tokenizer with rows in the languages that `src_lang` and `tgt_lang` of its settings name;
    any other than mBART's as it is. Raises TokenizerError."""
    if settings.tokenizer_class not in LANGUAGE_CODES:
        return tokenizer
    source = settings.config.get("src_lang") or DEFAULT_LANGUAGE
    return with_languages(tokenizer, source, settings.config.get("tgt_lang") or source, path)


def with_languages(tokenizer: Any, source: str, target: str, path: Path | None = None) -> Any:
    """The tokenizer of an mBART checkpoint for these languages, such as "en_XX" and "de_DE".

    mBART's first models put `</s>` and the language after a text, mBART-50 puts the language before
    and `</s>` after. Raises TokenizerError for a language that the vocabulary lacks.
    """
    kind = str(tokenizer.config.get("tokenizer_class", "")).removesuffix("Fast")
    if kind not in LANGUAGE_CODES:
        raise TokenizerError(
            f"The tokenizer has no languages to choose from; only {', '.join(LANGUAGE_CODES)} have."
        )
    known = [token for token in tokenizer.vocabulary if token in LANGUAGE_CODES[kind]]
    for language in (source, target):
        if language not in known:
            where = f"{path}: " if path else ""
            raise TokenizerError(
                f"{where}there is no language '{language}'. {did_you_mean(language, known)}"
            )
    templates = [_row_template(tokenizer, kind, language) for language in (source, target)]
    config = {**tokenizer.config, "src_lang": source, "tgt_lang": target}
    return dataclasses.replace(
        tokenizer, row_template=templates[0], target_template=templates[1], config=config
    )


def _row_template(tokenizer: Any, kind: str, language: str) -> RowTemplate:
    code, end = tokenizer.token_id(language), tokenizer.eos_token_id
    return (
        RowTemplate(suffix=(end, code))
        if kind == "MBartTokenizer"
        else RowTemplate(prefix=(code,), suffix=(end,))
    )
