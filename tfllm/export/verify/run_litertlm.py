"""Runs a LiteRT-LM bundle in the litert-lm package: `python run_litertlm.py REQUESTS ANSWERS`.

A process of its own, which imports nothing of tfllm and no TensorFlow. Requests: {"model": path,
"context": tokens, "texts": [{"prompt", "tokens"}], "chats": [{"messages": the user's messages,
"tokens"}]}. Answers: {"texts": [text], "chats": [[answer of each turn]], "version"}.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import litert_lm


def generate(engine: litert_lm.Engine, request: dict[str, Any]) -> str:
    """Return the text after a prompt, of at most `tokens` tokens."""
    with engine.create_session(
        apply_prompt_template=False, max_output_tokens=request["tokens"]
    ) as session:
        session.run_prefill([request["prompt"]])
        return session.run_decode().texts[0]


def chat(engine: litert_lm.Engine, request: dict[str, Any]) -> list[str]:
    """Return the answers of a conversation."""
    answers = []
    with engine.create_conversation(max_output_tokens=request["tokens"]) as conversation:
        for message in request["messages"]:
            answer = conversation.send_message(message)
            answers.append("".join(part.get("text", "") for part in answer["content"]))
    return answers


def main(request_file: str, answer_file: str) -> None:
    """Open the bundle once and answer all requests."""
    import litert_lm

    litert_lm.set_min_log_severity(litert_lm.LogSeverity.ERROR)
    requests = json.loads(Path(request_file).read_text())
    with litert_lm.Engine(
        requests["model"],
        backend=litert_lm.Backend.CPU(),
        max_num_tokens=requests["context"],
        cache_dir=":nocache",
    ) as engine:
        answers = {
            "texts": [generate(engine, request) for request in requests["texts"]],
            "chats": [chat(engine, request) for request in requests["chats"]],
            "version": importlib.metadata.version("litert-lm"),
        }
    Path(answer_file).write_text(json.dumps(answers))


if __name__ == "__main__":
    main(*sys.argv[1:])
