"""tfllm chat: a conversation in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from tfllm.cli.generation_options import (
    SAMPLING_FIELDS,
    Precision,
    Stop,
    check_settings,
    with_generation_options,
)

if TYPE_CHECKING:
    from tfllm.generation.chat import ChatSession
    from tfllm.generation.config import GenerationConfig

EXAMPLES = """Examples:

tfllm chat runs/dialogue

tfllm chat SmolLM2-135M-Instruct --system "You answer in one sentence." --temperature 0.3

In the conversation: /reset clears it, /exit or Ctrl-D ends it.
"""


@with_generation_options(SAMPLING_FIELDS, {"max_new_tokens": 256, "temperature": 0.7, "top_p": 0.9})
def chat(
    model: Annotated[str, typer.Argument(help="Checkpoint, run or exported model.")],
    system: Annotated[str | None, typer.Option(help="The system message.")] = None,
    stop: Stop = None,
    precision: Precision = "float32",
    **settings: Any,
) -> None:
    """Hold a conversation in the terminal; answers appear as they are generated."""
    options = check_settings(settings)

    from tfllm.cli.generate import open_model
    from tfllm.generation.chat import ChatSession
    from tfllm.tokenizers.chat import require_chat_template

    generator = open_model(model).generator(precision)
    require_chat_template(generator.tokenizer)  # without one there is no conversation
    session = ChatSession(generator, system=system)
    _talk(session, generator.generation_config(**options), tuple(stop or ()))


PROMPT = "> "


def _talk(session: ChatSession, config: GenerationConfig, stop: tuple[str, ...]) -> None:
    """Read lines and print answers until the input ends."""
    import sys

    from tfllm.errors import SettingError

    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    terminal = sys.stdin.isatty()
    while True:
        try:
            line = input(PROMPT) if terminal else sys.stdin.readline()
        except EOFError:
            print()
            return
        if not terminal and not line:
            return
        message = line.strip()
        if message == "/exit":
            return
        if message == "/reset":
            session.reset()
            continue
        if not message:
            continue
        try:
            session.reply(message, config, stop=stop, on_text=_print_piece)
        except SettingError as error:  # a message that is too long does not end the conversation
            print(f"tfllm: {error.cli_message}", file=sys.stderr)
            if not terminal:
                raise
        finally:
            print(flush=True)


def _print_piece(piece: str) -> None:
    print(piece, end="", flush=True)


COMMANDS = {"": chat}
