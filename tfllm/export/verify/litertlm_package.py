"""A bundle in the litert-lm package against the checkpoint: texts, long prompts, a conversation."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tfllm.checkpoints.base import Checkpoint
from tfllm.errors import CheckFailed
from tfllm.export.artifact import Check, context_length, report
from tfllm.export.litertlm_prompt import PLAIN_TEMPLATE, start_token_ids
from tfllm.export.profile import Profile
from tfllm.export.verify.causal_lm import texts_to_compare
from tfllm.export.verify.common import equal_or_reported, run_script
from tfllm.export.verify.sample_texts import ASCII_SENTENCES, CONTEXT
from tfllm.generation.config import generation_config
from tfllm.generation.text_generator import TextGenerator
from tfllm.runtimes.litertlm import FILE_NAME
from tfllm.runtimes.protocols import Example
from tfllm.tokenizers import chat

PACKAGE = "litert_lm"
NEW_TOKENS = 16
TIMEOUT_SECONDS = 900
USER_MESSAGES = ("Where can I buy a ticket?", "Thank you. And what does it cost?")
MIN_CONTEXT_FOR_TWO_TURNS = 128


def check_outputs(
    checkpoint: Checkpoint,
    profile: Profile,
    directory: Path,
    examples: Sequence[Example],
) -> Iterator[Check]:
    """Run the package in a process of its own."""
    if importlib.util.find_spec(PACKAGE) is None:
        yield report("litert-lm package", "not installed, not run: pip install litert-lm")
        return
    generator = TextGenerator(checkpoint)
    context = context_length(checkpoint, profile)
    prompts = prompts_of_lengths(checkpoint, context, texts_to_compare(examples)[0])
    messages = USER_MESSAGES if context >= MIN_CONTEXT_FOR_TWO_TURNS else USER_MESSAGES[:1]
    result = run(
        directory / FILE_NAME,
        context,
        [{"prompt": text, "tokens": NEW_TOKENS} for text in prompts],
        [{"messages": list(messages), "tokens": NEW_TOKENS}],
    )
    expected = [continuation(checkpoint, generator, text, context) for text in prompts]
    lengths = ", ".join(str(len(_encode(checkpoint, text))) for text in prompts)
    yield equal_or_reported(
        f"litert-lm {result['version']}: equal texts after prompts of {lengths} tokens",
        _are_expected(expected, result["texts"]),
        profile,
        1.0,
    )
    answers = conversation(checkpoint, generator, messages)
    yield equal_or_reported(
        f"litert-lm: equal answers in a chat of {len(messages)} turns",
        _are_expected(answers, result["chats"][0]),
        profile,
        1.0,
    )


def prompts_of_lengths(checkpoint: Checkpoint, context: int, texts: Sequence[str]) -> list[str]:
    """Return a short prompt, one over several prefill signatures, and one that fills the context.

    Args:
        checkpoint: The model.
        context: Tokens of the context.
        texts: What prompts are taken from.
    """
    words = " ".join([*texts[:50], *ASCII_SENTENCES, CONTEXT]).split(" ")
    words *= 1 + context // len(words)
    prompts = [" ".join(words[:3])]
    for limit in (context // 3, context - NEW_TOKENS // 2):
        count = len(words)
        while len(_encode(checkpoint, " ".join(words[:count]))) > limit:
            count = count * 3 // 4 if count > 40 else count - 1
        # As close to `limit` as whole words allow.
        while len(_encode(checkpoint, " ".join(words[: count + 1]))) <= limit and count < len(
            words
        ):
            count += 1
        prompts.append(" ".join(words[:count]))
    return prompts


def run(
    path: Path, context: int, texts: Sequence[Example], chats: Sequence[Example]
) -> dict[str, Any]:
    """Run run_litertlm.py in a process of its own.

    Args:
        path: The bundle.
        context: Tokens of the context.
        texts: Requests for continuations.
        chats: Requests for conversations.

    Returns:
        Its answers.

    Raises:
        CheckFailed: The process fails.
    """
    request = {"model": str(path), "context": context, "texts": texts, "chats": chats}
    try:
        return run_script("run_litertlm.py", [], request, timeout=TIMEOUT_SECONDS)
    except CheckFailed as error:
        raise CheckFailed(f"litert-lm cannot run '{path}': {error.cli_message}") from None


def continuation(
    checkpoint: Checkpoint, generator: TextGenerator, prompt: str, context: int
) -> set[str]:
    """Return the checkpoint's greedy text within the context; see `_generate`."""
    ids = _encode(checkpoint, prompt)
    return _generate(generator, ids, prompt, min(NEW_TOKENS, context - len(ids)))[1]


def conversation(
    checkpoint: Checkpoint, generator: TextGenerator, user_messages: Sequence[str]
) -> list[set[str]]:
    """Return the checkpoint's answers when it reads what the package feeds it.

    After an answer that is its tokens as generated, the stop token if there was one, and what the
    template adds to the conversation with that answer at its end. (The package leaves out what the
    template writes after an answer's stop token, such as a line end.)

    Args:
        checkpoint: The model.
        generator: Generates with it.
        user_messages: The user's messages, one after another.

    Returns:
        The acceptable answers to each message.
    """
    tokenizer = checkpoint.tokenizer
    template = tokenizer.chat_template or PLAIN_TEMPLATE
    names: dict[str, Any] = {**chat.special_tokens_map(tokenizer)}
    if start_token_ids(tokenizer):
        names["bos_token"] = ""
    ids = start_token_ids(tokenizer)
    messages: list[dict[str, str]] = []
    before, answers = "", []
    for message in user_messages:
        messages.append({"role": "user", "content": message})
        text = chat.render(template, messages, add_generation_prompt=True, **names)
        ids = [*ids, *tokenizer.encode_ids([text[len(before) :]], add_special_tokens=False)[0]]
        new_ids, texts = _generate(generator, ids, None, NEW_TOKENS)
        ids = [*ids, *new_ids]
        answers.append(texts)
        messages.append({"role": "assistant", "content": max(texts, key=len)})
        before = chat.render(template, messages, add_generation_prompt=False, **names)
    return answers


def _are_expected(expected: Sequence[set[str]], actual: Sequence[str]) -> list[bool]:
    """Return whether each text is one of those expected; the package strips a leading space."""
    return [
        text.lstrip() in {variant.lstrip() for variant in variants}
        for variants, text in zip(expected, actual, strict=True)
    ]


def _encode(checkpoint: Checkpoint, prompt: str) -> list[int]:
    tokenizer = checkpoint.tokenizer
    ids = tokenizer.encode_ids([prompt], add_special_tokens=False)[0]
    return [*start_token_ids(tokenizer), *ids]


def _generate(
    generator: TextGenerator, ids: list[int], prompt: str | None, max_new_tokens: int
) -> tuple[list[int], set[str]]:
    """Return (new token ids with the stop token, their text without and with special tokens, which
    tokenizer packages treat differently)."""
    config = generator.with_eos_token_id(generation_config(max_new_tokens=max_new_tokens))
    result = generator.engine.generate([ids], config)[0]
    new_ids = list(result.ids)
    if result.finish_reason == "stop":
        unstopped = generation_config(max_new_tokens=max_new_tokens + 1)
        new_ids = generator.engine.generate([ids], unstopped)[0].ids[: len(new_ids) + 1]
    prompts = None if prompt is None else [prompt]
    text = generator.generate_from_ids([ids], config, prompts=prompts)[0].text
    return new_ids, {text, generator.tokenizer.decode(result.ids, skip_special_tokens=False)}
