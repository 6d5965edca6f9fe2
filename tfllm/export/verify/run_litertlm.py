"""Runs a LiteRT-LM bundle in the litert-lm package: `python run_litertlm.py REQUESTS ANSWERS`.

A process of its own, which imports nothing of tfllm and no TensorFlow. Requests: {"model": path,
"context": tokens, "texts": [{"prompt", "tokens"}], "chats": [{"messages": what the user says, turn
by turn, "tokens"}]}. Answers: {"texts": [text], "chats": [[answer of each turn]], "version"}.
"""

import importlib.metadata
import json
import sys
from pathlib import Path


def written(engine, request):
    """What comes after a prompt, at most so many tokens."""
    with engine.create_session(
        apply_prompt_template=False, max_output_tokens=request["tokens"]
    ) as session:
        session.run_prefill([request["prompt"]])
        return session.run_decode().texts[0]


def talked(engine, request):
    """The answers of a conversation."""
    answers = []
    with engine.create_conversation(max_output_tokens=request["tokens"]) as conversation:
        for message in request["messages"]:
            answer = conversation.send_message(message)
            answers.append("".join(part.get("text", "") for part in answer["content"]))
    return answers


def main(requests, answers):
    """Opens the bundle once and answers all."""
    import litert_lm

    litert_lm.set_min_log_severity(litert_lm.LogSeverity.ERROR)
    asked = json.loads(Path(requests).read_text())
    with litert_lm.Engine(
        asked["model"],
        backend=litert_lm.Backend.CPU(),
        max_num_tokens=asked["context"],
        cache_dir=":nocache",
    ) as engine:
        told = {
            "texts": [written(engine, request) for request in asked["texts"]],
            "chats": [talked(engine, request) for request in asked["chats"]],
            "version": importlib.metadata.version("litert-lm"),
        }
    Path(answers).write_text(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
