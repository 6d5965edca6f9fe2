"""A bundle in the litert-lm package against the checkpoint: texts, long prompts, a conversation."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tfllm.errors import CheckFailed
from tfllm.export.base import Check, Profile, at_least, context_of, stated
from tfllm.export.litertlm import PLAIN_TEMPLATE, begins
from tfllm.export.verify.sentences import CONTEXT, PLAIN
from tfllm.runtimes.litertlm import FILE_NAME

PACKAGE = "litert_lm"
NEW_TOKENS = 16
SECONDS = 900
SAID = ("Where can I buy a ticket?", "Thank you. And what does it cost?")
EXACT = "float32"


def checks(
    checkpoint: Any, writer: Any, profile: Profile, folder: Path, texts: Sequence[str]
) -> Iterator[Check]:
    """Runs the package in a process of its own."""
    if importlib.util.find_spec(PACKAGE) is None:
        yield stated("litert-lm package", "not installed, not run: pip install litert-lm")
        return
    context = context_of(checkpoint, profile)
    prompts = prompts_of(checkpoint, context, texts)
    said = SAID if context >= 128 else SAID[:1]
    found = run(
        folder / FILE_NAME,
        context,
        [{"prompt": text, "tokens": NEW_TOKENS} for text in prompts],
        [{"messages": list(said), "tokens": NEW_TOKENS}],
    )
    wanted = [text_after(checkpoint, writer, text, context) for text in prompts]
    same = _same(wanted, found["texts"])
    lengths = ", ".join(str(len(_ids(checkpoint, text))) for text in prompts)
    yield _exactly(
        f"litert-lm {found['version']}: same texts after prompts of {lengths} tokens", same, profile
    )
    answers = conversation(checkpoint, writer, said)
    same = _same(answers, found["chats"][0])
    yield _exactly(f"litert-lm: same answers in a chat of {len(said)} turns", same, profile)


def prompts_of(checkpoint: Any, context: int, texts: Sequence[str]) -> list[str]:
    """A short prompt, one over several prefill rows, and one that nearly fills the context."""
    words = " ".join([*texts[:50], *PLAIN, CONTEXT]).split(" ")
    words *= 1 + context // len(words)
    found = [" ".join(words[:3])]
    for most in (context // 3, context - NEW_TOKENS // 2):
        count = len(words)
        while len(_ids(checkpoint, " ".join(words[:count]))) > most:
            count = count * 3 // 4 if count > 40 else count - 1
        # As near as words go.
        while len(_ids(checkpoint, " ".join(words[: count + 1]))) <= most and count < len(words):
            count += 1
        found.append(" ".join(words[:count]))
    return found


def run(path: Path, context: int, texts: Sequence[dict], chats: Sequence[dict]) -> dict[str, Any]:
    """What run_litertlm.py answers. Raises CheckFailed with what the process said."""
    script = Path(__file__).parent / "run_litertlm.py"
    with tempfile.TemporaryDirectory(prefix="tfllm-") as place:
        asked, told = Path(place) / "requests.json", Path(place) / "answers.json"
        request = {"model": str(path), "context": context, "texts": texts, "chats": chats}
        asked.write_text(json.dumps(request))
        command = [sys.executable, "-P", str(script), str(asked), str(told)]
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=SECONDS, check=False
        )
        if done.returncode or not told.exists():
            said = (done.stderr.strip().splitlines() or ["it said nothing"])[-3:]
            raise CheckFailed(f"litert-lm cannot run '{path}': {' '.join(said)[:600]}")
        return json.loads(told.read_text())


def text_after(checkpoint: Any, writer: Any, prompt: str, context: int) -> set[str]:
    """The checkpoint's greedy text, as far as the context goes; see `_written`."""
    ids = _ids(checkpoint, prompt)
    return _written(writer, ids, prompt, min(NEW_TOKENS, context - len(ids)))[1]


def conversation(checkpoint: Any, writer: Any, said: Sequence[str]) -> list[set[str]]:
    """The checkpoint's answers when it reads what the package feeds it.

    After an answer that is its tokens as they were written, the stop token if there was one, and
    what the template adds to the conversation with that answer at its end. (Whatever the template
    writes after an answer's stop token, such as a line end, the package leaves out.)
    """
    from tfllm.tokenizers import chat

    tokenizer = checkpoint.tokenizer
    template = tokenizer.chat_template or PLAIN_TEMPLATE
    names: dict[str, Any] = {**chat.special_tokens_map(tokenizer)}
    if begins(tokenizer):
        names["bos_token"] = ""
    ids = [tokenizer.bos_token_id] if begins(tokenizer) else []
    messages: list[dict[str, str]] = []
    before, answers = "", []
    for message in said:
        messages.append({"role": "user", "content": message})
        text = chat.render(template, messages, add_generation_prompt=True, **names)
        ids = [*ids, *tokenizer.encode_ids([text[len(before) :]], add_special_tokens=False)[0]]
        new, answer = _written(writer, ids, None, NEW_TOKENS)
        ids = [*ids, *new]
        answers.append(answer)
        messages.append({"role": "assistant", "content": max(answer, key=len)})
        before = chat.render(template, messages, add_generation_prompt=False, **names)
    return answers


def _same(wanted: Sequence[set[str]], found: Sequence[str]) -> list[bool]:
    """The package leaves out a space at the start of what it writes."""
    return [
        text.lstrip() in {one.lstrip() for one in several}
        for several, text in zip(wanted, found, strict=True)
    ]


def _ids(checkpoint: Any, prompt: str) -> list[int]:
    tokenizer = checkpoint.tokenizer
    start = [tokenizer.bos_token_id] if begins(tokenizer) else []
    return [*start, *tokenizer.encode_ids([prompt], add_special_tokens=False)[0]]


def _written(
    writer: Any, ids: list[int], prompt: str | None, room: int
) -> tuple[list[int], set[str]]:
    """(new tokens with the stop token, their text without and with special tokens: packages of
    tokenizers differ in that)."""
    from tfllm.generation.config import generation_config

    settings = writer.with_eos_token_id(generation_config(max_new_tokens=room))
    stopping = generation_config(max_new_tokens=room + 1)
    new = writer.engine.generate([ids], settings)[0]
    tokens = list(new.ids)
    if new.finish_reason == "stop":
        tokens = writer.engine.generate([ids], stopping)[0].ids[: len(tokens) + 1]
    prompts = None if prompt is None else [prompt]
    text = writer.generate_from_ids([ids], settings, prompts=prompts)[0].text
    return tokens, {text, writer.tokenizer.decode(new.ids, skip_special_tokens=False)}


def _exactly(name: str, same: Sequence[bool], profile: Profile) -> Check:
    share = sum(same) / max(1, len(same))
    if profile.quantization == EXACT:
        return at_least(name, share, 1.0)
    return stated(name, f"{share:.4g}")
