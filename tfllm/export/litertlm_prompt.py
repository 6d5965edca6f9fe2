"""The prompt template and start token of a LiteRT-LM bundle.

The runtime renders chats with its own Jinja (minijinja) and puts the start token before all.
"""

from __future__ import annotations

import json
import re
from typing import Any

from tfllm.tokenizers import chat
from tfllm.tokenizers.base import Tokenizer

# A model without a chat template continues the messages' text.
PLAIN_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
# LiteRT-LM gives a message's content as a list of parts; Hugging Face's templates expect a text.
CONTENT_AS_TEXT = (
    "{% set tfllm = namespace(messages=[]) %}{% for m in messages %}"
    "{% set tfllm.messages = tfllm.messages + [dict(m, content=(m.content if m.content is string "
    "else (m.content | map(attribute='text') | join(''))))] %}{% endfor %}"
    "{% set messages = tfllm.messages %}"
)
# Blocks that only training needs, and the runtime's Jinja does not know, become comments.
GENERATION_BLOCK = re.compile(r"\{%(-?)\s*(?:end)?generation\s*(-?)%\}")
SAMPLE_CHAT = (
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
    {"role": "user", "content": "c"},
)


def start_token_ids(tokenizer: Tokenizer) -> list[int]:
    """Return the start token that the runtime has to put first: [id], or [].

    It is there where the chat template writes it or, without a template, where the tokenizer does.
    """
    bos_token_id = tokenizer.bos_token_id
    if bos_token_id is None:
        return []
    if tokenizer.chat_template:
        text = render_sample_chat(tokenizer)
        return [bos_token_id] if text.startswith(tokenizer.vocabulary[bos_token_id]) else []
    return [bos_token_id] if bos_token_id in tokenizer.row_template.prefix else []


def prompt_template(tokenizer: Tokenizer) -> str:
    """Return the chat template for the runtime's Jinja, with the names of special tokens defined.
    The start token is left to the runtime."""
    if not tokenizer.chat_template:
        return CONTENT_AS_TEXT + PLAIN_TEMPLATE
    names = chat.special_tokens_map(tokenizer)
    if start_token_ids(tokenizer):
        names["bos_token"] = ""
    definitions = "".join(
        f"{{% set {name} = {json.dumps(text)} %}}" for name, text in names.items()
    )
    template = GENERATION_BLOCK.sub(r"{#\1 \2#}", tokenizer.chat_template)
    return definitions + CONTENT_AS_TEXT + template


def render_sample_chat(tokenizer: Tokenizer) -> str:
    """Return a short conversation as the chat template renders it."""
    names: dict[str, Any] = {**chat.special_tokens_map(tokenizer)}
    template = chat.require_chat_template(tokenizer)
    return chat.render(template, SAMPLE_CHAT, add_generation_prompt=True, **names)
