"""Written texts, as transformers' pipelines give them: continued, translated, summarized."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tfllm.errors import SettingError

GENERATING = (
    "max_new_tokens", "min_new_tokens", "max_length", "min_length", "do_sample", "temperature",
    "top_k", "top_p", "min_p", "num_beams", "num_return_sequences", "length_penalty",
    "early_stopping", "no_repeat_ngram_size", "repetition_penalty", "forced_bos_token_id",
    "forced_eos_token_id", "renormalize_logits", "bad_words_ids", "eos_token_id", "seed",
    "batch_size", "clean_up_tokenization_spaces", "truncation",
)  # fmt: skip
CONTINUING = (*GENERATING, "return_full_text", "prefix")
REWRITING = (*GENERATING, "src_lang", "tgt_lang", "prefix")
NAMED = {
    "translation": "translation_text",
    "summarization": "summary_text",
    "text2text-generation": "generated_text",
}
FILTERS = ("temperature", "top_k", "top_p", "min_p")
SAMPLED = {"temperature": 1.0, "top_k": 50}
"""What transformers takes with do_sample, where nothing else is said."""


def continued(
    predictor: Any,
    inputs: Any,
    *,
    task: str,
    return_full_text: bool = True,
    prefix: str = "",
    **options: Any,
) -> Any:
    """`[{"generated_text"}]` for a prompt, with the prompt unless `return_full_text` is false; for
    a conversation its messages with the answer. Lists of such for a list."""
    writer = predictor.generator
    single = isinstance(inputs, str) or (bool(inputs) and isinstance(inputs[0], Mapping))
    given = [inputs] if single else list(inputs)
    plain = isinstance(given[0], str)
    prompts = [prefix + one for one in given] if plain else [""] * len(given)
    cut = "left" if options.pop("truncation", False) else None
    settings = _settings(writer, options, longest=None)
    if plain:
        ids = [writer.encode_prompt(prompt, settings, cut) for prompt in prompts]
    else:
        ids = [writer.encode_chat(one, settings, cut) for one in given]
    if "max_length" in options and "max_new_tokens" not in options:
        room = options["max_length"] - max(map(len, ids))
        settings = settings.model_copy(update={"max_new_tokens": max(room, 1)})
    texts = writer.generate_from_ids(ids, settings, prompts=prompts if plain else None)
    each = settings.num_return_sequences
    results = []
    for number, one in enumerate(given):
        some = texts[number * each : (number + 1) * each]
        results.append([{"generated_text": _whole(one, text, return_full_text)} for text in some])
    return results[0] if single else results


def _whole(given: Any, text: Any, full: bool) -> Any:
    if isinstance(given, str):
        return text.prompt + text.text if full else text.text
    return [*given, {"role": "assistant", "content": text.text}] if full else text.text


def rewritten(
    predictor: Any,
    *inputs: Any,
    task: str,
    src_lang: str | None = None,
    tgt_lang: str | None = None,
    prefix: str | None = None,
    **options: Any,
) -> Any:
    """`[{"translation_text"}]`, `[{"summary_text"}]` or `[{"generated_text"}]` for a text; for a
    list the same of every text, as lists where several are asked for."""
    writer = _in_languages(predictor, src_lang, tgt_lang)
    single = len(inputs) == 1 and isinstance(inputs[0], str)
    given = list(inputs[0]) if len(inputs) == 1 and not single else list(inputs)
    own = _task_settings(writer.checkpoint, task)
    before = own.pop("prefix", "") if prefix is None else prefix
    cut = "right" if options.pop("truncation", False) else None
    size = options.pop("batch_size", None)
    settings = _settings(writer, {**own, **options}, longest=1)
    if size:
        writer.engine.max_batch_size = size * settings.num_beams
    texts = writer.generate([before + one for one in given], settings, truncate=cut)
    each = settings.num_return_sequences
    name = NAMED[task.split("_")[0]]
    results = [[{name: text.text} for text in texts[n : n + each]]
               for n in range(0, len(texts), each)]  # fmt: skip
    if each == 1:
        return [one for (one,) in results]
    return results[0] if single else results


def _settings(writer: Any, options: dict[str, Any], longest: int | None) -> Any:
    """GenerationConfig of transformers' arguments. `longest` tokens stand before those that
    max_length counts; None: who calls reckons with it."""
    given = {name: value for name, value in options.items() if value is not None}
    for harmless in ("clean_up_tokenization_spaces", "batch_size"):
        given.pop(harmless, None)
    fields = dict(given)
    samples = fields.pop("do_sample", None)
    if samples:
        fields = {**SAMPLED, **fields}
    elif samples is False or not fields.get("temperature"):
        fields = {name: value for name, value in fields.items() if name not in FILTERS}
        if samples is False:
            fields["temperature"] = 0.0
    most, least = fields.pop("max_length", None), fields.pop("min_length", None)
    if longest is not None:
        if most is not None:
            fields.setdefault("max_new_tokens", max(most - longest, 1))
        if least is not None:
            fields.setdefault("min_new_tokens", max(least - longest, 0))
    if "bad_words_ids" in fields:
        fields["bad_words_ids"] = tuple(map(tuple, fields.pop("bad_words_ids")))
    stops = fields.pop("eos_token_id", None)
    if stops is not None:
        fields["eos_token_id"] = tuple(stops) if isinstance(stops, list | tuple) else (stops,)
    return writer.generation_config(**fields)


def _task_settings(checkpoint: Any, task: str) -> dict[str, Any]:
    """What a Hugging Face checkpoint says of this task (T5's `task_specific_params`)."""
    own = (checkpoint.generation_setting("task_specific_params") or {}).get(task, {})
    known = (*GENERATING, "prefix")
    return {name: value for name, value in own.items() if name in known}


def _in_languages(predictor: Any, source: str | None, target: str | None) -> Any:
    """The writer, with mBART's rows in these languages."""
    if source is None and target is None:
        return predictor.generator
    from dataclasses import replace

    from tfllm.generation.seq2seq_generator import Seq2SeqGenerator
    from tfllm.tokenizers import mbart

    checkpoint = predictor.checkpoint
    config = getattr(checkpoint.tokenizer, "config", {})
    source = source or config.get("src_lang") or mbart.DEFAULT_LANGUAGE
    target = target or config.get("tgt_lang") or mbart.DEFAULT_LANGUAGE
    if getattr(predictor, "engine", None) is not None:
        raise SettingError("src_lang, tgt_lang: an exported file has fixed ones. Leave them out.")
    tokenizer = mbart.with_languages(checkpoint.tokenizer, source, target)
    generation = {**checkpoint.generation_config, "forced_bos_token_id": tokenizer.token_id(target)}
    return Seq2SeqGenerator(replace(checkpoint, tokenizer=tokenizer, generation_config=generation))
