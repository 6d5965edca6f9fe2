"""Rendering of conversations with a model's chat template, in Jinja's sandbox.

The settings of the sandbox, the functions and the `{% generation %}` blocks around the assistant's
answers are those of transformers.

Source: transformers, `apply_chat_template` (utils/chat_template_utils.py).
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn

from tfllm.errors import DataError, TokenizerError
from tfllm.tokenizers.base import Tokenizer

if TYPE_CHECKING:
    import jinja2
    from jinja2.ext import Extension
    from jinja2.nodes import EvalContext, Node
    from jinja2.parser import Parser

Message = Mapping[str, Any]
ASSISTANT = "assistant"
# Hugging Face's name of a special token, as templates use it -> property of a tokenizer.
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
    **specials: str,
) -> str:
    """Render a conversation.

    Args:
        template: The Jinja template.
        messages: Dicts with "role" and "content".
        add_generation_prompt: Whether the prompt of the assistant's next turn is added.
        tools: Descriptions of tools, as JSON.
        specials: Further variables of the template, such as bos_token.

    Raises:
        DataError: The template refuses the messages.
        TokenizerError: The template cannot be used.
    """
    return _render(template, messages, add_generation_prompt, tools, specials)[0]


def encode(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = True,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> list[int]:
    """Encode a conversation to ids; the template adds the special tokens itself.

    Args:
        tokenizer: A tokenizer with a chat template.
        messages: Dicts with "role" and "content".
        add_generation_prompt: Whether the prompt of the assistant's next turn is added.
        tools: Descriptions of tools, as JSON.

    Raises:
        DataError: The template refuses the messages.
        TokenizerError: There is no template, or it cannot be used.
    """
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
    """Encode a complete conversation, and find the answers of the assistant.

    The answers are the template's generation blocks where it has them; else an answer is what the
    template adds for it to the prompt of that turn, which it must render the same way both times.

    Args:
        tokenizer: A tokenizer with a chat template.
        messages: Dicts with "role" and "content".

    Returns:
        The ids, and the half-open ranges of them that are answers, with the ends of the turns.

    Raises:
        DataError: The template refuses the messages.
        TokenizerError: There is no template, or the answers cannot be found.
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
    """Return the chat template of a tokenizer.

    Raises:
        TokenizerError: It has none.
    """
    if not tokenizer.chat_template:
        raise TokenizerError(
            "This tokenizer has no chat template. Put a chat_template.jinja beside its files."
        )
    return tokenizer.chat_template


def special_tokens_map(tokenizer: Tokenizer) -> dict[str, str]:
    """Return the special tokens under the names that templates use, such as bos_token."""
    ids = {name: getattr(tokenizer, role) for name, role in TEMPLATE_NAMES.items()}
    return {name: tokenizer.vocabulary[i] for name, i in ids.items() if i is not None}


def _assistant_ranges(
    template: str, messages: Sequence[Message], text: str, names: Mapping[str, str]
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
    """The range of tokens that have a character of a range of characters."""
    inside = [
        index for index, (start, stop) in enumerate(offsets)
        if start < block[1] and stop > block[0]
    ]  # fmt: skip
    return (inside[0], inside[-1] + 1) if inside else (0, 0)


def _render(
    template: str,
    messages: Sequence[Message],
    add_generation_prompt: bool,
    tools: Sequence[Mapping[str, Any]] | None,
    specials: Mapping[str, str],
) -> tuple[str, list[tuple[int, int]]]:
    """The text and the character ranges of generation blocks."""
    import jinja2

    _check(messages)
    messages, tools = _to_plain_json(messages), _to_plain_json(tools)
    compiled = _compile(template)
    blocks: list[str] = []
    ranges: list[tuple[int, int]] = []
    tracker: Any = compiled.environment  # extended by GenerationBlocks
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
    """A template called `raise_exception`."""


def _dict(*arguments: Any, **entries: Any) -> dict[Any, Any]:
    """`dict` without the attributes of the class, to which a sandbox should give no access."""
    return dict(*arguments, **entries)


def _to_plain_json(value: Any) -> Any:
    """A copy of JSON types only: objects could have methods that the sandbox does not block."""
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
def _compile(template: str) -> jinja2.Template:
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


def _raise(message: str) -> NoReturn:
    raise TemplateRefusal(message)


def _to_json(
    value: object,
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
def _generation_blocks() -> type[Extension]:
    """The Jinja extension for `{% generation %} ... {% endgeneration %}`."""
    from jinja2 import nodes, pass_eval_context
    from jinja2.ext import Extension

    class GenerationBlocks(Extension):
        tags = {"generation"}

        def __init__(self, environment: jinja2.Environment):
            super().__init__(environment)
            environment.extend(track=self.track)
            self._blocks: list[str] | None = None
            self._ranges: list[tuple[int, int]] = []

        def parse(self, parser: Parser) -> Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_call"), [], [], body).set_lineno(line)

        @pass_eval_context
        def _call(self, context: EvalContext, caller: Callable[[], str]) -> str:
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
