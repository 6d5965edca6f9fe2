"""mBART's tokenizers: every row has a language code, of sources and of targets.

Source: Liu et al. 2020, "Multilingual denoising pre-training for neural machine translation"; Tang
et al. 2020, "Multilingual translation with extensible multilingual pretraining" (mBART-50).
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

from tfllm.errors import TokenizerError, did_you_mean
from tfllm.tokenizers.base import RowTemplate, Tokenizer
from tfllm.tokenizers.rows import NamedTokenizer
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


def apply_language_config(tokenizer: Tokenizer, settings: TokenizerConfig, path: Path) -> Tokenizer:
    """Return an mBART tokenizer with the languages `src_lang` and `tgt_lang` of its settings.

    Args:
        tokenizer: Any tokenizer; one of another class is returned unchanged.
        settings: The files beside the vocabulary.
        path: The vocabulary file, for messages.

    Raises:
        TokenizerError: The vocabulary lacks a language.
    """
    if settings.tokenizer_class not in LANGUAGE_CODES:
        return tokenizer
    source = settings.config.get("src_lang") or DEFAULT_LANGUAGE
    return with_languages(tokenizer, source, settings.config.get("tgt_lang") or source, path)


def with_languages(
    tokenizer: Tokenizer, source: str, target: str, path: Path | None = None
) -> Tokenizer:
    """Return the tokenizer of an mBART checkpoint for a pair of languages.

    mBART's first models put `</s>` and the language code after a text, mBART-50 puts the language
    code before it and `</s>` after it.

    Args:
        tokenizer: The tokenizer.
        source: The language of sources, such as "en_XX".
        target: The language of targets, such as "de_DE".
        path: The vocabulary file, for messages.

    Raises:
        TokenizerError: The tokenizer has no languages, or lacks one of these.
    """
    named = tokenizer if isinstance(tokenizer, NamedTokenizer) else None
    kind = str(named.config.get("tokenizer_class", "") if named else "").removesuffix("Fast")
    if named is None or kind not in LANGUAGE_CODES:
        raise TokenizerError(
            f"The tokenizer has no languages to choose from; only {', '.join(LANGUAGE_CODES)} have."
        )
    known = [token for token in named.vocabulary if token in LANGUAGE_CODES[kind]]
    for language in (source, target):
        if language not in known:
            where = f"{path}: " if path else ""
            raise TokenizerError(
                f"{where}there is no language '{language}'. {did_you_mean(language, known)}"
            )
    of_source, of_target = (_row_template(named, kind, code) for code in (source, target))
    config = {**named.config, "src_lang": source, "tgt_lang": target}
    return cast(Tokenizer, named.with_templates(of_source, of_target, config))


def _row_template(tokenizer: NamedTokenizer, kind: str, language: str) -> RowTemplate:
    code, end = tokenizer.token_id(language), tokenizer.eos_token_id
    assert code is not None and end is not None, "mBART's vocabularies have both"
    return (
        RowTemplate(suffix=(end, code))
        if kind == "MBartTokenizer"
        else RowTemplate(prefix=(code,), suffix=(end,))
    )
