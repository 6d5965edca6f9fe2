"""tfllm chat: a conversation in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from tfllm.cli.generate import (
    MinP,
    Precision,
    RepetitionPenalty,
    Temperature,
    TopK,
    TopP,
    open_writer,
)

if TYPE_CHECKING:
    from tfllm.generation.chat import ChatSession

EXAMPLES = """Examples:

tfllm chat runs/dialogue

tfllm chat SmolLM2-135M-Instruct --system "You answer in one sentence." --temperature 0.3

In the conversation: /reset forgets it, /exit or Ctrl-D ends it.
"""


def chat(
    model: Annotated[str, typer.Argument(help="Checkpoint, run or exported model.")],
    system: Annotated[str | None, typer.Option(help="What the model is told first.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens of an answer at most.")] = 256,
    temperature: Temperature = 0.7,
    top_k: TopK = 0,
    top_p: TopP = 0.9,
    min_p: MinP = 0.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    seed: Annotated[int, typer.Option(help="Of the random numbers.")] = 0,
    stop: Annotated[
        list[str] | None, typer.Option(help="A text that ends an answer; may be repeated.")
    ] = None,
    precision: Precision = "float32",
) -> None:
    """A conversation in the terminal; answers appear as they are written."""
    from tfllm.generation.config import generation_config

    options = locals()
    settings = generation_config(**{name: options[name] for name in SETTINGS})

    from tfllm.generation.chat import ChatSession
    from tfllm.tokenizers.chat import require_chat_template

    generator = open_writer(model, precision)
    require_chat_template(generator.tokenizer)  # without one there is no conversation
    _talk(ChatSession(generator, system=system), settings, tuple(stop or ()))


SETTINGS = (
    "max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed",
)  # fmt: skip
PROMPT = "> "


def _talk(session: ChatSession, settings: Any, stop: tuple[str, ...]) -> None:
    """Reads lines and prints answers until the input ends."""
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
        said = line.strip()
        if said == "/exit":
            return
        if said == "/reset":
            session.reset()
            continue
        if not said:
            continue
        try:
            session.answer(said, settings, stop=stop, on_text=_printed)
        except SettingError as error:  # a message that is too long does not end the conversation
            print(f"tfllm: {error}", file=sys.stderr)
            if not terminal:
                raise
        finally:
            print(flush=True)


def _printed(piece: str) -> None:
    print(piece, end="", flush=True)


COMMANDS = {"": chat}
