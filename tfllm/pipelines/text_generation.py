"""Pipelines that generate text: continuation of prompts, translation, summarization."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tfllm.checkpoints.base import Checkpoint
from tfllm.errors import SettingError
from tfllm.generation.checkpoint_config import GenerationSource
from tfllm.generation.config import GenerationConfig
from tfllm.generation.seq2seq_generator import Seq2SeqGenerator
from tfllm.generation.text_generator import GeneratedText, TextGenerator, Truncate
from tfllm.pipelines.inputs import Result, chunks
from tfllm.runtimes.causal_lm import CausalLMPredictor
from tfllm.runtimes.seq2seq import Seq2SeqPredictor
from tfllm.tokenizers import mbart

GENERATION_OPTIONS = (
    "max_new_tokens", "min_new_tokens", "max_length", "min_length", "do_sample", "temperature",
    "top_k", "top_p", "min_p", "num_beams", "num_return_sequences", "length_penalty",
    "early_stopping", "no_repeat_ngram_size", "repetition_penalty", "forced_bos_token_id",
    "forced_eos_token_id", "renormalize_logits", "bad_words_ids", "eos_token_id", "seed",
    "batch_size", "clean_up_tokenization_spaces", "truncation",
)  # fmt: skip
CONTINUATION_OPTIONS = (*GENERATION_OPTIONS, "return_full_text", "prefix")
SOURCE_TO_TEXT_OPTIONS = (*GENERATION_OPTIONS, "src_lang", "tgt_lang", "prefix")
RESULT_NAMES = {
    "translation": "translation_text",
    "summarization": "summary_text",
    "text2text-generation": "generated_text",
}
IGNORED_OPTIONS = ("clean_up_tokenization_spaces", "batch_size")
SAMPLING_FIELDS = ("temperature", "top_k", "top_p", "min_p")
SAMPLING_DEFAULTS = {"temperature": 1.0, "top_k": 50}
"""Transformers' defaults with `do_sample`."""

Conversation = Sequence[Mapping[str, Any]]
Prompt = str | Conversation


def continue_prompts(
    predictor: CausalLMPredictor,
    inputs: Prompt | Sequence[Prompt],
    *,
    task: str,
    return_full_text: bool = True,
    prefix: str = "",
    **options: Any,
) -> list[Result] | list[list[Result]]:
    """Continue prompts, or reply in conversations.

    Args:
        predictor: The model.
        inputs: A prompt or a conversation, or a list of them.
        task: The pipeline's name.
        return_full_text: Begin texts with their prompt, and replies with their conversation.
        prefix: Put before every prompt.
        **options: GENERATION_OPTIONS. `truncation` drops the beginning of a prompt that is too
            long.

    Returns:
        `[{"generated_text"}]` of each prompt, one for each of its `num_return_sequences`.

    Raises:
        SettingError: A prompt cannot be continued, or an option is wrong.
    """
    generator = predictor.generator
    single = isinstance(inputs, str) or (bool(inputs) and isinstance(inputs[0], Mapping))
    prompts: list[Any] = [inputs] if single else list(inputs)
    is_text = isinstance(prompts[0], str)
    examples = [
        {"prompt": prefix + prompt} if is_text else {"messages": prompt} for prompt in prompts
    ]
    truncate: Truncate | None = "left" if options.pop("truncation", False) else None
    config = _generation_config(generator, options, prompt_length=None)
    ids = [generator.encode_example(example, config, truncate) for example in examples]
    if "max_length" in options and "max_new_tokens" not in options:
        room = options["max_length"] - max(map(len, ids))
        config = config.model_copy(update={"max_new_tokens": max(room, 1)})
    texts = generator.generate_from_ids(
        ids, config, prompts=[example["prompt"] for example in examples] if is_text else None
    )
    results = [
        [{"generated_text": _full_text(prompt, text) if return_full_text else text.text}
         for text in group]
        for prompt, group in zip(prompts, chunks(texts, config.num_return_sequences), strict=True)
    ]  # fmt: skip
    return results[0] if single else results


def _full_text(prompt: Prompt, text: GeneratedText) -> str | list[Mapping[str, Any]]:
    """Return a text with its prompt, or a conversation with its reply."""
    if isinstance(prompt, str):
        return text.prompt + text.text
    return [*prompt, {"role": "assistant", "content": text.text}]


def generate_from_sources(
    predictor: Seq2SeqPredictor,
    *inputs: str | Sequence[str],
    task: str,
    src_lang: str | None = None,
    tgt_lang: str | None = None,
    prefix: str | None = None,
    **options: Any,
) -> list[Result] | list[list[Result]]:
    """Translate or summarize texts.

    Args:
        predictor: The model.
        *inputs: The texts, or one list of them.
        task: The pipeline's name, which also names the results and T5's own settings.
        src_lang, tgt_lang: mBART's languages; unset: the tokenizer's own.
        prefix: Put before every text; unset: as the checkpoint says of the task.
        **options: GENERATION_OPTIONS. `truncation` drops the end of texts that are too long.

    Returns:
        `[{"translation_text"}]`, `[{"summary_text"}]` or `[{"generated_text"}]`, one for each text;
        with `num_return_sequences` above 1 a list for each text of a list.

    Raises:
        SettingError: A text is empty or too long, or an option is wrong.
    """
    generator = _generator_for_languages(predictor, src_lang, tgt_lang)
    single = len(inputs) == 1 and isinstance(inputs[0], str)
    sources: Sequence[Any] = inputs[0] if len(inputs) == 1 and not single else inputs
    task_options = _task_options(generator.checkpoint, task)
    own_prefix = task_options.pop("prefix", "")
    prefix = own_prefix if prefix is None else prefix
    truncate: Truncate | None = "right" if options.pop("truncation", False) else None
    batch_size = options.pop("batch_size", None)
    config = _generation_config(generator, {**task_options, **options}, prompt_length=1)
    if batch_size:
        generator.engine.max_batch_size = batch_size * config.num_beams
    texts = generator.generate([prefix + source for source in sources], config, truncate=truncate)
    name = RESULT_NAMES[task.split("_")[0]]
    results = [{name: text.text} for text in texts]
    if config.num_return_sequences == 1 or single:
        return results
    return [list(group) for group in chunks(results, config.num_return_sequences)]


def _generation_config(
    generator: TextGenerator, options: Mapping[str, Any], prompt_length: int | None
) -> GenerationConfig:
    """Return the config of transformers' arguments.

    `prompt_length` tokens of a prompt are counted by `max_length` and `min_length`; None: these two
    are left to the caller.
    """
    fields = {
        name: value
        for name, value in options.items()
        if value is not None and name not in IGNORED_OPTIONS
    }
    do_sample = fields.pop("do_sample", None)
    if do_sample:
        fields = {**SAMPLING_DEFAULTS, **fields}
    elif do_sample is False or not fields.get("temperature"):
        fields = {name: value for name, value in fields.items() if name not in SAMPLING_FIELDS}
        if do_sample is False:
            fields["temperature"] = 0.0
    max_length, min_length = fields.pop("max_length", None), fields.pop("min_length", None)
    if prompt_length is not None:
        if max_length is not None:
            fields.setdefault("max_new_tokens", max(max_length - prompt_length, 1))
        if min_length is not None:
            fields.setdefault("min_new_tokens", max(min_length - prompt_length, 0))
    if "bad_words_ids" in fields:
        fields["bad_words_ids"] = tuple(map(tuple, fields["bad_words_ids"]))
    if "eos_token_id" in fields:
        ids = fields["eos_token_id"]
        fields["eos_token_id"] = tuple(ids) if isinstance(ids, list | tuple) else (ids,)
    return generator.generation_config(**fields)


def _task_options(checkpoint: GenerationSource, task: str) -> dict[str, Any]:
    """Return the options that a Hugging Face checkpoint has for a task (T5's
    `task_specific_params`)."""
    options = (checkpoint.generation_setting("task_specific_params") or {}).get(task, {})
    known = (*GENERATION_OPTIONS, "prefix")
    return {name: value for name, value in options.items() if name in known}


def _generator_for_languages(
    predictor: Seq2SeqPredictor, source: str | None, target: str | None
) -> Seq2SeqGenerator:
    """Return the generator; with a language, one whose tokenizer writes mBART's rows in it."""
    if source is None and target is None:
        return predictor.generator
    checkpoint = predictor.checkpoint
    if not isinstance(checkpoint, Checkpoint):
        raise SettingError("src_lang, tgt_lang: an exported file has fixed ones. Leave them out.")
    config = getattr(checkpoint.tokenizer, "config", {})
    source = source or config.get("src_lang") or mbart.DEFAULT_LANGUAGE
    target = target or config.get("tgt_lang") or mbart.DEFAULT_LANGUAGE
    tokenizer = mbart.with_languages(checkpoint.tokenizer, source, target)
    generation = {**checkpoint.generation_config, "forced_bos_token_id": tokenizer.token_id(target)}
    return Seq2SeqGenerator(replace(checkpoint, tokenizer=tokenizer, generation_config=generation))
