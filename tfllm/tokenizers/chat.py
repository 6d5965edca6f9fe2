"""Conversations to text and ids through a model's own chat template, in Jinja's sandbox.

As transformers' `apply_chat_template` (utils/chat_template_utils.py): the same settings of the
sandbox, the same functions, the same `{% generation %}` blocks around the assistant's answers.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from tfllm.errors import DataError, TokenizerError
from tfllm.tokenizers.base import Tokenizer

Message = Mapping[str, Any]
ASSISTANT = "assistant"
# Hugging Face's names that templates use for special tokens -> role
TEMPLATE_NAMES = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "pad_token": "pad_token_id",
    "unk_token": "unk_token_id",
    "cls_token": "bos_token_id",
    "sep_token": "eos_token_id",
    "mask_token": "mask_token_id",
}
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


def render(
    template: str,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool,
    tools: Sequence[Mapping[str, Any]] | None = None,
    **specials: Any,
) -> str:
    """The conversation as the template writes it.

    `specials` are further names for the template, such as bos_token. Raises DataError for messages
    that the template refuses and TokenizerError for a template that cannot be used.
    """
    return _render(template, messages, add_generation_prompt, tools, specials)[0]


def encode(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = True,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> list[int]:
    """The conversation's ids; the template writes the special tokens itself."""
    template = require_chat_template(tokenizer)
    text = render(
        template,
        messages,
        add_generation_prompt=add_generation_prompt,
        tools=tools,
        **special_tokens_map(tokenizer),
    )
    return tokenizer.encode_ids([text], add_special_tokens=False)[0]


def assistant_spans(
    tokenizer: Tokenizer, messages: Sequence[Message]
) -> tuple[list[int], list[tuple[int, int]]]:
    """A whole conversation's ids, and the half-open ranges of them that the assistant says.

    The ends of its turns are included. From the template's generation blocks where it has them;
    else an answer is what the template adds for it to the text that asks for it, which it must
    write the same way both times. Raises TokenizerError where it does not.
    """
    template = require_chat_template(tokenizer)
    names = special_tokens_map(tokenizer)
    text, blocks = _render(template, messages, False, None, names)
    if not GENERATION.search(template):
        blocks = list(_assistant_ranges(template, messages, text, names))
    row = tokenizer.encode(text, add_special_tokens=False)
    spans = [_tokens_within(row.offsets, block) for block in blocks]
    return row.ids, [span for span in spans if span[0] < span[1]]


def require_chat_template(tokenizer: Tokenizer) -> str:
    """Raises TokenizerError where the tokenizer has no chat template."""
    if not tokenizer.chat_template:
        raise TokenizerError(
            "This tokenizer has no chat template. Put a chat_template.jinja beside its files."
        )
    return tokenizer.chat_template


def special_tokens_map(tokenizer: Tokenizer) -> dict[str, str]:
    """bos_token and the others, as templates name them."""
    ids = {name: getattr(tokenizer, role) for name, role in TEMPLATE_NAMES.items()}
    return {name: tokenizer.vocabulary[i] for name, i in ids.items() if i is not None}


def _assistant_ranges(
    template: str, messages: Sequence[Message], text: str, names: Mapping[str, Any]
) -> Iterator[tuple[int, int]]:
    """Character ranges of the assistant's answers: each from its prompt's end to its own end."""
    for number, message in enumerate(messages):
        if message.get("role") != ASSISTANT:
            continue
        before = _render(template, messages[:number], True, None, names)[0]
        after = _render(template, messages[: number + 1], False, None, names)[0]
        if not (text.startswith(before) and text.startswith(after)):
            raise TokenizerError(
                f"The chat template writes message {number + 1} differently once others follow, so "
                "the answers cannot be found. Put {% generation %} blocks around them."
            )
        yield len(before), len(after)


def _tokens_within(offsets: Sequence[tuple[int, int]], block: tuple[int, int]) -> tuple[int, int]:
    """The tokens that have a character of a range, as in transformers."""
    inside = [
        place for place, (start, stop) in enumerate(offsets)
        if start < block[1] and stop > block[0]
    ]  # fmt: skip
    return (inside[0], inside[-1] + 1) if inside else (0, 0)


def _render(
    template: str,
    messages: Sequence[Message],
    add_generation_prompt: bool,
    tools: Sequence[Mapping[str, Any]] | None,
    specials: Mapping[str, Any],
) -> tuple[str, list[tuple[int, int]]]:
    """The text and the character ranges of generation blocks."""
    import jinja2

    _check(messages)
    messages, tools = _plain(messages), _plain(tools)
    compiled = _compiled(template)
    blocks: list[str] = []
    ranges: list[tuple[int, int]] = []
    tracker: Any = compiled.environment
    try:
        with tracker.track(blocks, ranges):
            for block in compiled.generate(
                messages=messages,
                tools=tools,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **specials,
            ):
                blocks.append(block)
    except TemplateRefusal as error:
        raise DataError(f"The chat template refuses these messages: {error}") from None
    except jinja2.exceptions.SecurityError as error:
        raise TokenizerError(f"The chat template does what is not allowed: {error}") from None
    except (jinja2.TemplateError, TypeError, KeyError, AttributeError, ValueError) as error:
        raise DataError(
            f"The chat template fails on these messages: {error}. A message is a table with "
            "'role' and 'content'."
        ) from None
    return "".join(blocks), ranges


class TemplateRefusal(Exception):
    """A template called raise_exception."""


def _dict(*arguments: Any, **entries: Any) -> dict[Any, Any]:
    """`dict` without the attributes of the class, which a sandbox should not hand out."""
    return dict(*arguments, **entries)


def _plain(value: Any) -> Any:
    """JSON types only: objects could have methods that the sandbox does not know as dangerous."""
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError) as error:
        raise DataError(f"Messages and tools must be plain JSON: {error}.") from None


def _check(messages: Sequence[Message]) -> None:
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, Mapping) or "role" not in message:
            raise DataError(
                f"Message {number} is {str(message)[:80]!r}; a message is a table with 'role' and "
                "'content'."
            )


@functools.lru_cache(maxsize=64)
def _compiled(template: str) -> Any:
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_generation_blocks(), "jinja2.ext.loopcontrols"],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    environment.globals["dict"] = _dict
    try:
        return environment.from_string(template)
    except jinja2.TemplateSyntaxError as error:
        raise TokenizerError(f"The chat template, line {error.lineno}: {error.message}") from None


def _raise(message: str) -> None:
    raise TemplateRefusal(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes HTML characters."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


@functools.cache
def _generation_blocks() -> Any:
    """The Jinja extension for `{% generation %} ... {% endgeneration %}`."""
    from jinja2 import nodes, pass_eval_context
    from jinja2.ext import Extension

    class GenerationBlocks(Extension):
        tags = {"generation"}

        def __init__(self, environment: Any):
            super().__init__(environment)
            environment.extend(track=self.track)
            self._blocks: list[str] | None = None
            self._ranges: list[tuple[int, int]] = []

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_called"), [], [], body).set_lineno(line)

        @pass_eval_context
        def _called(self, context: Any, caller: Any) -> str:
            text = caller()
            if self._blocks is not None:
                start = sum(map(len, self._blocks))
                self._ranges.append((start, start + len(text)))
            return text

        @contextmanager
        def track(self, blocks: list[str], ranges: list[tuple[int, int]]) -> Iterator[None]:
            self._blocks, self._ranges = blocks, ranges
            try:
                yield
            finally:
                self._blocks = None

    return GenerationBlocks
